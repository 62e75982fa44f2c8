"""What to say when torch has turned a call away: our own checks say it in numbers, torch's words follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from convlens.errors import ConvlensError, DtypeError

__all__ = ["explained", "raise_explained"]

Checked = TypeVar("Checked")


def raise_explained(error: Exception, check: Callable[[], object]) -> NoReturn:
    """Raise our reason for torch's ``error``, or the error itself where we know no better.

    Args:
        error: what torch raised.
        check: runs every check of the arguments, and raises what is wrong with them.
    """
    explained(error, check)
    words = _first_line(error)
    if isinstance(error, NotImplementedError) or "not implemented for" in words:
        raise DtypeError(
            "input", "an element type that torch computes here", f"({words})", "input.float()"
        ) from error
    raise error


def explained(error: Exception, check: Callable[[], Checked]) -> Checked:
    """Raise our reason for torch's ``error``; what ``check`` returns where it finds none. Arguments as above."""
    try:
        return check()
    except ConvlensError as ours:
        # torch's words too, for code that looks for them
        ours.args = (f"{ours} (torch: {_first_line(error)})",)
        raise ours from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
