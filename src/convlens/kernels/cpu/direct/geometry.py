"""What a direct convolution reads and writes: passes over dest places, blocks of sums in registers, bands."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

from convlens.window import ConvProblem

__all__ = ["AxisPass", "Block", "Pass", "Shape", "Source", "band_rows", "choose_block", "passes_of", "shape_of"]

_BAND_BYTES = 512 << 10
"""Packed source under a band: a quarter of the usual second-level cache, beside the weights."""
_MOST_ROWS = {32: {1: 24, 2: 14, 3: 9, 4: 6}, 16: {1: 12, 2: 6, 3: 4, 4: 3}}
"""Most places of a block by registers and vectors: its sums, one line of weights, a broadcast."""


@dataclass(frozen=True, slots=True)
class Source:
    """One axis of a packed source: ``size`` places of the tensor after ``before`` zeros, ``packed`` in all."""

    size: int
    before: int
    packed: int


@dataclass(frozen=True, slots=True)
class AxisPass:
    """Dest places ``dest + i * dest_step`` read packed places ``source + i * step + offset`` for each tap.

    ``taps`` are pairs of tap and offset.
    """

    count: int
    source: int
    step: int
    dest: int
    dest_step: int
    taps: tuple[tuple[int, int], ...]


Pass = tuple[AxisPass, AxisPass, AxisPass]


@dataclass(frozen=True, slots=True)
class Shape:
    """A forward convolution, or an input's gradient as several of stride 1, in three axes.

    Channels are those of one group; ``weight_dest`` and ``weight_source`` are the weight's strides in elements.
    """

    groups: int
    source_channels: int
    dest_channels: int
    source: tuple[Source, Source, Source]
    dest: tuple[int, int, int]
    passes: tuple[Pass, ...]
    window: tuple[int, int, int]
    weight_dest: int
    weight_source: int
    weight_group: int
    channels_last: bool
    bias: bool
    activation: str = "none"
    residual: bool = False
    from_planes: bool = False
    """Whether the source has its channels apart although the result has not."""

    @property
    def taps(self) -> int:
        """Weights per pair of channels."""
        return math.prod(self.window)

    @property
    def pitch(self) -> int:
        """Values of one packed place."""
        return self.groups * self.source_channels

    @property
    def packed_places(self) -> int:
        """Places of one packed image."""
        return math.prod(axis.packed for axis in self.source)

    @property
    def packs(self) -> bool:
        """Whether the source must be packed: it is otherwise read as it lies."""
        return (
            self.from_planes
            or not self.channels_last
            or any(axis.before or axis.packed != axis.size for axis in self.source)
        )

    @property
    def dest_places(self) -> int:
        """Places of one image of the result."""
        return math.prod(self.dest)

    def offset(self, place: tuple[int, int, int]) -> int:
        """Values from the packed origin to a place."""
        _, rows, columns = self.source
        return ((place[0] * rows.packed + place[1]) * columns.packed + place[2]) * self.pitch

    def tap_number(self, taps: tuple[int, int, int]) -> int:
        """Place of a tap in the weight."""
        return (taps[0] * self.window[1] + taps[1]) * self.window[2] + taps[2]


def _three(values: tuple[int, ...], fill: int) -> list[int]:
    return [fill] * (3 - len(values)) + list(values)


def _forward_axis(n: int, o: int, k: int, s: int, d: int, before: int) -> tuple[Source, list[AxisPass]]:
    span = (o - 1) * s + (k - 1) * d + 1
    taps = tuple((tap, tap * d) for tap in range(k))
    return Source(n, before, span), [AxisPass(o, 0, s, 0, 1, taps)]


def _backward_axis(n: int, o: int, k: int, s: int, d: int, before: int) -> tuple[Source, list[AxisPass]]:
    """Places of one phase (place plus padding, modulo the stride) meet the same taps."""
    first, back = before // s, (k - 1) * d // s
    groups = (before + n - 1) // s - first + 1
    found = []
    for phase in range(s):
        places = [t for t in range(groups) if 0 <= (t + first) * s + phase - before < n]
        taps = tuple((tap, back - tap * d // s) for tap in range(k) if tap * d % s == phase)
        if places:
            dest = (places[0] + first) * s + phase - before
            found.append(AxisPass(len(places), places[0], 1, dest, s, taps))
    return Source(o, back - first, groups + back), found


def passes_of(problem: ConvProblem) -> tuple[tuple[Source, Source, Source], tuple[Pass, ...]]:
    """The packed source and every pass over it; passes without taps give zeros."""
    make = _backward_axis if problem.direction == "input_grad" else _forward_axis
    values = (problem.input_size, problem.output_size, problem.kernel_size, problem.stride, problem.dilation)
    sizes = [_three(value, 1) for value in values]
    before = _three(tuple(pad[0] for pad in problem.padding), 0)
    axes = [make(*axis) for axis in zip(*sizes, before, strict=True)]
    passes = tuple(
        (depth, rows, columns) for depth, rows, columns in itertools.product(*(phases for _, phases in axes))
    )
    return (axes[0][0], axes[1][0], axes[2][0]), passes


@lru_cache(maxsize=1024)
def shape_of(problem: ConvProblem) -> Shape:
    """A problem's shape; that of a weight gradient packs the input as the forward pass does."""
    backward = problem.direction == "input_grad"
    source, passes = passes_of(problem)
    taps = math.prod(problem.kernel_size)
    ins, outs = problem.in_channels // problem.groups, problem.out_channels // problem.groups
    dest = _three(problem.input_size if backward else problem.output_size, 1)
    return Shape(
        groups=problem.groups,
        source_channels=outs if backward else ins,
        dest_channels=ins if backward else outs,
        source=source,
        dest=(dest[0], dest[1], dest[2]),
        passes=passes,
        window=tuple(_three(problem.kernel_size, 1)),  # type: ignore[arg-type]
        weight_dest=taps if backward else ins * taps,
        weight_source=ins * taps if backward else taps,
        weight_group=outs * ins * taps,
        channels_last=problem.layout == "channels_last" and problem.ndim > 1,
        bias=problem.epilogue.bias and problem.direction == "forward",
        activation=problem.epilogue.activation if problem.direction == "forward" else "none",
        residual=problem.epilogue.residual and problem.direction == "forward",
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Sums held in registers: ``rows`` × ``columns`` places × vectors of dest channels, of two widths.

    ``counts`` says how many blocks there are of either width in ``widths``; the wider ones come first.
    """

    widths: tuple[int, int]
    counts: tuple[int, int]
    places: tuple[tuple[int, int], tuple[int, int]]
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors of dest channels of a group."""
        return sum(w * c for w, c in zip(self.widths, self.counts, strict=True))

    @property
    def blocks(self) -> int:
        """Blocks of either width."""
        return sum(self.counts)


def _widths(vectors: int, widest: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Widths and counts of blocks of at most ``widest`` vectors, as equal as they can be."""
    count = math.ceil(vectors / widest)
    narrow = vectors // count
    wide = vectors - narrow * count
    return (narrow + 1, narrow), (wide, count - wide)


def _places(rows: int, columns: int, most: int) -> tuple[tuple[int, int], float]:
    """Rows and columns of a block of at most ``most`` places, and the blocks that cover all."""
    choices = []
    for across in range(1, min(columns, most) + 1):
        down = 1 if 2 * columns > most or across < columns else min(rows, most // columns)
        count = math.ceil(rows / down) * math.ceil(columns / across)
        choices.append((count * (down * across + 0.5), -across, (down, across), count))
    best = min(choices)
    return best[2], best[3]


@lru_cache(maxsize=4096)
def choose_block(channels: int, rows: int, columns: int, lanes: int, registers: int) -> Block:
    """The block of least estimated cycles for so many dest channels and places of a plane."""
    table = _MOST_ROWS[32 if registers >= 32 else 16]
    found = []
    for widest in (1, 2, 3, 4):
        widths, counts = _widths(math.ceil(channels / lanes), widest)
        places, cycles = [], 0.0
        for width, count in zip(widths, counts, strict=True):
            size, blocks = _places(rows, columns, table.get(width, 1) if count else 1)
            places.append(size)
            sums = size[0] * size[1]
            if count:
                cycles += count * blocks * (max(sums * width / 2, (sums + width) / 2, 4.0) + 0.25)
        found.append((cycles, Block(widths, counts, (places[0], places[1]), lanes)))
    return min(found, key=lambda choice: choice[0])[1]


def band_rows(shape: Shape, axes: Pass, least: int) -> int:
    """Dest rows of a band whose packed source stays in the second-level cache."""
    _, rows, columns = axes
    line = 4 * shape.source[2].packed * shape.pitch * len(axes[0].taps)
    reach = max((offset for _, offset in rows.taps), default=0)
    fitting = max(least, (_BAND_BYTES // line - reach) // rows.step)
    bands = math.ceil(rows.count / fitting)
    return max(least, math.ceil(rows.count / bands))
