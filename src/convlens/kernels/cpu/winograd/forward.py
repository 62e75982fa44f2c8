"""One pass over bands of tiles: pack, transform, multiply at every point, transform back, store."""

from __future__ import annotations

import contextlib
from typing import Any

from convlens.kernels.cpu.codegen import F32, I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.epilogue import activated
from convlens.kernels.cpu.winograd.geometry import Cut, Shape
from convlens.kernels.cpu.winograd.pieces import Band, Layout, pieces_body
from convlens.kernels.cpu.winograd.products import products_body
from convlens.kernels.cpu.winograd.transform import transform
from convlens.kernels.cpu.winograd.weights import panel_at, weights_body

__all__ = ["build_forward"]


def build_forward(m: Module, shape: Shape, cut: Cut) -> None:
    """Export ``run(source, weight, bias, dest, panels, buffers, spoilt, batch, threads)``.

    ``pack(weight, panels, threads)`` and ``multiply(source, bias, dest, panels, …)`` are its two halves.

    ``panels`` holds the transformed weights, ``buffers`` one slice of `Cut.thread_values` per thread;
    ``spoilt`` becomes 1 for each image of which a result is not finite.
    """
    weights = weights_body(m, shape, cut)
    rows, columns = shape.rows, shape.columns
    line = cut.plane_columns(shape)
    layout = Layout(
        line, rows.piece(cut.rows) * line, cut.source_vectors(shape) * cut.lanes, cut.pieces_step(shape)
    )
    pieces = pieces_body(
        m, "pieces", (rows, columns), rows.matrices.data, columns.matrices.data, shape.source_channels,
        shape.channels_last, layout,
    )  # fmt: skip
    products = [
        products_body(m, shape, cut, vectors, rows) if blocks else None
        for vectors, blocks, rows in zip(cut.vectors, cut.blocks, cut.block_rows, strict=True)
    ]
    results = results_body(m, shape, cut)
    with m.body(
        "bands", source="f32*", bias="f32*", dest="f32*", panels="f32*", buffers="f32*", spoilt="i32*", batch="int"
    ) as f:
        buffer = f.buffers + f.thread * cut.thread_values(shape)
        transformed = buffer + cut.packed_values(shape)
        summed = transformed + cut.pieces_values(shape)
        with f.loop(f.begin, f.end) as item:
            band = Band.numbered(f, shape.rows, shape.columns, cut, item, f.batch)
            f.call(pieces, f.source, buffer, transformed, *band.values, 0, cut.source_vectors(shape), f.thread)
            for some, do in zip(_blocks(f, shape, cut), products, strict=True):
                if do is not None:
                    some.emit(do, results, f.panels, transformed, summed, buffer, band)
    with m.function(
        "run", source="f32*", weight="f32*", bias="f32*", dest="f32*", panels="f32*", buffers="f32*",
        spoilt="i32*", batch="int",
    ) as g:  # fmt: skip
        g.parallel(weights, cut.dest_vectors * shape.source_channels, g.weight, g.panels)
        across = -(-shape.columns.tiles // cut.columns) * -(-shape.rows.tiles // cut.rows)
        items = (g.batch + (cut.images - 1)) // cut.images * across
        g.parallel(f, items, g.source, g.bias, g.dest, g.panels, g.buffers, g.spoilt, g.batch, grain=1)
    with m.function("pack", weight="f32*", panels="f32*") as g:
        g.parallel(weights, cut.dest_vectors * shape.source_channels, g.weight, g.panels)
    with m.function(
        "multiply", source="f32*", bias="f32*", dest="f32*", panels="f32*", buffers="f32*", spoilt="i32*",
        batch="int",
    ) as g:  # fmt: skip
        across = -(-shape.columns.tiles // cut.columns) * -(-shape.rows.tiles // cut.rows)
        items = (g.batch + (cut.images - 1)) // cut.images * across
        g.parallel(f, items, g.source, g.bias, g.dest, g.panels, g.buffers, g.spoilt, g.batch, grain=1)


def _blocks(f: Function, shape: Shape, cut: Cut) -> list[_Blocks]:
    return [_Blocks(f, shape, cut, which) for which in (0, 1)]


class _Blocks:
    """Emits the products and results of all blocks of one width."""

    def __init__(self, f: Function, shape: Shape, cut: Cut, which: int) -> None:
        self.f, self.shape, self.cut = f, shape, cut
        self.vectors, self.count, self.rows = cut.vectors[which], cut.blocks[which], cut.block_rows[which]
        self.first = cut.vectors[0] * cut.blocks[0] if which else 0
        self.step = cut.products_step(self.vectors)
        # products of earlier, wider blocks lie before these where all are kept
        self.base = cut.products_step(cut.vectors[0]) * cut.blocks[0] * shape.points if which else 0

    def emit(
        self, products: Function, results: Function, panels: Pointer, transformed: Pointer, summed: Pointer,
        packed: Pointer, band: Band,
    ) -> None:  # fmt: skip
        """See the class."""
        f, shape, cut = self.f, self.shape, self.cut
        blocks = (band.tiles + (self.rows - 1)) // self.rows
        pieces_step = cut.pieces_step(shape)

        def multiply(block: Value, point: Value) -> None:
            first = self.first + block * self.vectors
            panel = panel_at(f, shape, cut, panels, first, self.vectors, point)
            to = self._sums(summed, block) + point * self.step
            f.call(products, transformed + point * pieces_step, panel, to, 0, blocks, 0)

        def finish(block: Value) -> None:
            first = self.first + block * self.vectors
            f.call(
                results, self._sums(summed, block), self.vectors * cut.lanes, self.step, packed, f.bias, f.dest,
                f.spoilt, *band.values, first, first + self.vectors, 0,
            )  # fmt: skip

        if cut.by_points:
            with f.loop(0, shape.points) as point, f.loop(0, self.count) as block:
                multiply(block, point)
            with f.loop(0, self.count) as block:
                finish(block)
            return
        with f.loop(0, self.count) as block:
            with f.loop(0, shape.points) as point:
                multiply(block, point)
            finish(block)

    def _sums(self, summed: Pointer, block: Value) -> Pointer:
        if not self.cut.by_points:
            return summed
        return summed + (block * (self.step * self.shape.points) + self.base)


def results_body(m: Module, shape: Shape, cut: Cut) -> Function:
    """Body over vectors of output channels: products back to outputs, bias, ReLU, store.

    ``sums`` points at the first vector's products, ``sums_row`` elements per tile, ``sums_step`` per point.
    """
    lanes = cut.lanes
    with m.body(
        "results", sums="f32*", sums_row="int", sums_step="int", turned="f32*", bias="f32*", dest="f32*",
        spoilt="i32*", **Band.arguments(),
    ) as f:  # fmt: skip
        band = Band(f.image, f.row, f.column, f.images, f.rows, f.columns)
        middle = f.scratch(F32, shape.rows.step * shape.columns.points * lanes)
        check = f.variable(f.zeros(lanes))
        with f.loop(f.begin, f.end) as vector:
            out = _Results(f, shape, cut, band, vector, check)
            out.transform(f.sums + (vector - f.begin) * lanes, middle)
            if not shape.channels_last:
                out.turn()
    f.ir.attributes.add("noinline")
    return f


class _Results:
    """Emits the outputs of one vector of channels over a band."""

    def __init__(self, f: Function, shape: Shape, cut: Cut, band: Band, vector: Value, check: Any) -> None:
        self.f, self.shape, self.cut, self.band, self.check = f, shape, cut, band, check
        self.channel = vector * cut.lanes
        self.left = f.index(shape.dest_channels) - self.channel
        self.whole = shape.dest_channels % cut.lanes == 0
        self.mask = None if self.whole else f.mask_below(self.left, cut.lanes)
        self.first_row, self.first_column = band.row * shape.rows.step, band.column * shape.columns.step
        self.bias = f.bias.load(self.channel, cut.lanes, mask=self.mask) if shape.bias else None

    def transform(self, sums: Pointer, middle: Pointer) -> None:
        """Tiles one by one, into place (channels last) or into ``turned``; marks images that are not finite."""
        f, band, lanes = self.f, self.band, self.cut.lanes
        with f.loop(0, band.images) as image:
            self.check.set(f.zeros(lanes))
            self._image(image, sums, middle)
            bad = self.check.get()
            with f.when(f.any(bad.differs(bad))):
                f.spoilt.store(Value(f, f.irb.trunc(f.index(1).ir, I32)), band.image + image)

    def _image(self, image: Value, sums: Pointer, middle: Pointer) -> None:
        f, shape, band = self.f, self.shape, self.band
        rows, columns, lanes = shape.rows, shape.columns, self.cut.lanes
        with f.loop(0, band.rows) as row, f.loop(0, band.columns) as column:
            tile = (image * band.rows + row) * band.columns + column
            here = sums + tile * f.sums_row

            def load(r: Value | int, c: Value | int, here: Pointer = here) -> Value:
                value: Value = here.load((f.index(r) * columns.points + c) * f.sums_step, lanes)
                return value

            inside = f.index(rows.dest) - (self.first_row + row * rows.step)
            wanted = f.minimum(inside, rows.step) if rows.dest % rows.step else None
            store = self._placing(image, row, column)
            transform(f, rows.matrices.result, columns.matrices.result, middle, load, store, wanted)

    def _placing(self, image: Value, row: Value, column: Value) -> Any:
        f, shape, cut = self.f, self.shape, self.cut
        rows, columns, lanes = shape.rows, shape.columns, cut.lanes
        if shape.channels_last:
            first = self.first_column + column * columns.step
            place = (
                (self.band.image + image) * rows.dest + self.first_row + row * rows.step
            ) * columns.dest + first
            to, pitch, line = (
                f.dest + (place * shape.dest_channels + self.channel),
                shape.dest_channels,
                columns.dest,
            )
            left = f.index(columns.dest) - first
        else:
            line, pitch = cut.plane_columns(shape), lanes
            where = (image * (cut.rows * rows.step) + row * rows.step) * line + column * columns.step
            to = f.turned + where * lanes

        def store(r: Value, c: int, value: Value) -> None:
            value = self._watched(value)
            at = (r * line + c) * pitch
            if not shape.channels_last:
                to.store(value if shape.residual else self._finished(value), at, align=4 * lanes)
                return
            cut_off = c > 0 and columns.dest % columns.step
            with f.when(left > c) if cut_off else contextlib.nullcontext():
                held = to.load(at, lanes, mask=self.mask) if shape.residual else None
                to.store(self._finished(value, held), at, mask=self.mask)

        return store

    def _watched(self, value: Value) -> Value:
        f = self.f
        self.check.set(f.fma(value, f.zeros(value.lanes), self.check.get()))
        return value if self.bias is None else value + self.bias

    def _finished(self, value: Value, residual: Value | None = None) -> Value:
        if residual is not None:
            value = value + residual
        return activated(self.f, value, self.shape.activation)

    def turn(self) -> None:
        """From ``turned`` (channels as lanes) to planes."""
        f, shape, cut, band = self.f, self.shape, self.cut, self.band
        rows, columns, lanes = shape.rows, shape.columns, cut.lanes
        plane, line = rows.dest * columns.dest, cut.plane_columns(shape)
        height = f.minimum(band.rows * rows.step, f.index(rows.dest) - self.first_row)
        width = f.minimum(band.columns * columns.step, f.index(columns.dest) - self.first_column)
        with f.loop(0, band.images) as image, f.loop(0, height) as row, f.loop(0, width, lanes) as column:
            place = (image * (cut.rows * rows.step) + row) * line + column
            at = f.turned + place * lanes
            values = f.transpose([at.load(i * lanes, lanes, align=4 * lanes) for i in range(lanes)])
            mask = f.mask_below(width - column, lanes)
            channel = (band.image + image) * shape.dest_channels + self.channel
            to = f.dest + (
                (channel * rows.dest + self.first_row + row) * columns.dest + self.first_column + column
            )
            for c, value in enumerate(values):
                with contextlib.nullcontext() if self.whole or c == 0 else f.when(self.left > c):
                    if shape.residual:
                        value = self._finished(value, to.load(c * plane, lanes, mask=mask))
                    to.store(value, c * plane, mask=mask)
