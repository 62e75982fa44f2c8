"""Timing that can be believed on a shared machine: interleaved, warmed up, median and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Timing", "interleaved", "samples"]

# Longer than the thread pools of onnxruntime, OpenVINO and OpenMP wait actively for more work.
_SETTLE_S = 0.03
_LONG_US = 20_000.0  # calls that outlast whatever the one before them left behind


@dataclass(frozen=True, slots=True)
class Timing:
    """Quartiles of ``repeats`` timed calls, in microseconds."""

    median_us: float
    lower_us: float
    upper_us: float
    repeats: int

    @classmethod
    def of(cls, samples_us: list[float]) -> Timing:
        """Summarise raw samples."""
        if len(samples_us) == 1:
            return cls(samples_us[0], samples_us[0], samples_us[0], 1)
        lower, middle, upper = statistics.quantiles(samples_us, n=4, method="inclusive")
        return cls(middle, lower, upper, len(samples_us))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 30,
    budget_s: float = 5.0,
    minimum: int = 3,
    drop_above: float | None = None,
    block_s: float = 0.0,
) -> dict[str, Timing]:
    """Time several calls in turn, A B C A B C …, so that a slow moment of the machine hits all alike.

    Args:
        calls: what to time, by name; each is called beforehand to warm up.
        repeats: timed rounds at most.
        budget_s: stop starting rounds after this many seconds, once ``minimum`` rounds are done.
        minimum: rounds that are always done.
        drop_above: after the warm-up, leave out calls slower than this multiple of the fastest;
            they are reported with that one sample.
        block_s: with more than 0, a round has a block of each: one call that does not count, then the mean of
            as many as fill this time. Engines with threads of their own keep those spinning for a while after
            a call, and caches hold what ran last: single calls in turn would charge one for another's habits.
    """
    rounds = samples(
        calls, repeats=repeats, budget_s=budget_s, minimum=minimum, drop_above=drop_above, block_s=block_s
    )
    return {name: Timing.of(times) for name, times in rounds.items()}


def samples(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 30,
    budget_s: float = 5.0,
    minimum: int = 3,
    drop_above: float | None = None,
    apart: Collection[str] = (),
    block_s: float = 0.0,
) -> dict[str, list[float]]:
    """The raw times of `interleaved` in microseconds; the i-th samples of two calls were taken side by side.

    Calls named in ``apart`` run on threads of their own, which spin for a while after each call and would
    take the cores from whoever comes next: they come last in each round, each with a pause before and after it.
    """
    in_order = sorted(calls, key=lambda name: name in apart)
    warm = {name: _timed(calls[name]) for name in in_order}
    running = dict(calls)
    if (drop_above is not None or block_s > 0) and warm:
        # the warm-up holds compilation and page faults, so a second look decides
        if apart:
            time.sleep(_SETTLE_S)
        warm = {name: min(warm[name], _timed(calls[name])) for name in in_order}
    if drop_above is not None and warm:
        limit = drop_above * min(warm.values())
        running = {name: call for name, call in calls.items() if warm[name] <= limit}
    taken: dict[str, list[float]] = {name: [] for name in running}
    guests = [name for name in running if name in apart]
    shared = [name for name in running if name not in apart]
    start = time.perf_counter()
    for round_number in range(repeats):
        if round_number >= minimum and time.perf_counter() - start > budget_s:
            break
        for name in shared:
            call, about = running[name], warm[name]
            taken[name].append(_block(call, about, block_s) if block_s > 0 else _timed(call))
        for name in guests:
            time.sleep(_SETTLE_S)
            running[name]()
            taken[name].append(_timed(running[name]))
        if guests and shared:
            time.sleep(_SETTLE_S)
            # the first call after a pause finds its threads asleep, and would bear that alone
            running[shared[0]]()
    return {name: taken.get(name) or [warm[name]] for name in calls}


def _block(call: Callable[[], object], about_us: float, block_s: float) -> float:
    """Mean of the calls of one block, after one that does not count where they are short."""
    count = max(1, round(block_s * 1e6 / max(about_us, 1.0)))
    if about_us < _LONG_US:
        call()

    def all_of_them() -> None:
        for _ in range(count):
            call()

    return _timed(all_of_them) / count


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6
