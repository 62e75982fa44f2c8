"""Shapes that depthwise kernels are compiled for: every problem as a 3-D one, without its batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from convlens.window import ConvProblem

__all__ = ["Shape", "Triple"]

Triple = tuple[int, int, int]
"""Depth, height, width; axes that a problem lacks have size 1."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One depthwise convolution as loops run it: ``outs`` planes from ``sources`` planes for each channel.

    Forward has one source and as many outs as the channel multiplier; the input gradient the reverse.

    Attributes:
        channels: independent channels (the groups of the problem).
        sources: planes summed over, of each channel.
        outs: planes written, of each channel.
        in_size: size of a source plane.
        out_size: size of an out plane.
        kernel: taps along each axis.
        stride: places moved in the source for one place in the out plane.
        pad: zeros before each axis; negative leaves places out.
        dilation: distance of neighbouring taps.
        flip: the weight is read backwards.
        bias: a number for each out plane is added.
        activation: one of `epilogue.ACTIVATIONS`, applied last.
    """

    channels: int
    sources: int
    outs: int
    in_size: Triple
    out_size: Triple
    kernel: Triple
    stride: Triple
    pad: Triple
    dilation: Triple
    flip: bool = False
    bias: bool = False
    activation: str = "none"

    @property
    def taps(self) -> int:
        """Weights of one source and out plane."""
        return math.prod(self.kernel)

    @classmethod
    @cache
    def forward(cls, problem: ConvProblem) -> Shape:
        """The forward convolution of a problem."""
        return cls(
            channels=problem.groups,
            sources=1,
            outs=problem.out_channels // problem.groups,
            in_size=_triple(problem.input_size, 1),
            out_size=_triple(problem.output_size, 1),
            kernel=_triple(problem.kernel_size, 1),
            stride=_triple(problem.stride, 1),
            pad=_triple(tuple(before for before, _ in problem.padding), 0),
            dilation=_triple(problem.dilation, 1),
            bias=problem.epilogue.bias,
            activation=problem.epilogue.activation,
        )

    @classmethod
    @cache
    def input_grad(cls, problem: ConvProblem) -> Shape:
        """Its input gradient at stride 1: the forward convolution of the gradient with the flipped kernel."""
        forward = cls.forward(problem)
        pads = (d * (k - 1) - p for d, k, p in zip(forward.dilation, forward.kernel, forward.pad, strict=True))
        return replace(
            forward,
            sources=forward.outs,
            outs=1,
            in_size=forward.out_size,
            out_size=forward.in_size,
            pad=_triple(tuple(pads), 0),
            flip=True,
            bias=False,
            activation="none",
        )


def _triple(sizes: tuple[int, ...], missing: int) -> Triple:
    depth, height, width = (missing,) * (3 - len(sizes)) + tuple(sizes)
    return depth, height, width
