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

__all__ = ["COMPOSED", "fastest_block"]

COMPOSED = "composed"

Calls = Mapping[str, Callable[[], object]]
Problem = TypeVar("Problem", ConvProblem, PoolProblem)


def fastest_block(problem: Problem, calls: Callable[[Problem], Calls], *, store: Store | None = None) -> str:
    """Which way to compute a block or a pooling is the fastest; remembered on disk, and pinned like plans.

    Args:
        problem: ``forward`` alone; with its gradient, ``weight_grad`` (block) or ``input_grad`` (pooling).
        calls: the ways by name, `COMPOSED` among them, for a problem of this or a rounded batch size.
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
        if COMPOSED not in known or len(known) < 2:
            with _disable_current_modes(), torch.autocast(problem.device, enabled=False):
                times = interleaved(calls(stands_for), repeats=15, budget_s=0.4)
            known = {n: Measurement(t.median_us, t.lower_us, t.upper_us, t.repeats, 1.0) for n, t in times.items()}
            store.remember(context, key, known)
        name = min(known, key=lambda way: known[way].median_us)
    choose.note_block(key, name)
    return name
