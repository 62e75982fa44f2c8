"""How much memory the algorithms that write matrices out may take; settable, in one place."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["OverBudget", "matrix_budget", "on_change", "over_budget", "set_matrix_budget"]

_MIB = 1 << 20
_matrix_budget: int | None = 512 * _MIB
_listeners: list[Callable[[], None]] = []


class OverBudget(str):
    """A refusal because of memory: an explicit request that meets it is a `BudgetError`."""

    __slots__ = ()


def matrix_budget() -> int | None:
    """Most workspace of ``definition`` and ``toeplitz``, in bytes, above which they refuse. 512 MiB unless set."""
    return _matrix_budget


def set_matrix_budget(limit_bytes: int | None) -> None:
    """Set `matrix_budget` (None: no bound); plans made so far are forgotten."""
    global _matrix_budget
    _matrix_budget = limit_bytes
    for forget in _listeners:
        forget()


def on_change(forget: Callable[[], None]) -> None:
    """Have ``forget`` called whenever the budget changes: it empties a cache of plans."""
    _listeners.append(forget)


def over_budget(needed_bytes: int) -> OverBudget | None:
    """The refusal of an algorithm that needs this much, if that is above `matrix_budget`."""
    budget = matrix_budget()
    if budget is None or needed_bytes <= budget:
        return None
    return OverBudget(
        f"needs {needed_bytes / _MIB:,.1f} MiB beside its operands, above the budget of {budget / _MIB:,.1f} MiB"
    )
