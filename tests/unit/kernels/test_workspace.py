"""No kernel, compiled ones included, allocates beyond its stated workspace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from convlens.kernels import all_kernels
from convlens.kernels.cpu import memory
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem, Epilogue

PROBLEMS = {
    "first": ConvProblem("forward", 4, 3, (33, 34), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "dense": ConvProblem("forward", 3, 48, (14, 14), 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "last": ConvProblem(
        "forward", 3, 48, (14, 14), 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), layout="channels_last"
    ),
    "strided": ConvProblem("forward", 3, 16, (15, 15), 40, (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1)),
    "depthwise": ConvProblem("forward", 3, 40, (17, 18), 40, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 40),
    "large depthwise": ConvProblem("forward", 3, 20, (27, 25), 20, (11, 11), (1, 1), ((5, 5), (5, 5)), (1, 1), 20),
    "pointwise": ConvProblem("forward", 3, 48, (14, 14), 64, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    "line": ConvProblem("forward", 4, 8, (200,), 16, (31,), (1,), ((15, 15),), (1,)),
}
KERNELS = {kernel.name: kernel for kernel in all_kernels() if not kernel.name.startswith("plain.")}


def held_bytes(call, monkeypatch):
    """Memory that a call asks for: the most that torch's allocator held, and every large block of our own."""
    blocks = []
    take = memory.pool.take
    monkeypatch.setattr(memory.pool, "take", lambda size: (blocks.append(size), take(size))[1])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        results = call()
    monkeypatch.undo()
    held = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most + sum(blocks) - sum(r.numel() * r.element_size() for r in results)


def test_blocks_of_our_own_are_seen(monkeypatch):
    ones = torch.ones(1 << 20)
    assert held_bytes(lambda: (torch.add(memory.empty((1 << 20,)), ones),), monkeypatch) == 4 << 20


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_allocates_beyond_its_stated_workspace(name, threads, monkeypatch):
    kernel, before = KERNELS[name], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for problem in PROBLEMS.values():
            for direction in ("forward", "input_grad", "weight_grad"):
                asked = replace(problem, direction=direction, epilogue=Epilogue(bias=direction != "input_grad"))
                if kernel.refusal(asked) is not None:
                    continue
                operands = [None if t is None else t.clone() for t in operands_for(asked)]
                kernel.run(asked, *operands)  # compiled and measured once
                used = held_bytes(lambda p=asked, o=operands: kernel.run(p, *o), monkeypatch)
                assert used <= kernel.workspace_bytes(asked), (asked, used, kernel.workspace_bytes(asked))
    finally:
        torch.set_num_threads(before)
