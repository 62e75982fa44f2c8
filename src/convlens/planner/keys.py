"""A problem as one line of text and back: the key of the measurements on disk and of exported plans."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, TypeVar

from convlens.errors import ArgumentError
from convlens.kernels.batches import rounded_batch
from convlens.window import ConvProblem, Epilogue, PoolProblem

__all__ = ["bucketed", "from_key", "to_key"]

_EXACT_BATCHES = 16
Problem = TypeVar("Problem", ConvProblem, PoolProblem)


def to_key(problem: ConvProblem | PoolProblem) -> str:
    """Compact JSON with sorted keys: equal problems give equal text."""
    fields = asdict(problem)
    if isinstance(problem, ConvProblem):  # keys written before there were these two stay good
        if not problem.epilogue.residual:
            del fields["epilogue"]["residual"]
        if not problem.prepared:
            del fields["prepared"]
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def from_key(text: str) -> ConvProblem | PoolProblem:
    """The problem that `to_key` wrote.

    Raises:
        ArgumentError: the text is not such a key.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        padding = tuple((int(before), int(after)) for before, after in fields.pop("padding"))
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        if "kind" in listed:
            return PoolProblem(padding=padding, **listed)
        epilogue = Epilogue(**listed.pop("epilogue"))
        return ConvProblem(padding=padding, epilogue=epilogue, **listed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError("key", "a problem as written by convlens.planner.to_key", repr(text)[:200]) from error


def bucketed(problem: Problem) -> Problem:
    """The problem whose measurement stands for this one: batches above 16 round up to a power of two.

    The last, smaller batch of an epoch or a changing load on a server then needs no measurement of its own.
    """
    if problem.batch <= _EXACT_BATCHES:
        return problem
    return replace(problem, batch=rounded_batch(problem.batch))
