"""One tile of a vector of channels: rows to half a spectrum, columns there, multiplied and back, rows back.

Two real rows are one complex line: ``z = x + i·y`` has the spectrum ``Z``, and ``2X[k] = Z[k] + conj Z[-k]``,
``2Y[k] = -i (Z[k] - conj Z[-k])``. The factor 2 of either side of a product is in the windows' scale.
"""

from __future__ import annotations

from collections.abc import Callable

from convlens.kernels.cpu.codegen import I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.depthwise_fourier.geometry import Shape
from convlens.kernels.cpu.depthwise_fourier.lines import Line, load_pair, store_pair
from convlens.kernels.cpu.depthwise_fourier.planes import load_row, store_row
from convlens.kernels.cpu.fourier.butterflies import Complex
from convlens.kernels.cpu.taps import load_taps

__all__ = ["build"]


def build(m: Module, shape: Shape) -> None:
    """Export ``run(source, weight, bias, dest, panels, buffers, spoilt, batch, threads)``.

    ``panels`` holds the windows' spectra, ``buffers`` `Shape.thread_vectors` for each thread; ``spoilt`` becomes 1
    for each image of which a result is not finite.
    """
    rows, columns = Line.of(m, shape.rows.length), Line.of(m, shape.columns.length)
    windows = _windows_body(m, shape, rows, columns)
    planes = _planes_body(m, shape, rows, columns)
    vectors = shape.vectors(m.target.lanes)
    with m.function(
        "run", source="f32*", weight="f32*", bias="f32*", dest="f32*", panels="f32*", buffers="f32*",
        spoilt="i32*", batch="int",
    ) as f:  # fmt: skip
        f.parallel(windows, vectors, f.weight, f.panels, f.buffers, grain=1)
        # all images of one vector of channels before the next: its windows stay in the second-level cache
        items = f.batch * (vectors * shape.tiles)
        f.parallel(
            planes, items, f.source, f.panels, f.bias, f.dest, f.buffers, f.spoilt, f.batch, grain=1
        )  # fmt: skip


class _Tile:
    """Emits the transforms between a thread's buffers."""

    def __init__(self, f: Function, shape: Shape, rows: Line, columns: Line, buffers: Pointer) -> None:
        self.f, self.shape, self.rows, self.columns, self.lanes = f, shape, rows, columns, f.target.lanes
        lanes, wide = self.lanes, columns.length
        self.pair = buffers + f.thread * (shape.thread_vectors(lanes) * lanes)
        self.between = self.pair + 2 * wide * lanes
        self.spectrum = self.between + 2 * max(rows.length, wide) * lanes
        self.middle: Pointer = self.spectrum + 2 * (wide + 1) * lanes
        self.taps = self.middle + shape.middle * lanes

    def rows_forward(self, row: Value) -> None:
        """The pair of rows in `pair` to rows ``row`` and ``row + 1`` of the middle."""
        f, lanes, length = self.f, self.lanes, self.columns.length

        def both(place: Value) -> Complex:
            at = self.pair + place * lanes
            return Complex(at.load(0, lanes, align=4 * lanes), at.load(length * lanes, lanes, align=4 * lanes))

        def keep(c: Value, values: list[Complex]) -> None:
            for d, value in enumerate(values):
                store_pair(f, self.spectrum, c + self.columns.first * d, value)

        self.columns.forward(f, both, self.between, keep)
        store_pair(f, self.spectrum, length, load_pair(f, self.spectrum, 0))
        with f.loop(0, self.shape.half) as k:
            one, other = load_pair(f, self.spectrum, k), load_pair(f, self.spectrum, length - k)
            assert one.re is not None and one.im is not None  # noqa: S101
            assert other.re is not None and other.im is not None  # noqa: S101
            to = self._column(k) + row * (2 * lanes)
            store_pair(f, to, 0, Complex(one.re + other.re, one.im - other.im))
            store_pair(f, to, 1, Complex(one.im + other.im, other.re - one.re))

    def zero_rows(self, row: Value) -> None:
        """Rows ``row`` and ``row + 1`` of the middle."""
        f, lanes = self.f, self.lanes
        with f.loop(0, self.shape.half) as k:
            for part in range(4):
                (self._column(k) + row * (2 * lanes)).store(f.zeros(lanes), part * lanes, align=4 * lanes)

    def columns_to(self, panel: Pointer, scale: float) -> None:
        """Spectrum of the middle, conjugated and scaled, in the order in which `columns_by` meets it."""
        f, second = self.f, self.rows.second
        with f.loop(0, self.shape.half) as k:
            column = self._column(k)

            def keep(c: Value, values: list[Complex], k: Value = k) -> None:
                for d, value in enumerate(values):
                    assert value.re is not None and value.im is not None  # noqa: S101
                    turned = Complex(value.re * scale, value.im * -scale)
                    store_pair(f, panel, (k * self.rows.first + c) * second + d, turned)

            self.rows.forward(f, self._from(column), self.between, keep)

    def columns_by(self, panel: Pointer) -> None:
        """The middle's spectrum times the windows', and back to rows."""
        f, second = self.f, self.rows.second
        with f.loop(0, self.shape.half) as k:
            column = self._column(k)

            def multiply(c: Value, values: list[Complex], k: Value = k) -> None:
                first = (k * self.rows.first + c) * second
                windows = [load_pair(f, panel, first + d) for d in range(second)]
                products = [_product(f, a, b) for a, b in zip(values, windows, strict=True)]
                self.rows.put_back(f, self.between, c, products)

            self.rows.forward(f, self._from(column), self.between, multiply)
            self.rows.backward(f, self.between, self._to(column))

    def rows_backward(self, row: Value) -> None:
        """Rows ``row`` and ``row + 1`` of the middle to the pair of rows in `pair`."""
        f, lanes, length = self.f, self.lanes, self.columns.length
        with f.loop(0, self.shape.half) as k:
            at = self._column(k) + row * (2 * lanes)
            one, other = load_pair(f, at, 0), load_pair(f, at, 1)
            assert one.re is not None and one.im is not None  # noqa: S101
            assert other.re is not None and other.im is not None  # noqa: S101
            # for k = 0 this goes behind the last place, where nobody looks
            store_pair(f, self.spectrum, length - k, Complex(one.re + other.im, other.re - one.im))
            store_pair(f, self.spectrum, k, Complex(one.re - other.im, one.im + other.re))
        with f.loop(0, self.columns.first) as c:
            values = self.columns.strided(f, c, lambda place: load_pair(f, self.spectrum, place))
            self.columns.put_back(f, self.between, c, values)

        def part(place: Value, value: Complex) -> None:
            at = self.pair + place * lanes
            for offset, half in ((0, value.re), (length, value.im)):
                at.store(f.zeros(lanes) if half is None else half, offset * lanes, align=4 * lanes)

        self.columns.backward(f, self.between, part)

    def _column(self, k: Value) -> Pointer:
        return self.middle.at(k * (self.shape.pitch * self.lanes))

    def _from(self, column: Pointer) -> Callable[[Value], Complex]:
        return lambda row: load_pair(self.f, column, row)

    def _to(self, column: Pointer) -> Callable[[Value, Complex], None]:
        return lambda row, value: store_pair(self.f, column, row, value)


def _product(f: Function, a: Complex, b: Complex) -> Complex:
    assert a.re is not None and a.im is not None and b.re is not None and b.im is not None  # noqa: S101
    return Complex(f.fma(a.re, b.re, -(a.im * b.im)), f.fma(a.re, b.im, a.im * b.re))


def _windows_body(m: Module, shape: Shape, rows: Line, columns: Line) -> Function:
    """Body over vectors of channels: the spectra of their windows."""
    lanes, (high, wide) = m.target.lanes, (shape.rows, shape.columns)
    scale = 0.25 / (rows.length * columns.length)
    with m.body("windows", weight="f32*", panels="f32*", buffers="f32*") as f:
        tile = _Tile(f, shape, rows, columns, f.buffers)
        with f.loop(f.begin, f.end) as vector:
            load_taps(f, shape, tile.taps, vector * lanes, f.index(0))
            with f.loop(0, 2 * columns.length) as place:
                tile.pair.store(f.zeros(lanes), place * lanes, align=4 * lanes)
            with f.loop(0, shape.height, 2) as row:
                with f.loop(0, 2) as half, f.loop(0, wide.window) as tap:
                    down = (row + half) // high.dilation
                    real = (down * high.dilation).equals(row + half) & (down < high.window)
                    at = f.select(real, down * wide.window + tap, f.index(0))
                    value = f.select(real, tile.taps.load(at * lanes, lanes, align=4 * lanes), f.zeros(lanes))
                    to = half * columns.length + tap * wide.dilation
                    tile.pair.store(value, to * lanes, align=4 * lanes)
                with f.when_else(row <= (high.window - 1) * high.dilation) as (some, none):
                    with some:
                        tile.rows_forward(row)
                    with none:
                        tile.zero_rows(row)
            tile.columns_to(f.panels + vector * (shape.spectrum * lanes), scale)
    f.ir.attributes.add("noinline")
    return f


def _planes_body(m: Module, shape: Shape, rows: Line, columns: Line) -> Function:
    """Body over vectors of channels × images × tiles: a tile of results."""
    lanes, (high, wide) = m.target.lanes, (shape.rows, shape.columns)
    with m.body(
        "planes",
        source="f32*",
        panels="f32*",
        bias="f32*",
        dest="f32*",
        buffers="f32*",
        spoilt="i32*",
        batch="int",
    ) as f:
        tile = _Tile(f, shape, rows, columns, f.buffers)
        check = f.variable(f.zeros(lanes))
        with f.loop(f.begin, f.end) as item:
            number, rest = item % shape.tiles, item // shape.tiles
            image, channel = rest % f.batch, rest // f.batch * lanes
            top, left = number // wide.tiles * high.step, number % wide.tiles * wide.step
            with f.loop(0, shape.height, 2) as row:
                source = top + row + high.first
                with f.when_else((source + 1 >= 0) & (source < high.source) & (row < high.length)) as (some, none):
                    with some:
                        for half in range(2):
                            to = tile.pair + half * columns.length * lanes
                            load_row(f, shape, to, image, channel, source + half, left + wide.first)
                        tile.rows_forward(row)
                    with none:
                        tile.zero_rows(row)
            tile.columns_by(f.panels + channel * shape.spectrum)
            check.set(f.zeros(lanes))
            height = f.minimum(high.step, f.index(high.dest) - top)
            with f.loop(0, height, 2) as row:
                tile.rows_backward(row)
                for half in range(2):
                    with f.when(row + half < height):
                        given = tile.pair + half * columns.length * lanes
                        store_row(f, shape, given, image, channel, top + row + half, left, check)
            bad = check.get()
            with f.when(f.any(bad.differs(bad))):
                f.spoilt.store(Value(f, f.irb.trunc(f.index(1).ir, I32)), image)
    f.ir.attributes.add("noinline")
    return f
