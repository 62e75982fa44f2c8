"""A problem as one line of text and back: the key of the measurements on disk and of exported plans."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from convlens.errors import ArgumentError
from convlens.window import ConvProblem, Epilogue

__all__ = ["bucketed", "from_key", "to_key"]

_EXACT_BATCHES = 16


def to_key(problem: ConvProblem) -> str:
    """Compact JSON with sorted keys: equal problems give equal text."""
    return json.dumps(asdict(problem), sort_keys=True, separators=(",", ":"))


def from_key(text: str) -> ConvProblem:
    """The problem that `to_key` wrote.

    Raises:
        ArgumentError: the text is not such a key.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        epilogue = Epilogue(**fields.pop("epilogue"))
        padding = tuple((int(before), int(after)) for before, after in fields.pop("padding"))
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return ConvProblem(padding=padding, epilogue=epilogue, **listed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError("key", "a problem as written by convlens.planner.to_key", repr(text)[:200]) from error


def bucketed(problem: ConvProblem) -> ConvProblem:
    """The problem whose measurement stands for this one: batches above 16 round up to a power of two.

    The last, smaller batch of an epoch or a changing load on a server then needs no measurement of its own.
    """
    if problem.batch <= _EXACT_BATCHES:
        return problem
    return replace(problem, batch=1 << (problem.batch - 1).bit_length())
