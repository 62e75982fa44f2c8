"""Pooling forward: rows packed with their padding, then every window a few aligned loads."""

from __future__ import annotations

import itertools
from typing import Any

from convlens.kernels.cpu.codegen import F32, I8, I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.pooling.geometry import Shape
from convlens.kernels.cpu.pooling.lines import Lines, fill, vector_type

__all__ = ["build_forward", "divisors", "forward_values"]

_UNROLLED = 32  # taps written out; of larger windows one row is, at most


def forward_values(shape: Shape, lanes: int) -> int:
    """Values of one thread's buffers: the packed band, a row of results, a row of positions."""
    depth, rows, columns = shape.axes
    band = depth.window * ((shape.forward_rows(lanes) - 1) * rows.stride + rows.reach)
    return (band * columns.span + 2 * columns.out) * lanes


def build_forward(m: Module, shape: Shape, keep: bool, positions: bool) -> None:
    """Export ``forward(x, out, choice, where, space, groups, planes)``.

    ``choice`` (uint8, with ``keep``) receives the winning tap of each window, ``where`` (int64, with
    ``positions``) its place in the plane; ``groups`` counts groups of lanes.
    """
    depth, rows, _ = shape.axes
    lanes = m.target.lanes
    height = shape.forward_rows(lanes)
    bands = -(-rows.out // height)
    arguments = {"x": "f32*", "out": "f32*", "choice": "i8*", "where": "int*", "space": "f32*", "planes": "int"}
    with m.body("items", **arguments) as f:
        work = _Forward(f, shape, keep, positions, height)
        with f.loop(f.begin, f.end) as item:
            first, rest = item % bands * height, item // bands
            work.emit(rest // depth.out, rest % depth.out, first)
    with m.function("forward", **{**arguments, "groups": "int"}) as g:
        g.parallel(f, g.groups * (depth.out * bands), g.x, g.out, g.choice, g.where, g.space, g.planes)


class _Forward:
    """Emits one band of windows of one group of planes."""

    def __init__(self, f: Function, shape: Shape, keep: bool, positions: bool, height: int) -> None:
        self.f, self.shape, self.keep, self.positions, self.height = f, shape, keep, positions, height
        self.lanes = f.target.lanes
        depth, rows, columns = shape.axes
        self.line = columns.span * self.lanes
        self.sheet = ((height - 1) * rows.stride + rows.reach) * self.line
        self.packed = f.space + f.thread * forward_values(shape, self.lanes)
        self.row = self.packed + depth.window * self.sheet
        self.row_where = (self.row + columns.out * self.lanes).cast(I32)
        self.divide = None if shape.largest else divisors(f, shape)
        self.offsets = f.module.constant("offsets", I32, _offsets(shape)) if positions else None

    def emit(self, group: Value, plane: Value, first: Value) -> None:
        """Windows ``first …`` of one output plane."""
        f, shape = self.f, self.shape
        depth, rows, columns = shape.axes
        count = f.minimum(self.height, f.index(rows.out) - first)
        self._pack(Lines(f, shape, group, f.planes, shape.places), plane, first, count)
        results = Lines(f, shape, group, f.planes, shape.results)
        with f.loop(0, count) as at:
            row = first + at
            source = self.packed + at * (rows.stride * self.line)
            above = (group * depth.out + plane) * rows.out + row
            place = (plane * rows.out + row) * columns.out
            with f.loop(0, columns.out) as column:
                self._window(source + column * (columns.stride * self.lanes), plane, row, column, above)
            results.store(self.row, f.out, place, columns.out)
            if self.positions:
                results.store(self.row_where, f.where, place, columns.out)

    def _pack(self, lines: Lines, plane: Value, first: Value, count: Value) -> None:
        """The rows under a band of windows, padding written out."""
        f, shape, lanes = self.f, self.shape, self.lanes
        depth, rows, columns = shape.axes
        padding = float("-inf") if shape.largest else 0.0
        inner = min(columns.size, columns.span - columns.before)
        height = (count - 1) * rows.stride + rows.reach
        with f.loop(0, depth.window) as tap, f.loop(0, height) as line:
            z = plane * depth.stride + tap * depth.dilation - depth.before
            y = first * rows.stride + line - rows.before
            to = self.packed + (tap * self.sheet + line * self.line)
            inside = (z >= 0) & (z < depth.size) & (y >= 0) & (y < rows.size)
            with f.when_else(inside) as (real, outside):
                with real:
                    fill(f, to, columns.before, padding)
                    lines.load(f.x, (z * rows.size + y) * columns.size, inner, to + columns.before * lanes)
                    end = columns.before + inner
                    fill(f, to + end * lanes, columns.span - end, padding)
                with outside:
                    fill(f, to, columns.span, padding)

    def _window(self, source: Pointer, plane: Value, row: Value, column: Value, above: Value) -> None:
        f, lanes = self.f, self.lanes
        if not self.shape.largest:
            self.row.store(self._sum(source, plane, row, column), column * lanes, align=4 * lanes)
            return
        if not (self.keep or self.positions):
            self.row.store(self._largest(source), column * lanes, align=4 * lanes)
            return
        value, tap = self._largest_and_tap(source, plane, row, column)
        self.row.store(value, column * lanes, align=4 * lanes)
        if self.keep:
            at = (above * self.shape.choice_line() + column) * lanes
            narrow = Value(f, f.irb.trunc(tap.ir, vector_type(I8, lanes)))
            f.choice.store(narrow, at)
        if self.positions:
            self.row_where.store(self._position(tap, plane, row, column), column * lanes, align=4 * lanes)

    def _each_tap(self, source: Pointer, visit: Any) -> None:
        """``visit(values, first tap)`` for rows of taps, all written out or in loops."""
        f, lanes = self.f, self.lanes
        depth, rows, columns = self.shape.axes
        step = columns.dilation * lanes
        if self.shape.taps <= _UNROLLED:
            for tap, (down, across) in enumerate(itertools.product(range(depth.window), range(rows.window))):
                at = source + (down * self.sheet + across * rows.dilation * self.line)
                visit([at.load(x * step, lanes, align=4 * lanes) for x in range(columns.window)],
                      f.index(tap * columns.window))  # fmt: skip
            return
        with f.loop(0, depth.window) as z, f.loop(0, rows.window) as y:
            at = source + (z * self.sheet + y * (rows.dilation * self.line))
            number = (z * rows.window + y) * columns.window
            if columns.window <= _UNROLLED:
                visit([at.load(x * step, lanes, align=4 * lanes) for x in range(columns.window)], number)
                return
            with f.loop(0, columns.window) as x:
                visit([at.load(x * step, lanes, align=4 * lanes)], number + x)

    def _largest(self, source: Pointer) -> Value:
        """The largest value; NaN where there is one, kept apart so that each tap is one maximum."""
        f, lanes = self.f, self.lanes
        best, bad = f.variable(f.splat(float("-inf"), lanes)), f.variable(f.zeros(lanes))

        def visit(values: list[Value], tap: Value) -> None:
            for value in values:
                best.set(f.select(value > best.get(), value, best.get()))
            for a, b in zip(values[::2], [*values[1::2], values[-1]], strict=False):
                unordered = Value(f, f.irb.fcmp_unordered("uno", a.ir, b.ir))
                bad.set(f.select(unordered, f.splat(float("nan"), lanes), bad.get()))

        self._each_tap(source, visit)
        spoilt = bad.get()
        return f.select(spoilt.differs(spoilt), spoilt, best.get())

    def _largest_and_tap(self, source: Pointer, plane: Value, row: Value, column: Value) -> tuple[Value, Value]:
        """A later value wins if it is larger or NaN, as in torch; padding never wins."""
        f, lanes = self.f, self.lanes
        start = self._first_tap(plane, row, column)
        narrow = Value(f, f.irb.trunc(start.ir, I32))
        best, which = f.variable(f.splat(float("-inf"), lanes)), f.variable(f.broadcast(narrow, lanes))

        def visit(values: list[Value], tap: Value) -> None:
            first = f.broadcast(Value(f, f.irb.trunc(tap.ir, I32)), lanes)
            for i, value in enumerate(values):
                wins = (value > best.get()) | value.differs(value)
                best.set(f.select(wins, value, best.get()))
                which.set(f.select(wins, first + i if i else first, which.get()))

        self._each_tap(source, visit)
        return best.get(), which.get()

    def _first_tap(self, plane: Value, row: Value, column: Value) -> Value:
        """The first tap inside the input: the winner where nothing is larger than minus infinity."""
        f = self.f
        tap: Value = f.index(0)
        for axis, place in zip(self.shape.axes, (plane, row, column), strict=True):
            tap = tap * axis.window
            if axis.before:
                short = f.maximum(f.index(axis.before) - place * axis.stride, 0)
                tap = tap + (short + (axis.dilation - 1)) // axis.dilation
        return tap

    def _position(self, tap: Value, plane: Value, row: Value, column: Value) -> Value:
        """Place of a tap in the unpadded plane."""
        f, origin = self.f, self.f.index(0)
        for axis, place in zip(self.shape.axes, (plane, row, column), strict=True):
            origin = origin * axis.size + place * axis.stride - axis.before
        start = f.broadcast(Value(f, f.irb.trunc(origin.ir, I32)), self.lanes)
        return start + f.gather(Pointer(f, self.offsets, I32), tap)

    def _sum(self, source: Pointer, plane: Value, row: Value, column: Value) -> Value:
        f = self.f
        total = f.variable(f.zeros(self.lanes))

        def visit(values: list[Value], tap: Value) -> None:
            for value in values:
                total.set(total.get() + value)

        self._each_tap(source, visit)
        assert self.divide is not None  # noqa: S101
        mean: Value = self.divide(total.get(), plane, row, column)
        return mean


def _offsets(shape: Shape) -> list[int]:
    """Places from a window's origin to each tap."""
    depth, rows, columns = shape.axes
    taps = itertools.product(range(depth.window), range(rows.window), range(columns.window))
    return [
        ((z * depth.dilation) * rows.size + y * rows.dilation) * columns.size + x * columns.dilation
        for z, y, x in taps
    ]


def divisors(f: Function, shape: Shape) -> Any:
    """``divide(value, plane, row, column)`` by what an average divides by there."""
    counts = [axis.counts(shape.include_pad) for axis in shape.axes]
    lanes = f.target.lanes
    if shape.divisor or all(len(set(count)) == 1 for count in counts):
        number = shape.divisor or counts[0][0] * counts[1][0] * counts[2][0]
        return lambda value, plane, row, column: value / f.splat(float(number), lanes)
    tables = [
        Pointer(f, f.module.constant(f"counts{axis}", F32, [float(c) for c in count]), F32)
        for axis, count in enumerate(counts)
    ]

    def divide(value: Value, plane: Value, row: Value, column: Value) -> Value:
        number = tables[0].load(plane) * tables[1].load(row) * tables[2].load(column)
        return value / f.broadcast(number, lanes)

    return divide
