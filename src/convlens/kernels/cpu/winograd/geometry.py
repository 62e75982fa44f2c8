"""Sizes of a Winograd convolution: tiles of outputs, bands of tiles that stay in cache, blocks of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from convlens.kernels.cpu.winograd.points import Matrices, matrices
from convlens.window import ConvProblem

__all__ = ["Axis", "Cut", "Shape", "block_widths", "choose_cut", "most_rows", "shape_of"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: ``dest[o] = Σ_k source[o + first + k] · weight[k]``, ``step`` outputs per tile."""

    source: int
    dest: int
    first: int
    window: int
    step: int

    @property
    def points(self) -> int:
        """Products per tile along this axis, and the length of its piece of the source."""
        return self.step + self.window - 1

    @property
    def tiles(self) -> int:
        """Tiles that cover the output."""
        return math.ceil(self.dest / self.step)

    @property
    def matrices(self) -> Matrices:
        """The transforms."""
        return matrices(self.step, self.window)

    def piece(self, tiles: int) -> int:
        """Source places under so many neighbouring tiles."""
        return tiles * self.step + self.window - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """A forward convolution, or the input's gradient written as one.

    ``weight_source`` and ``weight_dest`` are the strides of the weight in elements; ``turned`` says that its
    taps run backwards.
    """

    rows: Axis
    columns: Axis
    source_channels: int
    dest_channels: int
    channels_last: bool
    weight_source: int
    weight_dest: int
    turned: bool
    bias: bool = False
    activation: str = "none"
    residual: bool = False

    @property
    def points(self) -> int:
        """Products per tile."""
        return self.rows.points * self.columns.points

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return self.rows.tiles * self.columns.tiles

    @property
    def taps(self) -> int:
        """Weights per pair of channels."""
        return self.rows.window * self.columns.window


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is cut: bands of tiles, blocks of output channels.

    Attributes:
        images: images of a band; above 1 only where a band holds whole images.
        rows: tile rows of a band.
        columns: tile columns of a band.
        vectors: vectors of output channels in a block of products, in the first blocks and in the later ones.
        blocks: how many blocks of either width.
        block_rows: tiles in a block of products of either width.
        by_points: products run over all blocks of output channels at each point (source pieces beyond the
            second-level cache), rather than over all points for each block.
        lanes: elements of a vector.
    """

    images: int
    rows: int
    columns: int
    vectors: tuple[int, int]
    blocks: tuple[int, int]
    block_rows: tuple[int, int]
    by_points: bool
    lanes: int

    @property
    def tiles(self) -> int:
        """Most tiles of a band."""
        return self.images * self.rows * self.columns

    @property
    def kept_tiles(self) -> int:
        """Tiles that buffers have room for: whole blocks of products."""
        return max(math.ceil(self.tiles / rows) * rows for rows in self.block_rows)

    @property
    def dest_vectors(self) -> int:
        """Vectors of output channels."""
        return sum(v * b for v, b in zip(self.vectors, self.blocks, strict=True))

    def source_vectors(self, shape: Shape) -> int:
        """Vectors of input channels."""
        return math.ceil(shape.source_channels / self.lanes)

    def pieces_step(self, shape: Shape) -> int:
        """Elements from one point's transformed pieces to the next: an odd number of lines, for the caches."""
        lines = self.kept_tiles * self.source_vectors(shape)
        return (lines + 1 - lines % 2) * self.lanes

    def products_step(self, vectors: int) -> int:
        """Elements from one point's products to the next, in a block of so many vectors."""
        lines = self.kept_tiles * vectors
        return (lines + 1 - lines % 2) * self.lanes

    def plane_columns(self, shape: Shape) -> int:
        """Columns of the packed source, and of the results before they are turned: whole vectors."""
        return math.ceil(shape.columns.piece(self.columns) / self.lanes) * self.lanes

    def packed_values(self, shape: Shape) -> int:
        """Elements of the packed source of one vector of channels, or of its results."""
        rows = self.images * shape.rows.piece(self.rows)
        return rows * self.plane_columns(shape) * self.lanes

    def pieces_values(self, shape: Shape) -> int:
        """Elements of a band's transformed pieces."""
        return shape.points * self.pieces_step(shape)

    def products_values(self, shape: Shape) -> int:
        """Elements of a band's products that are kept at once."""
        used = [self.products_step(v) * (b if self.by_points else 1) for v, b in self._used()]
        return shape.points * (sum(used) if self.by_points else max(used))

    def _used(self) -> list[tuple[int, int]]:
        return [(v, b) for v, b in zip(self.vectors, self.blocks, strict=True) if b]

    def thread_values(self, shape: Shape) -> int:
        """Elements of one thread's buffers."""
        return self.packed_values(shape) + self.pieces_values(shape) + self.products_values(shape)

    def weight_values(self, shape: Shape) -> int:
        """Elements of the transformed weights."""
        return shape.points * shape.source_channels * self.dest_vectors * self.lanes

    def items(self, shape: Shape, batch: int) -> int:
        """Bands of a batch."""
        across = math.ceil(shape.columns.tiles / self.columns)
        return math.ceil(batch / self.images) * math.ceil(shape.rows.tiles / self.rows) * across


def shape_of(problem: ConvProblem, steps: tuple[int, ...]) -> Shape:
    """The problem as tiles of ``steps`` outputs per axis."""
    axes = []
    for n, o, k, p, m in zip(
        problem.input_size, problem.output_size, problem.kernel_size, problem.padding, steps, strict=True
    ):
        axes.append(
            Axis(o, n, p[0] - (k - 1), k, m) if problem.direction == "input_grad" else Axis(n, o, -p[0], k, m)
        )
    if len(axes) == 1:
        axes.insert(0, Axis(1, 1, 0, 1, 1))
    taps = math.prod(problem.kernel_size)
    backward = problem.direction == "input_grad"
    across, along = problem.in_channels * taps, taps
    return Shape(
        rows=axes[0],
        columns=axes[1],
        source_channels=problem.out_channels if backward else problem.in_channels,
        dest_channels=problem.in_channels if backward else problem.out_channels,
        channels_last=problem.layout == "channels_last" and problem.ndim > 1,
        weight_source=across if backward else along,
        weight_dest=along if backward else across,
        turned=backward,
        bias=problem.epilogue.bias and not backward,
        activation=problem.epilogue.activation,
        residual=problem.epilogue.residual and problem.direction == "forward",
    )


_MOST_ROWS = {32: {1: 24, 2: 14, 3: 9, 4: 6}, 16: {1: 12, 2: 6, 3: 4, 4: 3}}
"""Most tiles of a block of products by registers and vectors: accumulators, one line of weights, a broadcast."""


def most_rows(registers: int, vectors: int) -> int:
    """Most rows of a block of so many vectors, all of it in registers."""
    return _MOST_ROWS[32 if registers >= 32 else 16].get(vectors, 1)


def block_widths(vectors: int, widest: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Widths and counts of blocks of at most ``widest`` vectors, as equal as they can be."""
    count = math.ceil(vectors / widest)
    narrow = vectors // count
    wide = vectors - narrow * count
    return (narrow + 1, narrow), (wide, count - wide)


def _fitting_rows(most: int, tiles: int) -> int:
    """Rows of a block that waste least of a band, the largest of them."""
    choices = range(max(1, most - most // 3), most + 1)
    return min(choices, key=lambda rows: (math.ceil(tiles / rows) * (rows + 0.5), -rows))


def _bands(shape: Shape, batch: int) -> list[tuple[int, int, int]]:
    """Images, tile rows and tile columns of bands worth trying."""

    def parts(count: int) -> list[int]:
        return sorted({math.ceil(count / n) for n in range(1, count + 1)})

    bands = [(i, shape.rows.tiles, shape.columns.tiles) for i in parts(max(batch, 1))[:16]]
    bands += [(1, r, shape.columns.tiles) for r in parts(shape.rows.tiles)]
    bands += [(1, 1, c) for c in parts(shape.columns.tiles)]
    return [band for band in dict.fromkeys(bands) if math.prod(band) <= 1024] or [(1, 1, 1)]


@lru_cache(maxsize=1024)
def choose_cut(shape: Shape, batch: int, threads: int, lanes: int, registers: int, l2_bytes: int) -> Cut:
    """The cut whose estimated time is least."""
    cuts = []
    dest = math.ceil(shape.dest_channels / lanes)
    for band in _bands(shape, batch):
        tiles = math.prod(band)
        for widest in (2, 3, 4):
            vectors, blocks = block_widths(dest, widest)
            rows = tuple(_fitting_rows(most_rows(registers, v), tiles) for v in vectors)
            for by_points in (False, True):
                cuts.append(Cut(*band, vectors, blocks, (rows[0], rows[1]), by_points, lanes))
    return min(cuts, key=lambda cut: _cycles(shape, cut, batch, threads, l2_bytes))


def _cycles(shape: Shape, cut: Cut, batch: int, threads: int, l2_bytes: int) -> float:
    """Rough cycles of a batch on one thread: arithmetic, and lines from beyond the second-level cache."""
    items = math.ceil(cut.items(shape, batch) / threads)
    source, points = cut.source_vectors(shape), shape.points
    products = 0.0
    for vectors, blocks, rows in zip(cut.vectors, cut.blocks, cut.block_rows, strict=True):
        if blocks:
            step = max(rows * vectors / 2, (rows + vectors) / 2, 4.0) + 0.25
            products += blocks * math.ceil(cut.tiles / rows) * (shape.source_channels * step + 2 * rows * vectors)
    arithmetic = points * products + cut.tiles * points * (source + cut.dest_vectors) * 3.0
    pieces, weights = 4 * cut.pieces_values(shape), 4 * cut.weight_values(shape)
    results = 4 * cut.products_values(shape)
    room = 0.75 * l2_bytes
    moved = 0.0
    if not (weights + pieces + results < room):
        moved += weights
    if cut.by_points:
        moved += 3 * (pieces + results) if pieces + results > room else 0
    elif pieces + results > room:
        moved += pieces * (2 + sum(cut.blocks))
    return items * (arithmetic + moved / 9 + 3000)
