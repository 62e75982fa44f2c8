"""``cpu.depthwise``: what it takes and refuses, and the calls of its compiled loops."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from convlens.kernels.contract import Kernel, NativeCall, Prepared
from convlens.kernels.cpu.depthwise.geometry import Shape
from convlens.kernels.cpu.epilogue import ACTIVATIONS
from convlens.kernels.cpu.memory import empty, workspace
from convlens.window import ConvProblem

__all__ = ["Depthwise"]

_STREAMED_FROM = 8 << 20  # bytes of a result that no cache near a core holds until it is read
_STREAMED_TAPS = 32  # more, and memory has time enough while the products are summed
_LINE = 64
_WIDEST = 15  # taps along a row that channels-last code is written out for
_WIDEST_STRIDED = 64  # … and that strided code is
_FURTHEST = 8  # strides along a row that the phases of a strip are written out for


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
        if _channels_last(problem) and problem.out_channels != problem.groups:
            return f"needs one output per channel in channels_last, got {problem.out_channels // problem.groups}"
        if _channels_last(problem) and problem.kernel_size[-1] > _WIDEST:
            return f"needs a kernel at most {_WIDEST} wide in channels_last, got {problem.kernel_size[-1]}"
        if problem.stride[-1] > _FURTHEST:
            return f"needs a stride of at most {_FURTHEST} along rows, got {problem.stride[-1]}"
        if problem.stride[-1] > 1 and problem.kernel_size[-1] > _WIDEST_STRIDED:
            return f"needs a kernel at most {_WIDEST_STRIDED} wide at a stride, got {problem.kernel_size[-1]}"
        if min(problem.output_size) < 1:
            return "needs an output"
        if problem.epilogue.pool:
            return "needs no pooling"
        if problem.epilogue.activation not in ACTIVATIONS:
            return f"needs one of the activations {', '.join(ACTIVATIONS)}, got {problem.epilogue.activation}"
        if problem.epilogue.residual:
            return "adds no residual"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """A strip of padded rows and a block of sums for each thread, and the sums of eight shares of images."""
        taps = math.prod(problem.kernel_size)
        height, width = (1, *problem.input_size)[-2:]
        wide = width + sum(problem.padding[-1]) + taps + 128
        deep = math.prod(problem.input_size[:-2]) * (problem.out_channels // problem.groups)
        reach = (problem.kernel_size + (1,))[-2] * (problem.dilation + (1,))[-2] + 12 * max(problem.stride)
        strip = deep * min(wide * height, wide * reach + (1 << 20)) + 16 * taps + (1 << 17)
        return 4 * (torch.get_num_threads() * strip + 18 * problem.out_channels * (taps + 1))

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        if _channels_last(problem):
            return _in_channels_last(problem, *operands)
        if problem.direction == "forward":
            return (_forward(problem, *operands),)  # type: ignore[arg-type]
        if problem.direction == "input_grad":
            return (_input_grad(problem, *operands),)  # type: ignore[arg-type]
        return _weight_grad(problem, *operands)  # type: ignore[arg-type]

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: in channels_last the taps are turned once."""
        if problem.macs == 0:
            return None
        return (
            _prepared_places(problem, weight, bias)
            if _channels_last(problem)
            else _prepared_planes(problem, weight, bias)
        )


def _prepared_places(problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared:
    from convlens.kernels.cpu.codegen import compiled, threads
    from convlens.kernels.cpu.depthwise import channels

    shape = Shape.forward(problem)
    places = compiled("cpu.depthwise.channels", channels.build, shape=shape, backward=False).places
    turned = weight.reshape(shape.channels, shape.taps).t().contiguous()
    arguments = (0, turned.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, problem.batch, threads())
    return NativeCall(places, arguments, 0, 3, (turned, bias)).prepared()


def _prepared_planes(problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared:
    from convlens.kernels.cpu.codegen import compiled, current, threads
    from convlens.kernels.cpu.depthwise import rows

    shape, weight = Shape.forward(problem), weight.contiguous()
    planes = compiled("cpu.depthwise.rows", rows.build, shape=shape, streamed=False).planes
    team = threads()
    work = workspace("cpu.depthwise", team * rows.strip_for(shape, current()).size)
    arguments = (
        0, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, work.data_ptr(), problem.batch, team,
    )  # fmt: skip
    return NativeCall(planes, arguments, 0, 3, (weight, bias, work)).prepared()


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

    result = empty(out_shape)
    buffer = (
        rows.stream_size(shape, current())
        if shape.taps <= _STREAMED_TAPS and result.nbytes > _STREAMED_FROM
        else 0
    )
    streamed = buffer > 0 and result.data_ptr() % _LINE == 0
    kernel = compiled("cpu.depthwise.rows", rows.build, shape=shape, streamed=streamed)
    work = torch.empty(threads() * (rows.strip_for(shape, current()).size + buffer))
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


def _channels_last(problem: ConvProblem) -> bool:
    return problem.layout == "channels_last" and problem.ndim > 1


def _in_channels_last(problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    from convlens.kernels.cpu.codegen import compiled, threads
    from convlens.kernels.cpu.depthwise import channels, channels_weight

    shape = Shape.forward(problem)
    source, second = operands[0], operands[1]
    assert source is not None and second is not None  # noqa: S101 - only a bias may be absent
    if problem.direction == "weight_grad":
        shape = replace(shape, bias=False, activation="none")
        kernel = compiled("cpu.depthwise.channels_weight", channels_weight.build, shape=shape)
        sums = torch.empty(shape.taps, shape.channels)
        partial = torch.empty(channels_weight.partial_size(shape))
        addresses = (source.data_ptr(), second.data_ptr(), sums.data_ptr(), partial.data_ptr())
        kernel.sums(*addresses, problem.batch, threads())
        grad_weight = sums.t().contiguous().view(problem.weight_shape)
        if not problem.epilogue.bias:
            return (grad_weight,)
        return grad_weight, source.sum([0, *range(2, source.dim())])
    backward = problem.direction == "input_grad"
    if backward:
        shape = replace(shape, bias=False, activation="none")
    kernel = compiled("cpu.depthwise.channels", channels.build, shape=shape, backward=backward)
    weight = second.view(shape.channels, shape.taps).t().contiguous()
    bias = operands[2].data_ptr() if shape.bias and operands[2] is not None else 0
    result = empty(problem.input_shape if backward else problem.output_shape, channels_last=True)
    kernel.places(source.data_ptr(), weight.data_ptr(), bias, result.data_ptr(), problem.batch, threads())
    return (result,)
