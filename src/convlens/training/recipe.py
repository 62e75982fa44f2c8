"""`Recipe`: every setting of a training run in one record; the file, the flags and the help derive from it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from convlens.data.augmentation import Augmentation
from convlens.data.options import DataOptions
from convlens.errors import RecipeError
from convlens.training.toml import dump_toml

__all__ = [
    "Device",
    "Optimizer",
    "Precision",
    "Recipe",
    "Schedule",
    "read_recipe",
    "seconds_of",
    "shipped_recipes",
    "write_recipe",
]

Optimizer = Literal["sgd", "rmsprop", "adamw", "muon"]
Schedule = Literal["constant", "step", "exponential", "cosine", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
Scalar = bool | int | float | str

_SHIPPED = Path(__file__).parent.parent / "recipes"
_DURATION = re.compile(r"^(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?$")


def _setting(default: Any, panel: str, description: str, **bounds: Any) -> Any:
    return Field(default=default, description=description, json_schema_extra={"panel": panel}, **bounds)


class Recipe(BaseModel):
    """Every setting of a training run; frozen, and nothing outside it changes the result.

    ``None`` and ``"auto"`` mean: chosen from the data, the network and the machine when training starts. What
    was chosen is printed, and written to the run's ``recipe.toml``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    data: str | None = _setting(None, "Data", "what to train on; the DATA argument of the command")

    data_options: DataOptions = _setting(DataOptions(), "Data", "how the data is read")

    model: str = _setting("auto", "Network", "network to train; `auto` chooses by the size of the inputs")
    model_options: dict[str, Scalar] = _setting({}, "Network", "arguments of the network, NAME=VALUE")

    init: str | None = _setting(None, "Transfer", "run or model file whose weights to start from")
    train_layers: Annotated[str, Field(pattern=r"^(all|head|last:[1-9]\d{0,3})$")] = _setting(
        "all", "Transfer", "all, head, or last:N layers; the others stay as they are"
    )
    unfreeze_epochs: int = _setting(
        0, "Transfer", "train one more layer, from the last to the first, every so many epochs; 0 never", ge=0
    )
    layer_decay: float = _setting(
        1.0, "Transfer", "learning rate of each layer as part of the next one's, towards the first", gt=0, le=1
    )

    balance: Literal["none", "sampling", "weights"] = _setting(
        "none", "Data", "classes of unequal size: meet each equally often, or weigh them in the loss"
    )

    augmentation: Literal["auto", "none"] = _setting(
        "auto",
        "Augmentation",
        "start from what suits the kind of data, or from nothing; the rest below is set on top",
    )
    augment: Augmentation = _setting(Augmentation(), "Augmentation", "how training samples are changed")

    epochs: int | None = _setting(None, "Length", "passes over the training data; default by its size", ge=1)
    time_budget: str | None = _setting(None, "Length", "train for at most this long: 90s, 5m, 1h30m")
    early_stop: int = _setting(0, "Length", "stop after this many epochs without a better dev loss; 0 never", ge=0)
    batch_size: int | None = _setting(None, "Length", "samples in one step; default by the size of the data", ge=1)

    optimizer: Optimizer = _setting("adamw", "Optimizer", "update rule")
    learning_rate: float | None = _setting(
        None,
        "Optimizer",
        "highest learning rate; default sgd 0.05, rmsprop 0.001, others 0.003",
        gt=0,
        le=100,
    )
    find_rate: bool = _setting(
        False,
        "Optimizer",
        "find the learning rate first: raise it until the loss explodes, take a tenth of the best",
    )
    momentum: float = _setting(0.9, "Optimizer", "momentum of sgd and rmsprop", ge=0, lt=1)
    nesterov: bool = _setting(True, "Optimizer", "Nesterov's form of sgd's momentum")
    weight_decay: float | None = _setting(
        None,
        "Optimizer",
        "shrink weights, not biases or norms; default sgd 0.0005, rmsprop 0, others 0.01",
        ge=0,
        le=10,
    )
    clip_norm: float = _setting(0.0, "Optimizer", "longest gradient, as Euclidean norm; 0 unlimited", ge=0)

    schedule: Schedule = _setting("one-cycle", "Schedule", "how the learning rate changes")
    warmup_epochs: float = _setting(0.0, "Schedule", "raise the rate from zero over this many epochs first", ge=0)
    decay_epochs: float = _setting(10.0, "Schedule", "`step` multiplies the rate by `decay` every so many", gt=0)
    decay: float = _setting(
        0.1, "Schedule", "factor of `step`, and of `exponential` over the whole run", gt=0, le=1
    )

    dropout: float = _setting(
        0.0, "Regularisation", "part of the last layer's inputs set to zero while training", ge=0, lt=1
    )
    label_smoothing: float = _setting(
        0.1, "Regularisation", "part of the target spread evenly over all classes", ge=0, lt=1
    )
    max_norm: float = _setting(
        0.0, "Regularisation", "longest weight vector of one output unit; 0 unlimited", ge=0
    )
    ema: float = _setting(
        0.0, "Regularisation", "decay of the running average of the weights that is kept; 0 none", ge=0, lt=1
    )

    seed: int = _setting(0, "Machine", "makes the run repeatable: weights, order, augmentation", ge=0, lt=2**63)
    device: Device = _setting("auto", "Machine", "auto, cpu, cuda or cuda:N")
    precision: Precision = _setting("auto", "Machine", "number format of the products")
    threads: int | None = _setting(None, "Machine", "CPU threads; default as PyTorch chooses", ge=1, le=1024)
    checkpoint_seconds: float = _setting(60.0, "Machine", "also save inside an epoch after so many seconds", ge=0)

    @field_validator("time_budget")
    @classmethod
    def _budget_is_a_duration(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Recipe:
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: expected momentum > 0 with it, received momentum 0")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate: as set, or the optimizer's default."""
        defaults = {"sgd": 0.05, "rmsprop": 0.001, "adamw": 0.003, "muon": 0.003}
        return self.learning_rate if self.learning_rate is not None else defaults[self.optimizer]

    @property
    def weight_decay_in_use(self) -> float:
        """Weight decay: as set, or the optimizer's default."""
        defaults = {"sgd": 0.0005, "rmsprop": 0.0, "adamw": 0.01, "muon": 0.01}
        return self.weight_decay if self.weight_decay is not None else defaults[self.optimizer]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Build a recipe and explain what is wrong with ``settings``.

        Args:
            settings: field names and values; names that are absent take their defaults.
            source: where the settings come from, for the error text.

        Raises:
            RecipeError: a setting that does not exist, or a value that is impossible.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise RecipeError(f"{source}: {_explain(error)}") from None

    def with_settings(self, **settings: Any) -> Recipe:
        """The same recipe with some settings replaced.

        Raises:
            RecipeError: a setting that does not exist, or a value that is impossible.
        """
        return self.from_settings({**self.model_dump(exclude_unset=True), **settings})


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with convlens, by name; the head of each file says what it reaches."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.toml"))}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings in a recipe (TOML), checked; only those that it names.

    Args:
        path: a file, or the name of a recipe that comes with convlens, such as ``mnist-99``.

    Raises:
        RecipeError: no such file, not TOML, an unknown setting or an impossible value.
    """
    file = Path(path)
    if not file.exists():
        file = shipped_recipes().get(str(path), file)
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        names = ", ".join(shipped_recipes())
        raise RecipeError(f"{path}: no such recipe file, and none of those that come along ({names}).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text ({error}).") from None
    try:
        settings = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise RecipeError(f"{path}: not a TOML file: {error}.") from None
    Recipe.from_settings(settings, source=str(path))
    return settings


def write_recipe(recipe: Recipe) -> str:
    """``recipe`` as the text of a recipe file; settings that are None are left out."""
    return dump_toml(recipe.model_dump(exclude_none=True))


def seconds_of(duration: str) -> float:
    """Seconds in a duration such as ``90``, ``90s``, ``5m`` or ``1h30m``.

    Raises:
        ValueError: not a duration, or not longer than zero.
    """
    found = _DURATION.match(duration.strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ValueError("expected a duration such as 90s, 5m or 1h30m")
    return total


def _explain(error: ValidationError) -> str:
    """Every problem in one paragraph: the setting, what was expected, what came, the nearest right name."""
    return " ".join(_explain_one(dict(problem)) for problem in error.errors())


def _explain_one(problem: dict[str, Any]) -> str:
    place, model = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][len(place)])
        return f"unknown setting {'.'.join([*place, name])!r}.{_nearest(name, list(model.model_fields))}"
    message = problem["msg"].removeprefix("Value error, ")
    if not place:
        return f"{message}."
    name = ".".join(place)
    if accepted := _choices(place):
        hint = _nearest(str(problem["input"]), accepted)
        return f"{name}: expected one of {', '.join(accepted)}, received {problem['input']!r}.{hint}"
    message = message.removeprefix("Input should be ").removeprefix("expected ")
    return f"{name}: expected {message}, received {problem['input']!r}."


def _place(location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """Field names that lead to a problem, and the record it lies in; pydantic adds parts that are no names."""
    model: type[BaseModel] = Recipe
    names: list[str] = []
    for part in location:
        if part not in model.model_fields:
            break
        names.append(str(part))
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return names, model


def _choices(place: list[str]) -> list[str]:
    if place == ["device"]:
        return ["auto", "cpu", "cuda", "cuda:N", "mps"]
    if place == ["train_layers"]:
        return ["all", "head", "last:N"]
    model = _place(tuple(place[:-1]))[1]
    return _literals(model.model_fields[place[-1]].annotation)


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _literals(part)]


def _nearest(word: str, accepted: list[str]) -> str:
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), accepted, n=1, cutoff=0.5)
    if matches:
        return f" Did you mean {matches[0]!r}?"
    return "" if len(accepted) < 8 else f" Settings are: {', '.join(sorted(accepted))}."
