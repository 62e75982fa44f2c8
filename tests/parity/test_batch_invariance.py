"""An image gives the same bits alone and in any batch: where a kernel promises it, else on request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from convlens import ops, planner
from convlens.kernels import Kernel, all_kernels
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem

BATCH = 5
PROBLEMS = {
    "first": ConvProblem("forward", BATCH, 3, (20, 20), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "dense": ConvProblem("forward", BATCH, 32, (14, 14), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "strided": ConvProblem("forward", BATCH, 16, (15, 15), 32, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    "depthwise": ConvProblem("forward", BATCH, 32, (16, 16), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 32),
    "large depthwise": ConvProblem(
        "forward", BATCH, 20, (17, 16), 20, (11, 11), (1, 1), ((5, 5), (5, 5)), (1, 1), 20
    ),
    "pointwise": ConvProblem("forward", BATCH, 32, (14, 14), 64, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
}
KERNELS = {kernel.name: kernel for kernel in all_kernels()}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    planner.set_batch_invariant(False)


def taken(kernel: Kernel) -> list[ConvProblem]:
    """Every problem and direction that the kernel computes, alone and in the batch."""
    every = [p.towards(way) for p in PROBLEMS.values() for way in ("forward", "input_grad")]
    return [p for p in every if kernel.refusal(p) is None and kernel.refusal(replace(p, batch=1)) is None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if kernel.batch_invariant])
def test_a_kernel_keeps_its_promise(name, threads):
    kernel = KERNELS[name]
    torch.set_num_threads(threads)
    problems = taken(kernel)
    if not problems:
        pytest.skip(f"{name} computes nothing on this machine: {kernel.refusal(PROBLEMS['dense'])}")
    for problem in problems:
        images, second, *rest = operands_for(problem)
        together = kernel.run(problem, images, second, *rest)[0]
        alone = [kernel.run(replace(problem, batch=1), image[None], second, *rest)[0] for image in images]
        assert torch.equal(together, torch.cat(alone)), problem


@pytest.mark.parametrize("name", ["auto", *KERNELS])
def test_on_request_every_algorithm_gives_an_image_the_same_bits(name):
    planner.set_batch_invariant(True)
    for problem in PROBLEMS.values() if name == "auto" else taken(KERNELS[name]):
        first, second, *_ = operands_for(problem)
        window = {"stride": problem.stride, "padding": problem.padding, "groups": problem.groups}
        conv = ops.conv2d if problem.direction == "forward" else ops.conv_transpose2d
        together = conv(first, second, algorithm=name, **window)
        for place in (0, BATCH - 1):
            assert torch.equal(
                together[place : place + 1], conv(first[place][None], second, algorithm=name, **window)
            )
