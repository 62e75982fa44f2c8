"""Timing whole ways of working in blocks: several calls of one, then of the next, so that each is in its stride.

Engines with threads of their own keep those spinning for a while after a call, and caches hold what ran last:
calls taken strictly in turn would charge one engine for another's habits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

__all__ = ["rounds_of"]

_BLOCK_S = 0.02
_PAUSE_S = 0.01  # between blocks, so that threads left spinning go to sleep


def rounds_of(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 15, budget_s: float = 4.0, minimum: int = 3
) -> dict[str, list[float]]:
    """Microseconds of a call of each, one number a round; the i-th numbers were taken side by side.

    In a round each way has a block: one call that does not count, then as many as fill 20 ms (at least one).

    Args:
        calls: what to time, by name; each is called three times beforehand.
        repeats: rounds at most.
        budget_s: no round is begun after so many seconds, once ``minimum`` are done.
        minimum: rounds that are always done.
    """
    counts = {}
    for name, call in calls.items():
        call()
        call()
        start = time.perf_counter()
        call()
        counts[name] = max(1, math.ceil(_BLOCK_S / max(1e-6, time.perf_counter() - start)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for number in range(repeats):
        if number >= minimum and time.perf_counter() - begun > budget_s:
            break
        for name, call in calls.items():
            time.sleep(_PAUSE_S)
            call()
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            taken[name].append((time.perf_counter() - start) / counts[name] * 1e6)
    return taken
