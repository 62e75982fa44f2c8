"""Choosing between a fused block and the composition of its parts, measured as single kernels are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from convlens.planner import choose, settings
from convlens.planner.keys import bucketed, to_key
from convlens.planner.machine import context_key
from convlens.planner.store import Measurement, Store, default_store
from convlens.planner.timing import interleaved
from convlens.window import ConvProblem, PoolProblem

__all__ = ["COMPOSED", "COMPOSED_BY_VENDOR", "fastest_block"]

COMPOSED = "composed"
COMPOSED_BY_VENDOR = "composed by vendor"
"""The composition of the vendor's operators: never chosen, but known without compiling anything."""

_BEYOND_DOUBT = 1.5  # times as fast as the vendor's composition: no search for a better composition

Calls = Mapping[str, Callable[[], object]]
Problem = TypeVar("Problem", ConvProblem, PoolProblem)


def fastest_block(problem: Problem, calls: Callable[[Problem], Calls], *, store: Store | None = None) -> str:
    """Which way to compute a block or a pooling is the fastest; remembered on disk, and pinned like plans.

    Args:
        problem: ``forward`` alone; with its gradient, ``weight_grad`` (block) or ``input_grad`` (pooling).
        calls: the ways by name, `COMPOSED` among them, for a problem of this or a rounded batch size. Planning the
            parts of the composition costs seconds where `COMPOSED_BY_VENDOR` may settle it in milliseconds.
        store: where measurements are kept; default the file in the cache folder.
    """
    chosen = settings.current()
    # where the batch must not show in the bits, it must not show in the choice either
    one = chosen.batch_invariant and problem.direction == "forward"
    stands_for = replace(problem, batch=1) if one else bucketed(problem)
    key = to_key(stands_for)
    if (pinned := choose.pinned_block(key)) is not None:
        choose.note_block(key, pinned)
        return pinned
    if chosen.mode == "estimate":
        name = next(way for way in calls(stands_for) if way != COMPOSED)
    else:
        store = store or default_store()
        context = context_key(problem.device)
        known = store.measurements(context, key)
        if len(known) < 2 or known.keys().isdisjoint({COMPOSED, COMPOSED_BY_VENDOR}):
            with _disable_current_modes(), torch.autocast(problem.device, enabled=False):
                known = _measured(calls(stands_for))
            store.remember(context, key, known)
        name = min(known.keys() - {COMPOSED_BY_VENDOR}, key=lambda way: known[way].median_us)
    choose.note_block(key, name)
    return name


def _measured(calls: Calls) -> dict[str, Measurement]:
    quick = {name: call for name, call in calls.items() if name != COMPOSED}
    times = interleaved(quick, repeats=7, budget_s=0.1) if COMPOSED_BY_VENDOR in quick else {}
    vendor = times.pop(COMPOSED_BY_VENDOR, None)
    if vendor is not None and all(_BEYOND_DOUBT * time.median_us < vendor.median_us for time in times.values()):
        times[COMPOSED_BY_VENDOR] = vendor
    else:
        decisive = {name: call for name, call in calls.items() if name != COMPOSED_BY_VENDOR}
        times = interleaved(decisive, repeats=15, budget_s=0.4)
    return {name: Measurement(t.median_us, t.lower_us, t.upper_us, t.repeats, 1.0) for name, t in times.items()}
