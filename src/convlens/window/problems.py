"""The problems that kernels solve: frozen records, the key of every plan and of every compiled kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["ConvProblem", "Direction", "Epilogue", "Layout", "PoolProblem", "windows_that_fit"]

Direction = Literal["forward", "input_grad", "weight_grad"]
Layout = Literal["contiguous", "channels_last"]

_ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16,
    "int8": 1, "uint8": 1, "int32": 4, "int64": 8, "int16": 2, "complex32": 4,
}  # fmt: skip


def windows_that_fit(size: int, window: int, stride: int, dilation: int, padding: tuple[int, int]) -> int:
    """Output length of one axis: ``floor((size + before + after - dilation*(window-1) - 1) / stride) + 1``."""
    return (size + sum(padding) - dilation * (window - 1) - 1) // stride + 1


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What a kernel does to each output value before it is stored.

    ``pool`` is the window of a max pooling with the same stride (0 = none). With ``residual`` the result is
    added to what the destination holds. The order is bias, residual, activation, pool.
    """

    bias: bool = False
    activation: str = "none"
    pool: int = 0
    residual: bool = False


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """One convolution to compute: the key of every plan and of every compiled kernel.

    Sizes are those of the *forward* convolution whatever the direction, so a transposed convolution is
    the ``input_grad`` of the problem it transposes. Padding is zeros, per axis ``(before, after)``,
    never negative. ``layout`` is that of the activations (input and output alike); the weight is always
    contiguous ``(out_channels, in_channels // groups, *kernel_size)``.
    """

    direction: Direction
    batch: int
    in_channels: int
    input_size: tuple[int, ...]
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    dtype: str = "float32"
    layout: Layout = "contiguous"
    device: str = "cpu"
    epilogue: Epilogue = field(default_factory=Epilogue)
    prepared: bool = False
    """Whether the weights stay the same for many calls, so that a kernel may lay them out once for all."""

    @property
    def ndim(self) -> int:
        """Number of spatial axes (1, 2 or 3)."""
        return len(self.input_size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of the forward output."""
        return tuple(
            windows_that_fit(n, k, s, d, p)
            for n, k, s, d, p in zip(
                self.input_size, self.kernel_size, self.stride, self.dilation, self.padding, strict=True
            )
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(batch, in_channels, *input_size)``."""
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``(out_channels, in_channels // groups, *kernel_size)``."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(batch, out_channels, *output_size)`` of the forward convolution, before any pooling."""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def macs(self) -> int:
        """Multiply-adds of the definition (rows B9): the same in all three directions."""
        taps = self.in_channels // self.groups * math.prod(self.kernel_size)
        return self.batch * self.out_channels * math.prod(self.output_size) * taps

    @property
    def flops(self) -> int:
        """Two operations per multiply-add."""
        return 2 * self.macs

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of input, weight and output, each touched once: the floor of memory traffic."""
        shapes = (self.input_shape, self.weight_shape, self.output_shape)
        return self.itemsize * sum(math.prod(shape) for shape in shapes)

    def towards(self, direction: Direction) -> ConvProblem:
        """The same convolution, computed in another direction."""
        return replace(self, direction=direction)


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """One pooling to compute. ``kind`` is ``"max"`` or ``"avg"``; padding as in `ConvProblem`."""

    direction: Literal["forward", "input_grad"]
    kind: Literal["max", "avg"]
    batch: int
    channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_size: tuple[int, ...]
    count_include_pad: bool = True
    divisor: int = 0
    dtype: str = "float32"
    layout: Layout = "contiguous"
    device: str = "cpu"

    def towards(self, direction: Literal["forward", "input_grad"]) -> PoolProblem:
        """The same pooling, computed in another direction."""
        return replace(self, direction=direction)
