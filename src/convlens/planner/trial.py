"""Trying a kernel on a problem: operands to run it on, its time, and its error against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from convlens.kernels import Kernel
from convlens.kernels.vendor import Vendor
from convlens.planner.store import Measurement
from convlens.planner.timing import Timing, interleaved
from convlens.window import ConvProblem

__all__ = ["Part", "error_ratios", "images_stand_alone", "measure", "operands_for"]

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_AFFORDABLE = 300_000_000  # multiply-adds that float64 computes in a tenth of a second
_JUDGED = 24  # places per axis, and at most as many more channels or groups, that an error is judged on
_FEW_ROUNDS = 5
_BLOCK_S = 0.003  # what a round measures of each kernel at least


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

    calls = {kernel.name: call(kernel) for kernel in kernels}
    with torch.no_grad():
        # a clear race is over after a few rounds
        times = interleaved(
            calls, repeats=_FEW_ROUNDS, budget_s=budget_s / 4, drop_above=drop_above, block_s=_BLOCK_S
        )
        if repeats > _FEW_ROUNDS and not _is_clear(times):
            times = interleaved(calls, repeats=repeats, budget_s=budget_s, drop_above=drop_above, block_s=_BLOCK_S)
        errors = error_ratios(kernels, problem, operands)
    return {
        name: Measurement(t.median_us, t.lower_us, t.upper_us, t.repeats, errors[name])
        for name, t in times.items()
    }


def _is_clear(times: Mapping[str, Timing]) -> bool:
    """Whether one call is faster than every other in three quarters of the rounds, and by a fifth."""
    best, *others = sorted(times.values(), key=lambda t: t.median_us)
    return all(t.lower_us > best.upper_us and t.median_us > 1.2 * best.median_us for t in others)


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


def error_ratios(
    kernels: Sequence[Kernel], problem: ConvProblem, operands: tuple[torch.Tensor | None, ...] | None = None
) -> dict[str, float]:
    """Root-mean-square error of each kernel against float64, over that of the vendor's float32.

    Kernels compute the whole problem, as they are compiled for it; the answer in float64 is that of a `Part`.
    1.0 by definition for the vendor and for element types that have no wider twin to compare with.
    """
    if problem.dtype != "float32" or problem.macs == 0:
        return {kernel.name: 1.0 for kernel in kernels}
    given = operands or operands_for(problem, seed=1)
    part = Part.of(problem)
    vendor = Vendor()
    few = part.operands(given)
    exact = part.result(vendor.run(replace(part.problem, dtype="float64"), *_wide(few))[0])
    scale = float(exact.square().mean().sqrt()) or 1.0

    def error(result: torch.Tensor) -> float:
        return math.sqrt(float((part.result(result).double() - exact).square().mean())) / scale

    # half an ulp is the least any float32 result can be off, so a lucky vendor sets no unfair bar
    bar = max(error(vendor.run(part.problem, *few)[0]), torch.finfo(torch.float32).eps / 4)
    return {
        kernel.name: 1.0 if kernel.name == Vendor.name else error(kernel.run(problem, *given)[0]) / bar
        for kernel in kernels
    }


def _wide(operands: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
    return [None if t is None else t.double() for t in operands]


@dataclass(frozen=True)
class Part:
    """A smaller problem whose results are some of the whole one's, from the first part of its operands.

    Attributes:
        problem: two images and the first places of each axis, or, as a weight gradient sums over those, the
            first channels; the first groups where there are many.
        places: how many places of each axis of the result are right: beyond, cut-off sources are missed.
    """

    problem: ConvProblem
    places: tuple[int, ...]

    @classmethod
    def of(cls, whole: ConvProblem) -> Part:
        """The part that costs little in float64."""
        small = whole
        if whole.direction != "weight_grad":
            small = replace(whole, batch=min(whole.batch, 2))
        if small.groups > 1 and small.macs > _AFFORDABLE // 8:
            groups = max(1, min(_JUDGED, _AFFORDABLE * small.groups // (8 * small.macs)))
            ins, outs = small.in_channels // small.groups, small.out_channels // small.groups
            small = replace(small, groups=groups, in_channels=groups * ins, out_channels=groups * outs)
        if small.groups == 1 and small.macs > _AFFORDABLE:
            ins, outs = min(small.in_channels, _JUDGED), min(small.out_channels, _JUDGED)
            kept = {"forward": (small.in_channels, outs), "input_grad": (ins, small.out_channels)}
            ins, outs = kept.get(small.direction, (ins, outs))
            small = replace(small, in_channels=ins, out_channels=outs)
        if small.direction == "weight_grad":
            return cls(small, small.kernel_size)
        places = small.output_size if small.direction == "forward" else small.input_size
        if small.macs <= _AFFORDABLE:
            return cls(small, places)
        sizes, padding, kept_places = [], [], []
        axes = zip(small.input_size, small.kernel_size, small.stride, small.padding, small.dilation, strict=True)
        for axis, (size, window, stride, pad, dilation) in enumerate(axes):
            cut = (_JUDGED - 1) * stride + dilation * (window - 1) + 1 - pad[0]
            right = _JUDGED if small.direction == "forward" else min(cut, _JUDGED * stride - pad[0])
            whole_axis = cut >= size or right < 1
            sizes.append(size if whole_axis else cut)
            padding.append(pad if whole_axis else (pad[0], 0))
            kept_places.append(places[axis] if whole_axis else right)
        return cls(replace(small, input_size=tuple(sizes), padding=tuple(padding)), tuple(kept_places))

    def operands(self, given: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        """The part's operands out of the whole problem's."""
        part = self.problem
        bias = (part.out_channels,)
        shapes = {
            "forward": (part.input_shape, part.weight_shape, bias),
            "input_grad": (part.output_shape, part.weight_shape),
            "weight_grad": (part.output_shape, part.input_shape),
        }[part.direction]
        return tuple(None if t is None else _first(t, shape) for t, shape in zip(given, shapes, strict=False))

    def result(self, whole: torch.Tensor) -> torch.Tensor:
        """What of a result, the whole problem's or the part's, is to be compared."""
        part = self.problem
        if part.direction == "weight_grad":
            return _first(whole, part.weight_shape)
        channels = part.out_channels if part.direction == "forward" else part.in_channels
        return _first(whole, (part.batch, channels, *self.places))


def _first(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for axis, count in enumerate(shape):
        values = values.narrow(axis, 0, count)
    return values
