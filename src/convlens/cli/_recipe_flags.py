"""Flags of the settings records: one per field of `Recipe` and of the records inside it, none written by hand."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from convlens.errors import RecipeError
from convlens.training.recipe import Recipe, read_recipe

__all__ = ["recipe_from", "with_recipe_flags"]

_NOT_FLAGS = {"data"}
_SETTING = re.compile(r"\b([a-z_.]+): expected")
_NUMBER_LIST = re.compile(r"[x×,/ ]+")


def with_recipe_flags(run: Callable[..., None]) -> Callable[..., None]:
    """Give ``run(*, settings, **own)`` a flag for every setting; those used arrive as ``settings``.

    ``settings`` maps a place in the recipe, such as ``("epochs",)`` or ``("data_options", "size")``, to its value.
    """
    own = inspect.signature(run, eval_str=True).parameters
    places: dict[str, tuple[str, ...]] = {}
    parameters = [parameter for name, parameter in own.items() if name != "settings"]
    for place, field in _fields(Recipe, ()):
        name = place[-1]
        if name in own or name in places:
            raise TypeError(f"two flags are named {name!r}")
        places[name] = place
        parameters.append(_parameter(place, field))

    def command(**values: Any) -> None:
        given = {place: values.pop(name) for name, place in places.items()}
        settings = {place: value for place, value in given.items() if value is not None and value != []}
        run(settings=settings, **values)

    command.__doc__ = run.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def recipe_from(data: str | None, file: str | None, settings: dict[tuple[str, ...], Any]) -> Recipe:
    """The recipe of a command: its file's settings, overridden by flags, for ``data``.

    Raises:
        RecipeError: from the file.
        typer.BadParameter: from a flag.
    """
    merged = dict(read_recipe(file)) if file is not None else {}
    try:
        for place, value in settings.items():
            table = merged
            for part in place[:-1]:
                table[part] = dict(table.get(part, {}))
                table = table[part]
            table[place[-1]] = _parsed(_field_at(place), value)
        if data is not None:
            merged["data"] = data
        return Recipe.from_settings(merged, source="flags")
    except RecipeError as error:
        text = _SETTING.sub(lambda found: f"{_flag(found[1])}: expected", str(error).removeprefix("flags: "))
        raise typer.BadParameter(text) from None


def _fields(model: type[BaseModel], start: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if name in _NOT_FLAGS and not start:
            continue
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, (*start, name))
        else:
            yield (*start, name), field


def _field_at(place: tuple[str, ...]) -> FieldInfo:
    model: type[BaseModel] = Recipe
    for part in place[:-1]:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return model.model_fields[place[-1]]


def _parameter(place: tuple[str, ...], field: FieldInfo) -> inspect.Parameter:
    name = place[-1]
    kind = _plain_type(field.annotation)
    flag = _flag(name)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else "--model-option" if kind is dict else flag,
        help=_help(field),
        show_default=False,
        metavar=_metavar(field.annotation, kind),
        rich_help_panel=_panel(place, field),
    )
    annotation = list[str] if kind is dict else kind if kind in (bool, int, float) else str
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, option],
    )


def _flag(name: str) -> str:
    return "--" + name.rpartition(".")[2].replace("_", "-")


def _plain_type(annotation: Any) -> Any:
    """The type behind ``T | None`` and ``Annotated``: bool, int, float, str, tuple, dict or Literal."""
    arguments = [part for part in get_args(annotation) if part is not type(None)]
    origin = get_origin(annotation)
    if origin is Annotated or (_is_union(origin) and len(arguments) == 1):
        return _plain_type(arguments[0])
    if origin in (tuple, dict, Literal):
        return origin
    return annotation if annotation in (bool, int, float, str) else str


def _is_union(origin: Any) -> bool:
    return origin is Union or getattr(origin, "__name__", "") == "UnionType"


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _metavar(annotation: Any, kind: Any) -> str | None:
    if choices := _choices(annotation):
        return "|".join(choices)
    return {int: "N", float: "X", dict: "NAME=VALUE", tuple: "N,N…", str: "TEXT"}.get(kind)


def _panel(place: tuple[str, ...], field: FieldInfo) -> str:
    """Heading in the help: the field's own, or that of the record in which it lies."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or "panel" not in extra:
        extra = Recipe.model_fields[place[0]].json_schema_extra
    return str(extra["panel"]) if isinstance(extra, dict) else "Options"


def _help(field: FieldInfo) -> str:
    """The field's description with its default, unless the description says what the default depends on."""
    text, default = field.description or "", field.default
    if default is None or default is PydanticUndefined or isinstance(default, (dict, BaseModel)):
        return text
    shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else f"{default}"
    return f"{text} (default {shown})"


def _parsed(field: FieldInfo, value: Any) -> Any:
    """A flag's value as the file would hold it: number lists and NAME=VALUE pairs become tables and lists."""
    kind = _plain_type(field.annotation)
    if kind is tuple:
        return [_scalar(part) for part in _NUMBER_LIST.split(value.strip())]
    if kind is dict:
        pairs = [item.partition("=") for item in value]
        return {name.strip().replace("-", "_"): _scalar(text.strip()) for name, _, text in pairs}
    return value


def _scalar(text: str) -> Any:
    """``3`` → 3, ``0.5`` → 0.5, ``true`` → True; anything else stays text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
