"""Sizes of a pooling with planes (or channels) as lanes: bands of rows, margins, taps by phase."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convlens.window import PoolProblem

__all__ = ["Axis", "Shape"]

_BAND_BYTES = 96 << 10
"""Most of a packed band: twice the usual first-level cache, a small part of the second level."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a pooling."""

    size: int
    out: int
    window: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def reach(self) -> int:
        """Places that one window spans."""
        return (self.window - 1) * self.dilation + 1

    @property
    def span(self) -> int:
        """Places under all windows, from the first place of padding on."""
        return (self.out - 1) * self.stride + self.reach

    @property
    def first_group(self) -> int:
        """Group (place // stride, padding counted) of the first place of the input."""
        return self.before // self.stride

    @property
    def groups(self) -> int:
        """Groups of ``stride`` places that hold the input."""
        return (self.before + self.size - 1) // self.stride - self.first_group + 1

    @property
    def back(self) -> int:
        """Windows that begin before a place's own group and still reach it, at most."""
        return (self.reach - 1) // self.stride

    def taps(self, phase: int) -> list[tuple[int, int]]:
        """Taps that meet places of a phase, the last one first, with the groups that they reach back."""
        found = [k for k in range(self.window) if k * self.dilation % self.stride == phase]
        return [(k, k * self.dilation // self.stride) for k in reversed(found)]

    def counts(self, include_pad: bool) -> list[int]:
        """Places that each window averages over, as torch counts them."""
        counted = []
        for o in range(self.out):
            start = o * self.stride - self.before
            end = min(start + self.window, self.size + self.after)
            counted.append(end - start if include_pad else min(end, self.size) - max(start, 0))
        return counted


@dataclass(frozen=True, slots=True)
class Shape:
    """A pooling of up to three axes; missing ones have one place.

    Lanes are neighbouring planes of a contiguous tensor (of all images alike) or channels of one image.
    """

    axes: tuple[Axis, Axis, Axis]
    largest: bool
    channels: int
    channels_last: bool
    include_pad: bool
    divisor: int

    @classmethod
    def of(cls, problem: PoolProblem) -> Shape:
        """From a problem; how many channels there are matters to channels-last ones only."""
        axes = [
            Axis(n, o, k, s, d, *p)
            for n, o, k, s, d, p in zip(
                problem.input_size, problem.output_size, problem.kernel_size, problem.stride, problem.dilation,
                problem.padding, strict=True,
            )
        ]  # fmt: skip
        axes = [Axis(1, 1, 1, 1, 1, 0, 0)] * (3 - len(axes)) + axes
        last = problem.layout == "channels_last" and len(problem.input_size) > 1
        return cls(
            (axes[0], axes[1], axes[2]), problem.kind == "max", problem.channels if last else 0, last,
            problem.count_include_pad, problem.divisor,
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """Places under one window."""
        return math.prod(axis.window for axis in self.axes)

    @property
    def places(self) -> int:
        """Places of one plane of the input."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def results(self) -> int:
        """Places of one plane of the output."""
        return math.prod(axis.out for axis in self.axes)

    def groups(self, lanes: int) -> int:
        """Groups of lanes of one image in channels-last order."""
        return math.ceil(self.channels / lanes)

    def choice_line(self) -> int:
        """Windows of a row of choices: those of the output, and others that the backward pass may look at."""
        columns = self.axes[2]
        return max(columns.out, columns.groups + columns.first_group) + columns.back

    def forward_rows(self, lanes: int) -> int:
        """Output rows of a band."""
        depth, rows, columns = self.axes
        line = 4 * lanes * columns.span * depth.window
        fitting = (_BAND_BYTES // line - rows.reach) // rows.stride + 1
        bands = math.ceil(rows.out / max(1, fitting))
        return math.ceil(rows.out / bands)

    def backward_groups(self, lanes: int) -> int:
        """Row groups of a band of the input."""
        _, rows, columns = self.axes
        line = 4 * lanes * (columns.size * rows.stride + self.choice_line())
        bands = math.ceil(rows.groups / max(1, _BAND_BYTES // line - rows.back))
        return math.ceil(rows.groups / bands)
