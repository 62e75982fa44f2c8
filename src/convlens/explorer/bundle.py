"""The ES modules of ``static/js`` as one script, so that a report opens from disk without a server.

Browsers refuse ``import`` between files opened with file://. The modules here use a small part of the
language on purpose, one that can be put together by text: ``import { a, b } from "./x.js";`` on one line, and
``export function`` or ``export const``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = ["bundle", "static_file"]

_IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./([\w-]+)\.js";$', re.M)
_EXPORT = re.compile(r"^export ((?:async )?function|const|class) (\w+)", re.M)
_LEFT_OVER = re.compile(r"^\s*(import|export)\b.*$", re.M)


def static_file(name: str) -> Traversable:
    """A file of ``static/`` inside the installed package."""
    return files("convlens.explorer").joinpath("static", *name.split("/"))


@cache
def bundle(entry: str) -> str:
    """One script that does what the module ``static/js/{entry}.js`` does, the modules it imports included.

    Raises:
        ValueError: a module uses an import or export form that can't be put together here.
    """
    order: list[str] = []
    _visit(entry, order, ())
    parts = ['"use strict";', "const $modules = {};"]
    parts += [_wrapped(name) for name in order]
    return "\n".join(parts)


def _source(name: str) -> str:
    return static_file(f"js/{name}.js").read_text(encoding="utf-8")


def _visit(name: str, order: list[str], path: tuple[str, ...]) -> None:
    if name in path:
        raise ValueError(f"modules import each other: {' → '.join((*path, name))}")
    if name in order:
        return
    for match in _IMPORT.finditer(_source(name)):
        _visit(match[2], order, (*path, name))
    order.append(name)


def _wrapped(name: str) -> str:
    text = _source(name)
    text = _IMPORT.sub(lambda match: f"const {{ {match[1]} }} = $modules[{match[2]!r}];", text)
    exported = [match[2] for match in _EXPORT.finditer(text)]
    text = _EXPORT.sub(lambda match: f"{match[1]} {match[2]}", text)
    if found := _LEFT_OVER.search(text):
        raise ValueError(f"{name}.js: cannot be bundled: {found[0].strip()}")
    return f"$modules[{name!r}] = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }};\n}})();"
