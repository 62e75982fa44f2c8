"""How many threads what is prepared now may use: all of torch's, or one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["is_alone", "one_thread"]

_limits = threading.local()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """What is prepared meanwhile, on this thread, runs without a team: small problems end before one has met."""
    before = is_alone()
    _limits.one = True
    try:
        yield
    finally:
        _limits.one = before


def is_alone() -> bool:
    """Whether this thread is within `one_thread`."""
    return getattr(_limits, "one", False)
