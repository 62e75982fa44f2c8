"""Sizes of packed bands and register tiles for the direct kernels of few input channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from convlens.window import ConvProblem

__all__ = ["Band", "Dense", "Shape", "Tile", "best_tile", "ceil_div", "choose_bands", "round_up"]

_UNALIGNED = 1.9  # cost of a vector load that mostly crosses a cache line, in aligned loads


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """``a`` up to a multiple of ``b``."""
    return ceil_div(a, b) * b


@dataclass(frozen=True, slots=True)
class Shape:
    """A 1-D or 2-D problem with every number by its own name; 1-D has one row."""

    in_channels: int
    out_channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_y: int
    stride_x: int
    dilation_y: int
    dilation_x: int
    pad_top: int
    pad_left: int
    channels_last: bool

    @classmethod
    def of(cls, problem: ConvProblem) -> Shape:
        """From a problem with one or two spatial axes."""
        flat = problem.ndim == 1
        (height, width) = (1, *problem.input_size) if flat else problem.input_size
        (out_height, out_width) = (1, *problem.output_size) if flat else problem.output_size
        (kernel_height, kernel_width) = (1, *problem.kernel_size) if flat else problem.kernel_size
        (stride_y, stride_x) = (1, *problem.stride) if flat else problem.stride
        (dilation_y, dilation_x) = (1, *problem.dilation) if flat else problem.dilation
        pad_top = 0 if flat else problem.padding[0][0]
        return cls(
            problem.in_channels, problem.out_channels, height, width, out_height, out_width, kernel_height,
            kernel_width, stride_y, stride_x, dilation_y, dilation_x, pad_top, problem.padding[-1][0],
            problem.layout == "channels_last" and not flat,
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """Weights of one output channel."""
        return self.in_channels * self.kernel_height * self.kernel_width

    @property
    def reach_y(self) -> int:
        """Rows that one window spans."""
        return (self.kernel_height - 1) * self.dilation_y + 1

    @property
    def reach_x(self) -> int:
        """Columns that one window spans."""
        return (self.kernel_width - 1) * self.dilation_x + 1


@dataclass(frozen=True, slots=True)
class Dense:
    """``relu(x @ weight.T + bias)`` or without the ReLU; the weight is ``[outputs][inputs]``."""

    inputs: int
    outputs: int
    bias: bool
    relu: bool


@dataclass(frozen=True, slots=True)
class Band:
    """A packed band of rows: ``[channel][row][phase][column]``, zeros where the padding is.

    Column ``q`` of phase ``p`` holds padded column ``q * phases + p``, so that every tap of a strided
    window reads consecutive values.
    """

    channels: int
    rows: int
    phases: int
    pitch: int

    @property
    def row_values(self) -> int:
        """Values from one row to the next."""
        return self.phases * self.pitch

    @property
    def channel_values(self) -> int:
        """Values from one channel to the next."""
        return self.rows * self.row_values

    @property
    def values(self) -> int:
        """Values of the whole band."""
        return self.channels * self.channel_values

    def column(self, padded: int) -> int:
        """Offset of a padded column inside its row."""
        return padded % self.phases * self.pitch + padded // self.phases


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of accumulators: ``outs`` channels × ``rows`` × ``vectors`` along a row (× column phases).

    ``reuse_rows``: every needed source row is loaded once for all vertical taps, else once per tap.
    """

    outs: int
    rows: int
    vectors: int
    reuse_rows: bool


def best_tile(
    outs: int,
    rows: int,
    width: int,
    lanes: int,
    registers: int,
    taps_y: int,
    row_of: Callable[[int, int], int],
    rounds: int,
    phases: int = 1,
    row_unit: int = 1,
    vector_unit: int = 1,
    most_rows: int = 12,
    load_cost: float = _UNALIGNED,
) -> Tile:
    """The tile of the least estimated cycles for ``outs`` × ``rows`` × ``width`` results.

    Args:
        outs: result channels.
        rows: fewest result rows of any band.
        width: result columns (per column phase).
        lanes: values in a vector.
        registers: vector registers.
        taps_y: vertical taps.
        row_of: ``row_of(r, a)``: source row, relative to the tile, of result row ``r`` and vertical tap ``a``.
        rounds: horizontal taps × source channels.
        phases: column phases that one tile holds, each with its own share of the taps.
        row_unit: rows that must stay together, such as the two of a pooling window.
        vector_unit: vectors that must stay together.
        most_rows: rows of a tile at most.
        load_cost: of a vector, in aligned loads.
    """
    vectors_per_row = ceil_div(width, lanes)
    best: tuple[float, Tile] | None = None
    for o, r, v in itertools.product(_up_to(outs, 16), _up_to(rows, most_rows), _up_to(vectors_per_row, 8)):
        sums = o * r * v * phases
        if r % row_unit or v % vector_unit or sums > registers - 4 or (v * lanes > width and v != vectors_per_row):
            continue
        count = ceil_div(outs, o) * ceil_div(rows, r) * ceil_div(width, v * lanes)
        needed = len({row_of(i, a) for i in range(r) for a in range(taps_y)})
        for reuse in (True, False):
            live = (needed if reuse else r) * v
            if sums + live + 1 > registers:
                continue
            loads = ((needed if reuse else r * taps_y) * v * load_cost + taps_y * o) / 2
            multiplies = taps_y * max(o * r * v / 2, 4.0 / phases)  # four cycles until a sum can be added to again
            inner = max(loads, multiplies) + 0.15 * min(loads, multiplies) + 0.5
            cycles = count * (rounds * inner + sums * _store_cycles(r, v))
            if best is None or cycles < best[0]:
                best = (cycles, Tile(o, r, v, reuse))
    if best is None:
        return Tile(1, row_unit, vector_unit, False)
    return best[1]


def _store_cycles(rows: int, vectors: int) -> float:
    """Cycles per stored vector, fitted on 100 MB results: many short streams of writes are slow."""
    return 4 + min(14.0, (3 + 4 * rows) / vectors)


def _up_to(size: int, most: int) -> Iterator[int]:
    return iter(range(1, min(size, most) + 1))


def choose_bands(rows: int, batch: int, most_rows: int, least_rows: int, threads: int) -> int:
    """How many bands to cut ``rows`` into: none larger than ``most_rows``, enough items for every thread."""
    bands = ceil_div(rows, max(1, most_rows))
    while batch * bands < 6 * threads and rows // (bands * 2) >= max(least_rows, 4):
        bands *= 2
    while bands > 1 and rows // bands < least_rows:
        bands -= 1
    return bands


def unrolled_width(kernel_width: int, phases: int, dilation: int, cost: int, limit: int = 320) -> int:
    """How many horizontal taps to unroll: all of them, or fewer whose phases repeat."""
    if kernel_width * cost <= limit:
        return kernel_width
    step = phases // math.gcd(phases, dilation)
    return min(kernel_width, max(step, limit // cost // step * step))
