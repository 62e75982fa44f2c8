"""Forward convolution and input gradient: weights and tiles to points, a product at every point, and back."""

from __future__ import annotations

import math
from typing import Any

from convlens.kernels.cpu.codegen import I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.direct.pack import turned_store
from convlens.kernels.cpu.fourier.geometry import Cut, Shape
from convlens.kernels.cpu.fourier.pieces import Pieces, pieces_body
from convlens.kernels.cpu.taps import load_taps

__all__ = ["build_forward"]

_LONGEST_SUM = 128
"""Channels added one after the other; then sums of so many are added, for the rounding errors of long ones."""


def build_forward(m: Module, shape: Shape, cut: Cut) -> None:
    """Export ``run(source, weight, bias, dest, panels, pieces, sums, buffers, spoilt, batch, threads)``.

    The buffers are those of `Cut.values`; ``spoilt`` becomes 1 for each image of which a result is not finite.
    """
    own = cut.thread_values(shape)
    weights = _weights_body(m, shape, cut)
    given = Pieces(
        (shape.rows, shape.columns), (shape.rows.length, shape.columns.length), shape.source_channels, "data",
        cut.source_vectors(shape), cut.pieces_step(shape),
    )  # fmt: skip
    pieces = pieces_body(m, "pieces", shape, given)
    products = _products_body(m, shape, cut)
    results = _results_body(m, shape, cut)
    with m.function(
        "run", source="f32*", weight="f32*", bias="f32*", dest="f32*", panels="f32*", pieces="f32*", sums="f32*",
        buffers="f32*", spoilt="i32*", batch="int",
    ) as f:  # fmt: skip
        items = cut.dest_vectors * shape.source_channels
        f.parallel(weights, items, f.weight, f.panels, f.buffers, own, grain=1)
        total = f.batch * shape.rows.tiles
        with f.loop(0, total, cut.lines) as line:
            lines = f.minimum(cut.lines, total - line)
            vectors = cut.source_vectors(shape)
            f.parallel(pieces, lines * vectors, f.source, f.pieces, f.buffers, own, line, grain=1)
            f.parallel(products, shape.points, f.pieces, f.panels, f.sums, lines * shape.columns.tiles, grain=2)
            f.parallel(
                results, lines * cut.dest_vectors, f.sums, f.bias, f.dest, f.buffers, own, f.spoilt, line, grain=1
            )


def _weights_body(m: Module, shape: Shape, cut: Cut) -> Function:
    """Body over vectors of dest channels × source channels: points of each window, in panels of blocks."""
    lanes, taps = cut.lanes, shape.taps
    with m.body("weights", weight="f32*", panels="f32*", buffers="f32*", own="int") as f:
        scratch = f.buffers + f.thread * f.own
        middle = scratch + math.ceil(taps / lanes) * lanes * lanes
        with f.loop(f.begin, f.end) as item:
            vector, channel = item // shape.source_channels, item % shape.source_channels
            load_taps(f, shape, scratch, vector * lanes, channel)
            wide = cut.widths[0] * cut.counts[0]
            width = f.select(vector < wide, f.index(cut.widths[0]), f.index(cut.widths[1]))
            first = f.select(
                vector < wide,
                vector - vector % cut.widths[0],
                vector - (vector - wide) % max(1, cut.widths[1]),
            )
            at = first * shape.source_channels + channel * width + (vector - first)
            to = f.panels + at * lanes

            def load(row: Value | int, column: int) -> Value:
                place = (f.index(row) * shape.columns.window + column) * lanes
                value: Value = scratch.load(place, lanes, align=4 * lanes)
                return value

            def store(point: Value | int, value: Value, to: Pointer = to) -> None:
                to.store(value, f.index(point) * cut.panel_step(shape), align=4 * lanes)

            shape.transform.forward(f, "window", shape.window, load, middle, store, shape.scale, shape.spacing)
    f.ir.attributes.add("noinline")
    return f


def _products_body(m: Module, shape: Shape, cut: Cut) -> Function:
    """Body over points: ``sums[tile][dest] = pieces[tile][source] @ panel[source][dest]``."""
    lanes = cut.lanes
    with m.body("products", pieces="f32*", panels="f32*", sums="f32*", tiles="int") as f:
        with f.loop(f.begin, f.end) as point:
            pieces = f.pieces + point * cut.pieces_step(shape)
            panels = f.panels + point * cut.panel_step(shape)
            sums = f.sums + point * cut.sums_step(shape)
            first = 0
            for width, count, rows in zip(cut.widths, cut.counts, cut.block_rows, strict=True):
                if count:
                    with f.loop(0, count) as block, f.loop(0, f.tiles, rows) as tile:
                        vector = block * width + first
                        panel = panels + vector * (shape.source_channels * lanes)
                        to = sums + (tile * cut.dest_vectors + vector) * lanes
                        _block(f, shape, cut, pieces + tile * (cut.source_vectors(shape) * lanes), panel, to,
                               width, rows)  # fmt: skip
                first += width * count
    f.ir.attributes.add("noinline")
    return f


def _block(
    f: Function, shape: Shape, cut: Cut, pieces: Pointer, panel: Pointer, to: Pointer, width: int, rows: int
) -> None:
    lanes, channels = cut.lanes, shape.source_channels
    stride = cut.source_vectors(shape) * lanes
    parts = -(-channels // _LONGEST_SUM)
    part = -(-channels // parts)
    places = [(r * cut.dest_vectors + v) * lanes for r in range(rows) for v in range(width)]
    with f.loop(0, channels, part) as first:
        held = [f.variable(f.zeros(lanes)) for _ in places]
        with f.loop(first, f.minimum(first + part, channels)) as channel:
            weights = [panel.load((channel * width + v) * lanes, lanes, align=4 * lanes) for v in range(width)]
            for row in range(rows):
                value = pieces.broadcast(channel + row * stride, lanes)
                for v in range(width):
                    total = held[row * width + v]
                    total.set(f.fma(value, weights[v], total.get()))
        if parts > 1:
            with f.when(first > 0):
                for variable, place in zip(held, places, strict=True):
                    variable.set(variable.get() + to.load(place, lanes, align=4 * lanes))
        for variable, place in zip(held, places, strict=True):
            to.store(variable.get(), place, align=4 * lanes)


def _results_body(m: Module, shape: Shape, cut: Cut) -> Function:
    """Body over lines of a chunk × vectors of dest channels: back to places, bias, ReLU, store."""
    with m.body(
        "results", sums="f32*", bias="f32*", dest="f32*", buffers="f32*", own="int", spoilt="i32*", line="int"
    ) as f:
        check = f.variable(f.zeros(cut.lanes))
        with f.loop(f.begin, f.end) as item:
            check.set(f.zeros(cut.lanes))
            line = _Line(f, shape, cut, item % cut.dest_vectors, item // cut.dest_vectors, check)
            line.emit()
            bad = check.get()
            with f.when(f.any(bad.differs(bad))):
                f.spoilt.store(Value(f, f.irb.trunc(f.index(1).ir, I32)), line.image)
    f.ir.attributes.add("noinline")
    return f


class _Line:
    """Emits one line of tiles of one vector of channels."""

    def __init__(self, f: Function, shape: Shape, cut: Cut, vector: Value, number: Value, check: Any) -> None:
        self.f, self.shape, self.cut, self.lanes, self.check = f, shape, cut, cut.lanes, check
        rows, columns = shape.rows, shape.columns
        self.image, down = (f.line + number) // rows.tiles, (f.line + number) % rows.tiles
        self.top = down * rows.step
        self.height = f.minimum(rows.step, f.index(rows.dest) - self.top)
        self.width = columns.tiles * columns.step
        self.turned = f.buffers + f.thread * f.own
        self.middle = self.turned + rows.step * self.width * self.lanes
        self.channel = vector * self.lanes
        self.left = f.index(shape.dest_channels) - self.channel
        whole = shape.dest_channels % self.lanes == 0
        self.mask = None if whole else f.mask_below(self.left, self.lanes)
        self.bias = f.bias.load(self.channel, self.lanes, mask=self.mask) if shape.bias else None
        self.sums = f.sums + (number * (columns.tiles * cut.dest_vectors) + vector) * self.lanes

    def emit(self) -> None:
        """See the class."""
        f, shape, lanes = self.f, self.shape, self.lanes
        columns = shape.columns
        with f.loop(0, columns.tiles) as tile:
            here = self.sums + tile * (self.cut.dest_vectors * lanes)
            there = self.turned + tile * (columns.step * lanes)

            def load(point: Value | int) -> Value:
                value: Value = here.load(f.index(point) * self.cut.sums_step(shape), lanes, align=4 * lanes)
                return value

            def store(row: Value, column: int, value: Value) -> None:
                there.store(self._finished(value), (row * self.width + column) * lanes, align=4 * lanes)

            shape.transform.backward(f, shape.step, load, self.middle, store, self.height)
        with f.loop(0, self.height) as row:
            self._store(self.turned + row * (self.width * lanes), self.top + row)

    def _finished(self, value: Value) -> Value:
        f = self.f
        self.check.set(f.fma(value, f.zeros(value.lanes), self.check.get()))
        if self.bias is not None:
            value = value + self.bias
        return f.max(value, 0.0) if self.shape.relu else value

    def _store(self, source: Pointer, row: Value) -> None:
        f, shape, lanes = self.f, self.shape, self.lanes
        width, channels = shape.columns.dest, shape.dest_channels
        if shape.channels_last:
            at = f.dest + (((self.image * shape.rows.dest + row) * width) * channels + self.channel)
            with f.loop(0, width) as x:
                at.store(source.load(x * lanes, lanes, align=4 * lanes), x * channels, mask=self.mask)
            return
        plane = shape.rows.dest * width
        to = f.dest + ((self.image * channels + self.channel) * plane + row * width)
        with f.loop(0, width // lanes * lanes, lanes) as x:
            values = [source.load((x + i) * lanes, lanes, align=4 * lanes) for i in range(lanes)]
            turned_store(f, values, to + x, plane, self.left)
        if rest := width % lanes:
            last = width - rest
            values = [source.load((last + i) * lanes, lanes, align=4 * lanes) for i in range(rest)]
            turned_store(f, values, to + last, plane, self.left)
