"""Weight gradient: points of input pieces and of upstream pieces, multiplied and summed over tiles, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from convlens.kernels.cpu.codegen import I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.direct.geometry import choose_block
from convlens.kernels.cpu.fourier.geometry import Axis, Shape, chunk_lines
from convlens.kernels.cpu.fourier.pieces import Pieces, pieces_body

__all__ = ["Sums", "build_weight_grad", "choose_sums"]

_LONGEST_SUM = 64


@dataclass(frozen=True, slots=True)
class Sums:
    """Chunks of ``lines`` lines of tiles; blocks of ``rows`` output channels × vectors of input channels."""

    lines: int
    rows: int
    widths: tuple[int, int]
    counts: tuple[int, int]
    lanes: int

    def source_vectors(self, shape: Shape) -> int:
        """Vectors of input channels."""
        return math.ceil(shape.source_channels / self.lanes)

    def error_vectors(self, shape: Shape) -> int:
        """Vectors of output channels: at least whole blocks of them."""
        return math.ceil(self.error_rows(shape) / self.lanes)

    def error_rows(self, shape: Shape) -> int:
        """Output channels in whole blocks."""
        return math.ceil(shape.dest_channels / self.rows) * self.rows

    def step(self, shape: Shape, vectors: int) -> int:
        """Elements from one point's pieces to the next: an odd number of vectors."""
        lines = self.lines * shape.columns.tiles * vectors
        return (lines + 1 - lines % 2) * self.lanes

    def sums_step(self, shape: Shape) -> int:
        """Elements from one point's sums to the next."""
        lines = self.error_rows(shape) * self.source_vectors(shape)
        return (lines + 1 - lines % 2) * self.lanes

    def thread_values(self, shape: Shape) -> int:
        """Elements of one thread's buffers."""
        taps = math.ceil(shape.taps / self.lanes) * self.lanes
        return (max(shape.rows.length * shape.columns.packed, taps) + shape.transform.middle) * self.lanes

    def values(self, shape: Shape, team: int) -> tuple[int, int, int, int]:
        """Elements of input pieces, upstream pieces, sums and threads' buffers."""
        return (
            shape.points * self.step(shape, self.source_vectors(shape)),
            shape.points * self.step(shape, self.error_vectors(shape)),
            shape.points * self.sums_step(shape),
            team * self.thread_values(shape),
        )


@lru_cache(maxsize=2048)
def choose_sums(shape: Shape, batch: int, lanes: int, registers: int) -> Sums:
    """Chunks whose points take as much as the sums, read and written; the blocks of least cycles."""
    block = choose_block(shape.source_channels, 1, shape.dest_channels, lanes, registers)
    rows = min(size[1] for size, count in zip(block.places, block.counts, strict=True) if count)
    channels = math.ceil(shape.source_channels / lanes) + math.ceil(shape.dest_channels / lanes)
    line_bytes = 4 * lanes * channels * shape.points * shape.columns.tiles
    total = max(1, batch * shape.rows.tiles)
    lines = chunk_lines(shape, line_bytes, 8 * shape.points * shape.source_channels * shape.dest_channels)
    lines = math.ceil(total / math.ceil(total / lines))
    return Sums(lines, rows, block.widths, block.counts, lanes)


def build_weight_grad(m: Module, shape: Shape, cut: Sums) -> None:
    """Export ``run(error, source, weight, pieces, errors, sums, buffers, spoilt, batch, threads)``."""
    own = cut.thread_values(shape)
    of_source, of_error = cut.source_vectors(shape), cut.error_vectors(shape)
    source = pieces_body(
        m, "source_pieces", shape,
        Pieces((shape.rows, shape.columns), (shape.rows.length, shape.columns.length), shape.source_channels,
               "data", of_source, cut.step(shape, of_source)),
    )  # fmt: skip
    error = pieces_body(
        m, "error_pieces", shape,
        Pieces((_of_error(shape.rows), _of_error(shape.columns)), shape.step, shape.dest_channels, "window",
               of_error, cut.step(shape, of_error), shape.scale),
    )  # fmt: skip
    products = _products_body(m, shape, cut)
    results = _results_body(m, shape, cut)
    with m.function(
        "run", error="f32*", source="f32*", weight="f32*", pieces="f32*", errors="f32*", sums="f32*",
        buffers="f32*", spoilt="i32*", batch="int",
    ) as f:  # fmt: skip
        total = f.batch * shape.rows.tiles
        with f.loop(0, total, cut.lines) as line:
            lines = f.minimum(cut.lines, total - line)
            f.parallel(source, lines * of_source, f.source, f.pieces, f.buffers, own, line, grain=1)
            f.parallel(error, lines * of_error, f.error, f.errors, f.buffers, own, line, grain=1)
            tiles = lines * shape.columns.tiles
            f.parallel(products, shape.points, f.pieces, f.errors, f.sums, tiles, line, grain=2)
        f.parallel(results, shape.dest_channels * of_source, f.sums, f.weight, f.buffers, own, f.spoilt)


def _of_error(axis: Axis) -> Axis:
    """The upstream gradient's own tiles: they do not overlap, and a last one that is short ends in zeros."""
    return replace(axis, source=axis.dest, first=0)


def _products_body(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over points: sums over a chunk's tiles, output × input channels, added to those of earlier chunks."""
    lanes, of_source, of_error = cut.lanes, cut.source_vectors(shape), cut.error_vectors(shape)
    with m.body("products", source="f32*", error="f32*", sums="f32*", tiles="int", chunk="int") as f:
        with f.loop(f.begin, f.end) as point, f.loop(0, cut.error_rows(shape), cut.rows) as row:
            error = f.error + (point * cut.step(shape, of_error) + row)
            source = f.source + point * cut.step(shape, of_source)
            sums = f.sums + (point * cut.sums_step(shape) + row * (of_source * lanes))
            first = 0
            for width, count in zip(cut.widths, cut.counts, strict=True):
                if count:
                    with f.loop(0, count) as block:
                        at = (block * width + first) * lanes
                        _block(f, cut, source + at, of_source * lanes, error, of_error * lanes, sums + at, width)
                first += width * count
    f.ir.attributes.add("noinline")
    return f


def _block(
    f: Function, cut: Sums, pieces: Pointer, pieces_line: int, errors: Pointer, errors_line: int, sums: Pointer,
    width: int,
) -> None:  # fmt: skip
    """``cut.rows`` output channels × ``width`` vectors of input channels, summed over a chunk's tiles."""
    lanes = cut.lanes
    places = [(row * pieces_line + v * lanes) for row in range(cut.rows) for v in range(width)]
    with f.loop(0, f.tiles, _LONGEST_SUM) as begin:
        held = [f.variable(f.zeros(lanes)) for _ in places]
        with f.loop(begin, f.minimum(begin + _LONGEST_SUM, f.tiles)) as tile:
            here, there = pieces + tile * pieces_line, errors + tile * errors_line
            values = [here.load(v * lanes, lanes, align=4 * lanes) for v in range(width)]
            for row in range(cut.rows):
                factor = there.broadcast(row, lanes)
                for v in range(width):
                    total = held[row * width + v]
                    total.set(f.fma(factor, values[v], total.get()))
        with f.when(f.chunk + begin > 0):
            for variable, place in zip(held, places, strict=True):
                variable.set(variable.get() + sums.load(place, lanes, align=4 * lanes))
        for variable, place in zip(held, places, strict=True):
            sums.store(variable.get(), place, align=4 * lanes)


def _results_body(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over output channels × vectors of input channels: sums back to taps, taps to the weight."""
    lanes, of_source, taps = cut.lanes, cut.source_vectors(shape), shape.taps
    kept = math.ceil(taps / lanes) * lanes
    with m.body("results", sums="f32*", weight="f32*", buffers="f32*", own="int", spoilt="i32*") as f:
        turned = f.buffers + f.thread * f.own
        middle = turned + kept * lanes
        check = f.variable(f.zeros(lanes))
        with f.loop(f.begin, f.end) as item:
            vector, channel = item % of_source, item // of_source
            here = f.sums + (channel * of_source + vector) * lanes

            def load(point: Value | int) -> Value:
                value: Value = here.load(f.index(point) * cut.sums_step(shape), lanes, align=4 * lanes)
                return value

            def store(row: Value, column: int, value: Value) -> None:
                check.set(f.fma(value, f.zeros(lanes), check.get()))
                turned.store(value, (row * shape.columns.window + column) * lanes, align=4 * lanes)

            shape.transform.backward(f, shape.window, load, middle, store, spacing=shape.spacing)
            to = f.weight + (channel * shape.weight_dest + vector * (lanes * shape.weight_source))
            left = f.index(shape.source_channels) - vector * lanes
            for start in range(0, taps, lanes):
                count = min(lanes, taps - start)
                part = [turned.load((start + i) * lanes, lanes, align=4 * lanes) for i in range(count)]
                mask = None if count == lanes else f.mask_below(count, lanes)
                for lane, values in enumerate(f.transpose(part + [part[-1]] * (lanes - count))):
                    with f.when(left > lane):
                        to.store(values, lane * shape.weight_source + start, mask=mask)
        bad = check.get()
        with f.when(f.any(bad.differs(bad))):
            f.spoilt.store(Value(f, f.irb.trunc(f.index(1).ir, I32)), 0)
    f.ir.attributes.add("noinline")
    return f
