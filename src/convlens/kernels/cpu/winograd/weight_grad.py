"""The weight's gradient as ``F(window, tile)``: the error's tiles are the windows, sums run over all tiles.

Three steps: pieces of the source and of the error transformed, chunk by chunk of tiles; at every point a product
that sums over the chunk's tiles; at the end one transform of the sums. Each sum runs in one order whatever the
number of threads.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import lru_cache

from convlens.kernels.cpu.codegen import F32, I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.winograd.geometry import Axis, Shape, block_widths, most_rows
from convlens.kernels.cpu.winograd.pieces import Layout, pieces_body
from convlens.kernels.cpu.winograd.points import matrices
from convlens.kernels.cpu.winograd.transform import transform

__all__ = ["Sums", "build_weight_grad", "choose_sums"]

_CHUNK_BYTES = 2 << 20  # pieces that meet again while they are in a second-level cache; at least one band
_MOST_CHUNKS = 8  # each ends two parallel regions, and on a busy machine every end of one waits for a time slice
_BAND_TILES = 64
_LONGEST_SUM = 512  # tiles added one after the other; then sums of so many are, for the rounding errors


@dataclass(frozen=True, slots=True)
class Sums:
    """How the work is cut.

    Attributes:
        rows: tile rows of a band; divides those of the image.
        bands: bands of a chunk.
        widths: vectors of input channels in a block of sums, in the first blocks and in the later ones.
        blocks: how many blocks of either width.
        block_rows: output channels in a block of sums.
        lanes: elements of a vector.
    """

    rows: int
    bands: int
    widths: tuple[int, int]
    blocks: tuple[int, int]
    block_rows: int
    lanes: int

    def source_vectors(self, shape: Shape) -> int:
        """Vectors of input channels."""
        return math.ceil(shape.source_channels / self.lanes)

    def error_vectors(self, shape: Shape) -> int:
        """Vectors of output channels, whole blocks."""
        return math.ceil(self.error_rows(shape) / self.lanes)

    def error_rows(self, shape: Shape) -> int:
        """Output channels, whole blocks."""
        return math.ceil(shape.dest_channels / self.block_rows) * self.block_rows

    def band_tiles(self, shape: Shape) -> int:
        """Tiles of a band."""
        return self.rows * shape.columns.tiles

    def pieces_step(self, shape: Shape, vectors: int) -> int:
        """Elements from one point's pieces to the next: an odd number of lines."""
        lines = self.bands * self.band_tiles(shape) * vectors
        return (lines + 1 - lines % 2) * self.lanes

    def sums_step(self, shape: Shape) -> int:
        """Elements from one point's sums to the next: an odd number of lines."""
        lines = self.error_rows(shape) * self.source_vectors(shape)
        return (lines + 1 - lines % 2) * self.lanes

    def source_values(self, shape: Shape) -> int:
        """Elements of a chunk's transformed source."""
        return shape.points * self.pieces_step(shape, self.source_vectors(shape))

    def error_values(self, shape: Shape) -> int:
        """Elements of a chunk's transformed errors."""
        return shape.points * self.pieces_step(shape, self.error_vectors(shape))

    def line(self, shape: Shape) -> int:
        """Columns of a packed row."""
        return math.ceil(shape.columns.piece(shape.columns.tiles) / self.lanes) * self.lanes

    def packed_values(self, shape: Shape) -> int:
        """Elements of one thread's packed band, one vector of channels wide."""
        return shape.rows.piece(self.rows) * self.line(shape) * self.lanes

    def values(self, shape: Shape, threads: int) -> int:
        """Elements of all buffers."""
        chunk = self.source_values(shape) + self.error_values(shape)
        return chunk + shape.points * self.sums_step(shape) + threads * self.packed_values(shape)


@lru_cache(maxsize=1024)
def choose_sums(shape: Shape, batch: int, lanes: int, registers: int) -> Sums:
    """Bands of about 64 tiles, chunks of 2 MB or more, the blocks that waste least."""
    down, across = shape.rows.tiles, shape.columns.tiles
    rows = max(r for r in range(1, down + 1) if down % r == 0 and (r == 1 or r * across <= _BAND_TILES))
    channels = -(-shape.source_channels // lanes) + -(-shape.dest_channels // lanes)
    band_bytes = 4 * lanes * rows * across * shape.points * channels
    total = max(batch, 1) * (down // rows)
    bands = min(total, max(1, _CHUNK_BYTES // band_bytes, -(-total // _MOST_CHUNKS)))
    choices = []
    for widest in (2, 3, 4):
        widths, blocks = block_widths(-(-shape.source_channels // lanes), widest)
        most = min(most_rows(registers, w) for w, b in zip(widths, blocks, strict=True) if b)
        for block_rows in range(max(1, most - 3), most + 1):
            cycles = sum(
                b * max(w * block_rows / 2, (w + block_rows) / 2) for w, b in zip(widths, blocks, strict=True)
            )
            cost = math.ceil(shape.dest_channels / block_rows) * cycles
            choices.append((cost, -block_rows, Sums(rows, bands, widths, blocks, block_rows, lanes)))
    return min(choices, key=lambda choice: choice[:2])[2]


def build_weight_grad(m: Module, shape: Shape, cut: Sums) -> None:
    """Export ``run(error, source, weight, …, batch, threads)``; the buffers between are those of `Sums.values`."""
    pieces = _both_pieces(m, shape, cut)
    products = _products_body(m, shape, cut)
    results = _results_body(m, shape, cut)
    with m.function(
        "run", error="f32*", source="f32*", weight="f32*", source_pieces="f32*", error_pieces="f32*", sums="f32*",
        buffers="f32*", spoilt="i32*", batch="int",
    ) as f:  # fmt: skip
        total = f.batch * (shape.rows.tiles // cut.rows)
        vectors = cut.source_vectors(shape) + cut.error_vectors(shape)
        with f.loop(0, total, cut.bands) as first:
            bands = f.minimum(cut.bands, total - first)
            f.parallel(
                pieces, bands * vectors, f.error, f.source, f.source_pieces, f.error_pieces, f.buffers, first,
                grain=1,
            )  # fmt: skip
            items = shape.points * (cut.error_rows(shape) // cut.block_rows)
            tiles = bands * cut.band_tiles(shape)
            f.parallel(products, items, f.source_pieces, f.error_pieces, f.sums, tiles, first)
        f.parallel(results, shape.dest_channels, f.sums, f.weight, f.spoilt)


def _both_pieces(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over bands × (vectors of input channels, then of output channels)."""
    rows, columns, lanes, line = shape.rows, shape.columns, cut.lanes, cut.line(shape)
    plane = rows.piece(cut.rows) * line
    of_source, of_error = cut.source_vectors(shape), cut.error_vectors(shape)
    source = pieces_body(
        m, "source_pieces", (rows, columns), rows.matrices.data, columns.matrices.data, shape.source_channels,
        shape.channels_last, Layout(line, plane, of_source * lanes, cut.pieces_step(shape, of_source)),
    )  # fmt: skip
    axes = [Axis(axis.dest, axis.dest, 0, 1, axis.step) for axis in (rows, columns)]
    windows = [matrices(axis.window, axis.step).window for axis in (rows, columns)]
    error = pieces_body(
        m, "error_pieces", (axes[0], axes[1]), windows[0], windows[1], shape.dest_channels, shape.channels_last,
        Layout(line, plane, of_error * lanes, cut.pieces_step(shape, of_error)),
    )  # fmt: skip
    with m.body(
        "pieces",
        error="f32*",
        source="f32*",
        source_pieces="f32*",
        error_pieces="f32*",
        buffers="f32*",
        first="int",
    ) as f:
        packed = f.buffers + f.thread * cut.packed_values(shape)
        with f.loop(f.begin, f.end) as item:
            band, vector = item // (of_source + of_error), item % (of_source + of_error)
            number, tile = f.first + band, band * cut.band_tiles(shape)
            per_image = rows.tiles // cut.rows
            where = (number // per_image, number % per_image * cut.rows, 0, 1, cut.rows, columns.tiles)
            with f.when_else(vector < of_source) as (first, later):
                with first:
                    to = f.source_pieces + tile * (of_source * lanes)
                    f.call(source, f.source, packed, to, *where, vector, vector + 1, 0)
                with later:
                    to = f.error_pieces + tile * (of_error * lanes)
                    vector = vector - of_source
                    f.call(error, f.error, packed, to, *where, vector, vector + 1, 0)
    return f


def _products_body(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over points × blocks of output channels: sums over a chunk's tiles, added to earlier ones."""
    lanes, of_source, of_error = cut.lanes, cut.source_vectors(shape), cut.error_vectors(shape)
    count = cut.error_rows(shape) // cut.block_rows
    with m.body("products", source="f32*", error="f32*", sums="f32*", tiles="int", chunk="int") as f:
        with f.loop(f.begin, f.end) as item:
            point, row = item // count, item % count * cut.block_rows
            error = f.error + (point * cut.pieces_step(shape, of_error) + row)
            source = f.source + point * cut.pieces_step(shape, of_source)
            sums = f.sums + (point * cut.sums_step(shape) + row * (of_source * lanes))
            first = 0
            for width, blocks in zip(cut.widths, cut.blocks, strict=True):
                if blocks:
                    with f.loop(0, blocks) as block:
                        at = (block * width + first) * lanes
                        _block(f, cut, source + at, error, sums + at, width, of_source * lanes, of_error * lanes)
                first += width * blocks
    return f


def _block(
    f: Function, cut: Sums, source: Pointer, error: Pointer, sums: Pointer, width: int, source_row: int,
    error_row: int,
) -> None:  # fmt: skip
    lanes, rows = cut.lanes, cut.block_rows
    with f.loop(0, f.tiles, _LONGEST_SUM) as begin:
        held = [[f.variable(f.zeros(lanes)) for _ in range(width)] for _ in range(rows)]
        with f.loop(begin, f.minimum(begin + _LONGEST_SUM, f.tiles)) as tile:
            here, there = source + tile * source_row, error + tile * error_row
            values = [here.load(v * lanes, lanes, align=4 * lanes) for v in range(width)]
            for row in range(rows):
                factor = there.broadcast(row, lanes)
                for v in range(width):
                    held[row][v].set(f.fma(factor, values[v], held[row][v].get()))
        places = [(row, v, row * source_row + v * lanes) for row in range(rows) for v in range(width)]
        with f.when(f.chunk + begin > 0):
            for row, v, at in places:
                held[row][v].set(held[row][v].get() + sums.load(at, lanes, align=4 * lanes))
        for row, v, at in places:
            sums.store(held[row][v].get(), at, align=4 * lanes)


def _results_body(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over output channels: sums back to weights."""
    lanes, of_source, taps = cut.lanes, cut.source_vectors(shape), shape.taps
    rows, columns = shape.rows, shape.columns
    down, across = (matrices(axis.window, axis.step).result for axis in (rows, columns))
    kept = -(-taps // lanes) * lanes
    with m.body("results", sums="f32*", weight="f32*", spoilt="i32*") as f:
        middle = f.scratch(F32, rows.window * columns.points * lanes)
        turned = f.scratch(F32, kept * lanes)
        check = f.variable(f.zeros(lanes))
        for tap in range(taps, kept):
            turned.store(f.zeros(lanes), tap * lanes, align=4 * lanes)
        with f.loop(f.begin, f.end) as channel, f.loop(0, of_source) as vector:
            here = f.sums + (channel * of_source + vector) * lanes

            def load(r: Value | int, c: Value | int, here: Pointer = here) -> Value:
                at = (f.index(r) * columns.points + c) * cut.sums_step(shape)
                value: Value = here.load(at, lanes, align=4 * lanes)
                return value

            def store(r: Value, c: int, value: Value) -> None:
                check.set(f.fma(value, f.zeros(lanes), check.get()))
                turned.store(value, (r * columns.window + c) * lanes, align=4 * lanes)

            transform(f, down, across, middle, load, store)
            to = f.weight + (channel * shape.weight_dest + vector * (lanes * taps))
            left = f.index(shape.source_channels) - vector * lanes
            for start in range(0, taps, lanes):
                part = [turned.load((start + i) * lanes, lanes, align=4 * lanes) for i in range(lanes)]
                mask = f.mask_below(min(lanes, taps - start), lanes)
                for lane, values in enumerate(f.transpose(part)):
                    whole = shape.source_channels % lanes == 0 or lane == 0
                    with contextlib.nullcontext() if whole else f.when(left > lane):
                        to.store(values, lane * taps + start, mask=mask)
        bad = check.get()
        with f.when(f.any(bad.differs(bad))):
            f.spoilt.store(Value(f, f.irb.trunc(f.index(1).ir, I32)), 0)
    return f
