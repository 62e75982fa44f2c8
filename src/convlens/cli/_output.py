"""Where output goes: results and JSON to stdout, progress and remarks to stderr."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JsonFlag", "print_json", "result_console", "status_console"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")]
"""The ``--json`` flag that every reading command has."""


def print_json(document: Any) -> None:
    """Print ``document`` as the one JSON document on stdout; numbers that JSON lacks (NaN, inf) become null."""
    typer.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def result_console(as_json: bool = False) -> Console:
    """A Rich console for results: stdout, or stderr when stdout is kept for JSON."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False)


def status_console() -> Console:
    """A Rich console for progress and remarks, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
