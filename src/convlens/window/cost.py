"""What a layer costs: weights, multiply-adds, operations, bytes (rows A1-A3, B9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convlens.errors import ShapeError

__all__ = ["Cost", "conv_cost", "dense_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one input; costs add up."""

    weights: int
    """Numbers to learn, biases included."""
    macs: int
    """Multiply-adds."""

    @property
    def flops(self) -> int:
        """Two operations a multiply-add."""
        return 2 * self.macs

    def weight_bytes(self, itemsize: int = 4) -> int:
        """Memory of the weights; ``itemsize`` 4 for float32, 2 for float16."""
        return self.weights * itemsize

    def seconds(self, macs_per_second: float, samples: int = 1) -> float:
        """Time of ``samples`` inputs on a machine of so many multiply-adds a second."""
        return self.macs * samples / macs_per_second

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.weights + other.weights, self.macs + other.macs)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.weights * times, self.macs * times)


def dense_cost(inputs: int, outputs: int, bias: bool = True) -> Cost:
    """A dense layer: ``(inputs + 1) * outputs`` weights."""
    return Cost((inputs + int(bias)) * outputs, inputs * outputs)


def conv_cost(
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    *,
    groups: int = 1,
    bias: bool = True,
) -> Cost:
    """A convolution: ``O(c_i * c_o * k_h * k_w * m_h * m_w)`` (row B9).

    Raises:
        ShapeError: channels that the groups do not divide.
    """
    if in_channels % groups or out_channels % groups:
        raise ShapeError("groups", f"a divisor of {in_channels} and {out_channels} channels", groups)
    kernels = in_channels // groups * out_channels * math.prod(kernel_size)
    return Cost(kernels + (out_channels if bias else 0), kernels * math.prod(output_size))
