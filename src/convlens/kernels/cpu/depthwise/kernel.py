"""``cpu.depthwise``: what it takes and refuses, and the calls of its compiled loops."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from convlens.kernels.contract import Kernel
from convlens.kernels.cpu.depthwise.geometry import Shape
from convlens.kernels.cpu.memory import empty
from convlens.window import ConvProblem

__all__ = ["Depthwise"]


class Depthwise(Kernel):
    """Every channel by itself, with any channel multiplier, kernel size, stride and dilation, 1-D to 3-D."""

    name = "cpu.depthwise"
    algorithm = "direct"
    precision = "exact"
    batch_invariant = True
    efficiency = 0.5

    def refusal(self, problem: ConvProblem) -> str | None:
        """See `Kernel`."""
        if problem.device != "cpu":
            return f"needs the cpu, got {problem.device}"
        if problem.dtype != "float32":
            return f"needs float32, got {problem.dtype}"
        if problem.groups != problem.in_channels or problem.groups == 1:
            return f"needs one input channel per group, got {problem.in_channels // problem.groups}"
        if problem.ndim > 3:
            return f"needs 1 to 3 axes, got {problem.ndim}"
        if problem.layout != "contiguous" and problem.ndim > 1:
            return "needs the contiguous layout"
        if min(problem.output_size) < 1:
            return "needs an output"
        if problem.epilogue.pool:
            return "needs no pooling"
        if problem.epilogue.activation not in ("none", "relu"):
            return f"needs no activation or relu, got {problem.epilogue.activation}"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """A strip of padded rows and a block of sums for each thread, and the sums of eight shares of images."""
        taps = math.prod(problem.kernel_size)
        height, width = (1, *problem.input_size)[-2:]
        wide = width + sum(problem.padding[-1]) + taps + 128
        deep = math.prod(problem.input_size[:-2]) * (problem.out_channels // problem.groups)
        reach = (problem.kernel_size + (1,))[-2] * (problem.dilation + (1,))[-2] + 12 * max(problem.stride)
        strip = deep * min(wide * height, wide * reach + (1 << 20)) + 16 * taps + (1 << 17)
        return 4 * (torch.get_num_threads() * strip + 8 * problem.out_channels * (taps + 1))

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        if problem.direction == "forward":
            return (_forward(problem, *operands),)  # type: ignore[arg-type]
        if problem.direction == "input_grad":
            return (_input_grad(problem, *operands),)  # type: ignore[arg-type]
        return _weight_grad(problem, *operands)  # type: ignore[arg-type]


def _forward(
    problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return _planes(problem, Shape.forward(problem), input, weight, bias, problem.output_shape)


def _input_grad(problem: ConvProblem, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from convlens.kernels.cpu.codegen import compiled, current, threads
    from convlens.kernels.cpu.depthwise import spread

    if max(problem.stride) == 1:
        return _planes(problem, Shape.input_grad(problem), grad, weight, None, problem.input_shape)
    shape = replace(Shape.forward(problem), bias=False, activation="none")
    kernel = compiled("cpu.depthwise.spread", spread.build, shape=shape)
    work = torch.empty(threads() * spread.strip_for(shape, current().l2_bytes).size)
    result = empty(problem.input_shape)
    addresses = (grad.data_ptr(), weight.data_ptr(), result.data_ptr(), work.data_ptr())
    kernel.planes(*addresses, problem.batch, threads())
    return result


def _planes(
    problem: ConvProblem,
    shape: Shape,
    source: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out_shape: tuple[int, ...],
) -> torch.Tensor:
    from convlens.kernels.cpu.codegen import compiled, current, threads
    from convlens.kernels.cpu.depthwise import rows

    kernel = compiled("cpu.depthwise.rows", rows.build, shape=shape)
    work = torch.empty(threads() * rows.strip_for(shape, current()).size)
    result = empty(out_shape)
    addresses = (source.data_ptr(), weight.data_ptr(), bias.data_ptr() if bias is not None else 0)
    kernel.planes(*addresses, result.data_ptr(), work.data_ptr(), problem.batch, threads())
    return result


def _weight_grad(problem: ConvProblem, grad: torch.Tensor, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
    from convlens.kernels.cpu.codegen import compiled, current, threads
    from convlens.kernels.cpu.depthwise import weight

    shape = replace(Shape.forward(problem), activation="none")
    kernel = compiled("cpu.depthwise.weight", weight.build, shape=shape)
    layout = weight.layout_for(shape, current())
    private = threads() * layout.private
    work = torch.empty(private + layout.partial)
    results = [torch.empty(problem.weight_shape)]
    if problem.epilogue.bias:
        results.append(torch.empty(problem.out_channels))
    kernel.sums(
        grad.data_ptr(),
        input.data_ptr(),
        results[0].data_ptr(),
        results[-1].data_ptr(),
        work.data_ptr() + 4 * private,
        work.data_ptr(),
        problem.batch,
        threads(),
    )
    return tuple(results)
