"""What the planner may choose: precision class, memory, batch invariance. Changing one forgets cached choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from convlens.environment import plan_mode
from convlens.errors import ArgumentError
from convlens.kernels import limits
from convlens.kernels.contract import Precision

__all__ = [
    "Settings",
    "current",
    "forget",
    "get_precision",
    "on_change",
    "set_batch_invariant",
    "set_precision",
    "set_workspace_limit",
]

_DEFAULT_WORKSPACE = 2 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices that hold for every plan made from now on."""

    precision: Precision = "high"
    workspace_limit: int = _DEFAULT_WORKSPACE
    batch_invariant: bool = False
    mode: str = "measure"


_current = Settings(mode=plan_mode())


def current() -> Settings:
    """The settings in force."""
    return _current


def get_precision() -> Precision:
    """The error class that automatic plans may use."""
    return _current.precision


def set_precision(precision: Precision) -> None:
    """Choose the error class that automatic plans may use.

    Args:
        precision: ``"exact"`` (error at most 2× that of a direct float32 sum, measured against float64),
            ``"high"`` (at most 16×, the default) or ``"fast"`` (no bound).

    Raises:
        ArgumentError: another word.
    """
    if precision not in get_args(Precision):
        raise ArgumentError("precision", " or ".join(map(repr, get_args(Precision))), repr(precision))
    _change(precision=precision)


def set_workspace_limit(limit_bytes: int) -> None:
    """Bound the scratch memory of automatically chosen kernels, in bytes (default 2 GiB).

    Raises:
        ArgumentError: a negative limit.
    """
    if limit_bytes < 0:
        raise ArgumentError("limit_bytes", "a number of bytes ≥ 0", limit_bytes)
    _change(workspace_limit=int(limit_bytes))


def set_batch_invariant(on: bool) -> None:
    """Ask that an image gives the same bits alone or in any batch.

    Plans are then chosen as if for one image. A kernel that does not promise one order of summation whatever
    the batch is tried on random operands, and runs image by image where its bits depend on the batch.
    """
    _change(batch_invariant=bool(on))


def on_change(forgetting: Callable[[], None]) -> None:
    """Have ``forgetting`` called whenever plans may have changed: it empties a cache made of them."""
    _listeners.append(forgetting)


def forget() -> None:
    """Tell every cache that was made of plans to empty itself."""
    for forgetting in _listeners:
        forgetting()


def _change(**changes: object) -> None:
    global _current
    _current = replace(_current, **changes)  # type: ignore[arg-type]
    forget()


_listeners: list[Callable[[], None]] = []
limits.on_change(forget)
