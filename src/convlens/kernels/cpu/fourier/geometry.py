"""Sizes of a convolution through Fourier transforms: tiles, chunks of tiles, blocks of products."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

from convlens.kernels.cpu.direct.geometry import choose_block
from convlens.kernels.cpu.fourier.transform import LENGTHS, Transform
from convlens.window import ConvProblem

__all__ = ["Axis", "Cut", "Shape", "chunk_lines", "choose_cut", "has_tiles", "reaches", "shape_of"]

_LONGEST_SIDE = 32  # of a tile in two dimensions: its scratch stays near the first-level cache
_CHUNK_BYTES = (4 << 20, 32 << 20)  # of a chunk's points: as many as the weights', which every chunk reads again
_LEAST_CHUNK_TILES = 12


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: ``dest[o] = Σ_k source[o + first + k·dilation] · weight[k]``, tiles of ``length`` places."""

    source: int
    dest: int
    first: int
    window: int
    length: int
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Places that one window spans."""
        return (self.window - 1) * self.dilation + 1

    @property
    def step(self) -> int:
        """Outputs of a tile."""
        return self.length - self.reach + 1

    @property
    def tiles(self) -> int:
        """Tiles that cover the output."""
        return math.ceil(self.dest / self.step)

    @property
    def packed(self) -> int:
        """Source places under all tiles."""
        return (self.tiles - 1) * self.step + self.length


@dataclass(frozen=True, slots=True)
class Shape:
    """A forward convolution, or the input's gradient written as one (its taps ``turned``)."""

    rows: Axis
    columns: Axis
    source_channels: int
    dest_channels: int
    channels_last: bool
    weight_source: int
    weight_dest: int
    turned: bool
    bias: bool = False
    relu: bool = False

    @property
    def transform(self) -> Transform:
        """Of one tile."""
        return Transform(self.rows.length, self.columns.length)

    @property
    def points(self) -> int:
        """Products per tile and pair of channels."""
        return self.transform.points

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return self.rows.tiles * self.columns.tiles

    @property
    def taps(self) -> int:
        """Weights per pair of channels."""
        return self.rows.window * self.columns.window

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of the window."""
        return self.rows.window, self.columns.window

    @property
    def spacing(self) -> tuple[int, int]:
        """Places between the rows and the columns of the window."""
        return self.rows.dilation, self.columns.dilation

    @property
    def step(self) -> tuple[int, int]:
        """Rows and columns of outputs of a tile."""
        return self.rows.step, self.columns.step

    @property
    def scale(self) -> float:
        """What a transform there and back multiplies by, inverted."""
        return 1.0 / (self.rows.length * self.columns.length)


def _lengths(reach: int, dest: int) -> tuple[int, ...]:
    if reach == 1:
        return (1,)
    fitting = [n for n in LENGTHS if n >= reach + 2]
    # no longer than the shortest that covers the output with one tile
    return tuple(n for i, n in enumerate(fitting) if i == 0 or fitting[i - 1] - reach + 1 < dest)


def reaches(problem: ConvProblem) -> list[int]:
    """Places that one window spans along each axis."""
    return [(k - 1) * d + 1 for k, d in zip(problem.kernel_size, problem.dilation, strict=True)]


@lru_cache(maxsize=2048)
def shape_of(problem: ConvProblem) -> Shape:
    """The problem in the tiles of least estimated cost; the batch counts as in the problem."""
    backward = problem.direction == "input_grad"
    choices = []
    sizes = list(
        zip(
            problem.input_size, problem.output_size, problem.kernel_size, problem.padding, problem.dilation,
            reaches(problem), strict=True,
        )
    )  # fmt: skip
    for lengths in itertools.product(*(_lengths(reach, n if backward else o) for n, o, _, _, _, reach in sizes)):
        axes = [
            Axis(o, n, p[0] - (reach - 1), k, t, d) if backward else Axis(n, o, -p[0], k, t, d)
            for (n, o, k, p, d, reach), t in zip(sizes, lengths, strict=True)
        ]
        if _fits(lengths):
            choices.append(_shape(problem, [Axis(1, 1, 0, 1, 1)] * (2 - len(axes)) + axes))
    if not choices:
        raise ValueError("a window that no tile holds")  # refused before
    return min(choices, key=lambda shape: cost(shape, problem.batch))


def has_tiles(problem: ConvProblem) -> bool:
    """Whether some tile holds the window."""
    least = [_lengths(reach, 1) for reach in reaches(problem)]
    return all(least) and _fits(tuple(lengths[0] for lengths in least))


def _fits(lengths: tuple[int, ...]) -> bool:
    return max(lengths) <= _LONGEST_SIDE or min(lengths) == 1 or len(lengths) == 1


def _shape(problem: ConvProblem, axes: list[Axis]) -> Shape:
    backward = problem.direction == "input_grad"
    taps = math.prod(problem.kernel_size)
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
        bias=problem.epilogue.bias and problem.direction == "forward",
        relu=problem.epilogue.activation == "relu",
    )


def cost(shape: Shape, batch: int) -> float:
    """Operations, with what is written and read at every point counted as what it takes in their time."""
    tiles = batch * shape.tiles
    pairs = shape.source_channels * shape.dest_channels
    moved = tiles * (shape.source_channels + shape.dest_channels) + pairs
    return shape.points * (2.0 * tiles * pairs + 45.0 * moved)


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is cut.

    Attributes:
        lines: lines of tiles (all tiles of one tile row of an image) of a chunk.
        widths: vectors of dest channels of a block of products, of two kinds.
        counts: how many blocks there are of either.
        block_rows: tiles of a block of either.
        lanes: elements of a vector.
    """

    lines: int
    widths: tuple[int, int]
    counts: tuple[int, int]
    block_rows: tuple[int, int]
    lanes: int

    @property
    def dest_vectors(self) -> int:
        """Vectors of dest channels."""
        return sum(w * c for w, c in zip(self.widths, self.counts, strict=True))

    def source_vectors(self, shape: Shape) -> int:
        """Vectors of source channels."""
        return math.ceil(shape.source_channels / self.lanes)

    def kept_tiles(self, shape: Shape) -> int:
        """Tiles that a chunk's buffers hold: whole blocks of products."""
        tiles = self.lines * shape.columns.tiles
        rows = [r for r, c in zip(self.block_rows, self.counts, strict=True) if c]
        return max(math.ceil(tiles / r) * r for r in rows)

    def step(self, lines: int) -> int:
        """Elements from one point to the next, of so many vectors: an odd number, for the caches."""
        return (lines + 1 - lines % 2) * self.lanes

    def pieces_step(self, shape: Shape) -> int:
        """Elements from one point's pieces to the next."""
        return self.step(self.kept_tiles(shape) * self.source_vectors(shape))

    def sums_step(self, shape: Shape) -> int:
        """Elements from one point's sums to the next."""
        return self.step(self.kept_tiles(shape) * self.dest_vectors)

    def panel_step(self, shape: Shape) -> int:
        """Elements from one point's weights to the next."""
        return self.step(shape.source_channels * self.dest_vectors)

    def thread_values(self, shape: Shape) -> int:
        """Elements of one thread's buffers: a packed line of tiles or of results, and scratch."""
        packed = shape.rows.length * max(shape.columns.packed, shape.columns.tiles * shape.columns.step)
        taps = math.ceil(shape.taps / self.lanes) * self.lanes
        return (max(packed, taps) + shape.transform.middle) * self.lanes

    def values(self, shape: Shape, team: int) -> tuple[int, int, int, int]:
        """Elements of weights, pieces, sums and threads' buffers."""
        return (
            shape.points * self.panel_step(shape),
            shape.points * self.pieces_step(shape),
            shape.points * self.sums_step(shape),
            team * self.thread_values(shape),
        )


def chunk_lines(shape: Shape, line_bytes: int, again_bytes: int) -> int:
    """Lines of tiles of a chunk, for so many bytes of points a line and of what every chunk reads again."""
    low, high = _CHUNK_BYTES
    wanted = min(high, max(low, again_bytes))
    return max(wanted // line_bytes, math.ceil(_LEAST_CHUNK_TILES / shape.columns.tiles), 1)


@lru_cache(maxsize=2048)
def choose_cut(shape: Shape, batch: int, lanes: int, registers: int) -> Cut:
    """Chunks whose points take as much as the weights', of 12 tiles at least, and the blocks of least cycles."""
    channels = math.ceil(shape.source_channels / lanes) + math.ceil(shape.dest_channels / lanes)
    line_bytes = 4 * lanes * channels * shape.points * shape.columns.tiles
    total = max(1, batch * shape.rows.tiles)
    lines = chunk_lines(shape, line_bytes, 4 * shape.points * shape.source_channels * shape.dest_channels)
    lines = math.ceil(total / math.ceil(total / lines))
    block = choose_block(shape.dest_channels, 1, lines * shape.columns.tiles, lanes, registers)
    return Cut(lines, block.widths, block.counts, (block.places[0][1], block.places[1][1]), lanes)
