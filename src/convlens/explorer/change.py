"""What a layer would answer with another window or other numbers in its kernel."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from convlens import ops
from convlens.errors import ArgumentError, ShapeError
from convlens.explain.layer_table import problem_of
from convlens.explain.pixel import Convolution
from convlens.window import ConvProblem

__all__ = ["Change", "changed", "size_formula"]

_LARGEST_KERNEL = 1 << 12


class Change(BaseModel):
    """What the page sends; what it leaves out stays as the layer has it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    channel: int = Field(ge=0)
    kernel_size: list[int] | None = None
    stride: list[int] | None = None
    padding: list[int] | None = None
    dilation: list[int] | None = None
    input_channel: int = Field(default=0, ge=0)
    kernel: list[float] | None = None
    """Numbers of one input channel's kernel, row by row, of the size asked for."""


def changed(asked: Change, numbers: Convolution, input: Tensor) -> tuple[Convolution, Tensor, ConvProblem]:
    """The layer's numbers after the change, one channel's map, and the whole layer's problem.

    Args:
        asked: the change.
        numbers: the layer as it is.
        input: its input, ``(1, channels, *size)``.

    Raises:
        ArgumentError: a window that does not fit, or numbers that fill no kernel.
    """
    axes = input.ndim - 2
    if asked.channel >= len(numbers.weight):
        raise ArgumentError("channel", f"0 to {len(numbers.weight) - 1}", asked.channel)
    size = _per_axis("kernel_size", asked.kernel_size, axes, 1) or tuple(numbers.weight.shape[2:])
    weight = _resized(numbers.weight, size)
    if asked.kernel is not None:
        if asked.input_channel >= weight.shape[1]:
            raise ArgumentError("input_channel", f"0 to {weight.shape[1] - 1}", asked.input_channel)
        if len(asked.kernel) != weight[0, 0].numel():
            raise ShapeError("kernel", f"{weight[0, 0].numel()} numbers", len(asked.kernel))
        weight[asked.channel, asked.input_channel] = torch.tensor(asked.kernel).view(size)
    padding = _per_axis("padding", asked.padding, axes, 0)
    after = replace(
        numbers,
        weight=weight,
        stride=_per_axis("stride", asked.stride, axes, 1) or numbers.stride,
        padding=numbers.padding if padding is None else tuple((pad, pad) for pad in padding),
        dilation=_per_axis("dilation", asked.dilation, axes, 1) or numbers.dilation,
    )
    problem = problem_of(after, input)
    return after, _one_map(after, input, asked.channel), problem


def _one_map(numbers: Convolution, input: Tensor, channel: int) -> Tensor:
    """One channel's map ``(*size)``; the other channels are not computed."""
    per_group = numbers.weight.shape[1]
    first = channel // (len(numbers.weight) // numbers.groups) * per_group
    conv = (ops.conv1d, ops.conv2d, ops.conv3d)[input.ndim - 3]
    bias = None if numbers.bias is None else numbers.bias[channel : channel + 1]
    # torch's own kernel: planning a new one would take longer than the answer
    found: Tensor = conv(
        input[:, first : first + per_group],
        numbers.weight[channel : channel + 1],
        bias,
        numbers.stride,
        numbers.padding,
        numbers.dilation,
        algorithm="vendor",
    )
    return found[0, 0]


def _per_axis(name: str, values: list[int] | None, axes: int, least: int) -> tuple[int, ...] | None:
    if values is None:
        return None
    if len(values) != axes or min(values) < least or max(values) > _LARGEST_KERNEL:
        raise ArgumentError(name, f"{axes} whole numbers from {least}", values)
    return tuple(values)


def _resized(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """A larger kernel has zeros around the old one, a smaller one is its middle; always a copy."""
    if weight[0].numel() // weight[0, 0].numel() * torch.Size(size).numel() > 1 << 22:
        raise ArgumentError("kernel_size", "a kernel of at most four million numbers", size)
    for axis, wanted in enumerate(size, start=2):
        extra = wanted - weight.shape[axis]
        before = abs(extra) // 2
        if extra < 0:
            weight = weight.narrow(axis, before, wanted)
        elif extra > 0:
            flat = [0] * (2 * (weight.ndim - 1 - axis)) + [before, extra - before]
            weight = torch.nn.functional.pad(weight, flat)
    return weight.clone()


def size_formula(problem: ConvProblem) -> list[str]:
    """The output size of each axis with its numbers put in (row B6)."""
    lines = []
    for axis, size in enumerate(problem.output_size):
        n, k = problem.input_size[axis], problem.kernel_size[axis]
        s, d, p = problem.stride[axis], problem.dilation[axis], sum(problem.padding[axis])
        lines.append(f"⌊({n} + {p} − {d}·({k}−1) − 1) / {s}⌋ + 1 = {size}")
    return lines
