"""Writes settings as TOML (Python only reads it): scalars, lists and one level of tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["dump_toml"]


def dump_toml(settings: Mapping[str, Any]) -> str:
    """``settings`` as TOML text that `tomllib` reads back to equal values.

    Args:
        settings: names to strings, booleans, numbers, lists of these, or mappings of these. None is left out.
    """
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_value(value)}" for name, value in settings.items() if _is_plain(value)]
    for table, content in tables.items():
        if content:
            lines += ["", f"[{table}]"]
            lines += [f"{_key(name)} = {_value(value)}" for name, value in content.items() if value is not None]
    return "\n".join(lines) + "\n"


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        # TOML wants a digit on both sides of the point; Python writes 1e-05, which TOML reads.
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    # JSON's string escapes are TOML's, except that TOML also wants DEL escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
