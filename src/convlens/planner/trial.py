"""Trying a kernel on a problem: operands to run it on, its time, and its error against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from convlens.kernels import Kernel
from convlens.kernels.vendor import Vendor
from convlens.planner.store import Measurement
from convlens.planner.timing import interleaved
from convlens.window import ConvProblem

__all__ = ["error_ratios", "images_stand_alone", "measure", "operands_for", "reduced"]

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_AFFORDABLE = 2_000_000_000  # multiply-adds that float64 computes in a fraction of a second
_ERROR_OUTPUTS = 24  # outputs per axis that an error is judged on: enough for any tile of ours


def operands_for(problem: ConvProblem, seed: int = 0) -> tuple[torch.Tensor | None, ...]:
    """Random operands of ``problem``, in the order and layout that kernels take."""
    dtype = getattr(torch, problem.dtype)
    generator = torch.Generator(device=problem.device).manual_seed(seed)

    def draw(shape: Sequence[int], activation: bool) -> torch.Tensor:
        kind = dtype if dtype.is_floating_point or dtype.is_complex else torch.float32
        drawn = torch.randn(tuple(shape), dtype=kind, device=problem.device, generator=generator).to(dtype)
        if activation and problem.layout == "channels_last" and problem.ndim in _CHANNELS_LAST:
            drawn = drawn.contiguous(memory_format=_CHANNELS_LAST[problem.ndim])
        return drawn

    if problem.direction == "forward":
        bias = draw((problem.out_channels,), False) if problem.epilogue.bias else None
        return draw(problem.input_shape, True), draw(problem.weight_shape, False), bias
    if problem.direction == "input_grad":
        return draw(problem.output_shape, True), draw(problem.weight_shape, False)
    return draw(problem.output_shape, True), draw(problem.input_shape, True)


def measure(
    problem: ConvProblem,
    kernels: Sequence[Kernel],
    *,
    repeats: int = 15,
    budget_s: float = 0.4,
    drop_above: float | None = 1.5,
) -> dict[str, Measurement]:
    """Time ``kernels`` on ``problem`` in turn, and measure each one's error.

    Every kernel must have accepted the problem.
    """
    operands = operands_for(problem)

    def call(kernel: Kernel) -> Callable[[], object]:
        return lambda: kernel.run(problem, *operands)

    with torch.no_grad():
        times = interleaved(
            {kernel.name: call(kernel) for kernel in kernels},
            repeats=repeats,
            budget_s=budget_s,
            drop_above=drop_above,
        )
        errors = error_ratios(kernels, problem)
    return {
        name: Measurement(t.median_us, t.lower_us, t.upper_us, t.repeats, errors[name])
        for name, t in times.items()
    }


def images_stand_alone(kernel: Kernel, problem: ConvProblem) -> bool:
    """Whether every image of the batch gets the very bits that it gets alone, seen on random operands.

    The order in which a kernel sums depends on sizes, never on values. Where it differed, some of the thousands
    of random sums would be rounded differently.
    """
    activations, *rest = operands_for(problem, seed=2)
    if activations is None:
        return False
    one = replace(problem, batch=1)
    with torch.inference_mode():
        together = kernel.run(problem, activations, *rest)[0]
        return all(
            torch.equal(kernel.run(one, image.unsqueeze(0), *rest)[0][0], result)
            for image, result in zip(activations, together, strict=True)
        )


def reduced(problem: ConvProblem) -> ConvProblem:
    """A problem with the same sums that costs little in float64: two images, and fewer places of a huge one.

    Kernels compile their sizes in but not, as a rule, the batch, so that the judged problem mostly needs no
    second compilation. The weight gradient sums over places and images: only channels are dropped there.
    """
    if problem.direction == "weight_grad":
        if problem.groups > 1 or problem.macs <= _AFFORDABLE:
            return problem
        return replace(
            problem, in_channels=min(problem.in_channels, 16), out_channels=min(problem.out_channels, 16)
        )
    small = replace(problem, batch=min(problem.batch, 2))
    if small.macs <= _AFFORDABLE and problem.groups == 1:
        return small
    sizes = []
    for size, window, stride, dilation in zip(
        problem.input_size, problem.kernel_size, problem.stride, problem.dilation, strict=True
    ):
        sizes.append(min(size, dilation * (window - 1) + 1 + _ERROR_OUTPUTS * stride))
    return replace(small, input_size=tuple(sizes))


def error_ratios(kernels: Sequence[Kernel], problem: ConvProblem) -> dict[str, float]:
    """Root-mean-square error of each kernel against float64, over that of the vendor's float32.

    1.0 by definition for the vendor and for element types that have no wider twin to compare with.
    """
    if problem.dtype != "float32" or problem.macs == 0:
        return {kernel.name: 1.0 for kernel in kernels}
    judges: dict[ConvProblem, _Judge] = {}
    ratios = {}
    for kernel in kernels:
        if kernel.name == Vendor.name:
            ratios[kernel.name] = 1.0
            continue
        small = reduced(problem)
        judged = small if kernel.refusal(small) is None else problem
        if judged not in judges:
            judges[judged] = _Judge(judged)
        ratios[kernel.name] = judges[judged].ratio(kernel)
    return ratios


class _Judge:
    """Operands, the float64 answer and the vendor's error of one problem, shared by the kernels judged on it."""

    def __init__(self, problem: ConvProblem) -> None:
        vendor = Vendor()
        self._problem = problem
        self._operands = operands_for(problem, seed=1)
        wide = [None if t is None else t.double() for t in self._operands]
        self._exact = vendor.run(replace(problem, dtype="float64"), *wide)[0]
        self._scale = float(self._exact.square().mean().sqrt()) or 1.0
        # half an ulp is the least any float32 result can be off, so a lucky vendor sets no unfair bar
        floor = torch.finfo(torch.float32).eps / 4
        self._bar = max(self._error(vendor), floor)

    def ratio(self, kernel: Kernel) -> float:
        return self._error(kernel) / self._bar

    def _error(self, kernel: Kernel) -> float:
        result = kernel.run(self._problem, *self._operands)[0]
        return math.sqrt(float((result.double() - self._exact).square().mean())) / self._scale
