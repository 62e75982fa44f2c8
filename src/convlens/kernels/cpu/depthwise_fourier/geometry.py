"""Sizes of a depthwise convolution through Fourier transforms: lengths, tiles, and what a thread needs.

Channels are lanes, and each is convolved by itself, so one tile of 16 channels is transformed, multiplied by its
windows' spectra and transformed back before the next: nothing but results leaves the second-level cache.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache, lru_cache

from convlens.window import ConvProblem

__all__ = ["LENGTHS", "Axis", "Shape", "factors", "has_tiles", "operations", "shape_of"]

_PARTS = (4, 5, 6, 8, 9, 10, 12)
"""Lengths of transforms that 32 registers hold; a tile's length is a product of two."""
LENGTHS = tuple(sorted({a * b for a, b in itertools.product(_PARTS, _PARTS)}))
_SMALL = {2: 4, 3: 16, 4: 16, 5: 40}
"""Additions and multiplications of a complex transform so long."""


@cache
def operations(length: int) -> float:
    """Additions and multiplications of a complex transform, by mixed radices."""
    if length == 1:
        return 0.0
    radix = next(r for r in (4, 5, 3, 2) if length % r == 0)
    part = length // radix
    return radix * operations(part) + part * _SMALL[radix] + 4.0 * (part - 1) * (radix - 1)


@cache
def factors(length: int) -> tuple[int, int]:
    """The two lengths, a and b, that a transform is made of: ``b`` transforms of a, then ``a`` of b."""
    found = [(a, length // a) for a in _PARTS if length % a == 0 and length // a in _PARTS]
    return min(found, key=lambda ab: (ab[1] * operations(ab[0]) + ab[0] * operations(ab[1]), max(ab), ab))


@cache
def _line(length: int) -> float:
    """Operations on vectors of one complex line, loads and stores between its two steps counted half."""
    a, b = factors(length)
    return b * operations(a) + a * operations(b) + 4.0 * length + 4.0 * length


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: ``dest[o] = Σ_k source[o + first + k·dilation] · weight[k]``, in tiles of ``length`` places."""

    source: int
    dest: int
    first: int
    window: int
    dilation: int
    length: int

    @property
    def reach(self) -> int:
        """Places that one window spans."""
        return (self.window - 1) * self.dilation + 1

    @property
    def whole(self) -> bool:
        """Whether one tile holds everything.

        Zeros before and after the source may be the same ones, since a transform closes its line to a ring.
        """
        before, after = -self.first, self.dest + self.reach - 1 - self.source + self.first
        ring = self.source + max(before, after) if before >= 0 and after >= 0 else self.dest + self.reach - 1
        return self.length >= max(min(ring, self.dest + self.reach - 1), self.dest, self.reach)

    @property
    def step(self) -> int:
        """Outputs of a tile."""
        return self.dest if self.whole else self.length - self.reach + 1

    @property
    def tiles(self) -> int:
        """Tiles that cover the output."""
        return math.ceil(self.dest / self.step) if self.step > 0 else 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A forward convolution, or the input's gradient written as one (its taps ``turned``)."""

    rows: Axis
    columns: Axis
    channels: int
    channels_last: bool
    turned: bool
    bias: bool = False
    relu: bool = False

    @property
    def taps(self) -> int:
        """Weights of a channel."""
        return self.rows.window * self.columns.window

    @property
    def weight_dest(self) -> int:
        """Elements from one channel's weights to the next."""
        return self.taps

    @property
    def weight_source(self) -> int:
        """Elements from one source channel's weights to the next: a channel has but one."""
        return 0

    @property
    def dest_channels(self) -> int:
        """Channels of the result."""
        return self.channels

    @property
    def tiles(self) -> int:
        """Tiles of one plane."""
        return self.rows.tiles * self.columns.tiles

    @property
    def half(self) -> int:
        """Columns of a real tile's spectrum that are kept: the others are conjugates."""
        return self.columns.length // 2 + 1

    @property
    def height(self) -> int:
        """Rows of a tile, an even number since they are transformed in pairs."""
        return self.rows.length + self.rows.length % 2

    @property
    def pitch(self) -> int:
        """Vectors from one column of the middle to the next: an odd number, for the caches."""
        return 2 * self.height + 1

    @property
    def spectrum(self) -> int:
        """Vectors of one spectrum of windows."""
        return 2 * self.half * self.rows.length

    def vectors(self, lanes: int) -> int:
        """Vectors of channels."""
        return math.ceil(self.channels / lanes)

    def thread_vectors(self, lanes: int) -> int:
        """Vectors of one thread's buffers: a pair of rows, two lines, the middle, and windows as they lie."""
        longest = max(self.rows.length, self.columns.length)
        taps = math.ceil(self.taps / lanes) * lanes
        return 2 * self.columns.length + 2 * longest + 2 * (self.columns.length + 1) + self.middle + taps

    @property
    def middle(self) -> int:
        """Vectors of a tile between the transforms of its rows and of its columns."""
        return self.half * self.pitch

    def cost(self) -> float:
        """Operations on vectors for one plane, there and back."""
        rows, columns = self.rows.length, self.columns.length
        across = math.ceil(rows / 2) * (2 * _line(columns) + 16.0 * self.half)
        down = self.half * (2 * _line(rows) + 6.0 * rows)
        return self.tiles * (across + down + 4.0 * rows * columns)


def _lengths(axis: Axis) -> list[Axis]:
    """The axis in every length worth trying: none longer than the shortest that takes everything at once."""
    found = []
    for length in LENGTHS:
        tried = Axis(axis.source, axis.dest, axis.first, axis.window, axis.dilation, length)
        if tried.step > 0 and tried.length > tried.reach:
            found.append(tried)
            if tried.whole:
                break
    return found


def _axes(problem: ConvProblem) -> list[Axis]:
    backward = problem.direction == "input_grad"
    axes = []
    for n, o, k, p, d in zip(
        problem.input_size,
        problem.output_size,
        problem.kernel_size,
        problem.padding,
        problem.dilation,
        strict=True,
    ):
        reach = (k - 1) * d + 1
        axes.append(Axis(o, n, p[0] - (reach - 1), k, d, 0) if backward else Axis(n, o, -p[0], k, d, 0))
    return axes


def has_tiles(problem: ConvProblem) -> bool:
    """Whether some tile holds the window."""
    return all(_lengths(axis) for axis in _axes(problem))


@lru_cache(maxsize=2048)
def shape_of(problem: ConvProblem) -> Shape:
    """The problem in the tiles of least estimated cost; the batch does not count."""
    choices = [
        Shape(
            rows, columns, problem.groups, problem.layout == "channels_last", problem.direction == "input_grad",
            problem.epilogue.bias and problem.direction == "forward", problem.epilogue.activation == "relu",
        )
        for rows, columns in itertools.product(*map(_lengths, _axes(problem)))
    ]  # fmt: skip
    return min(choices, key=Shape.cost)
