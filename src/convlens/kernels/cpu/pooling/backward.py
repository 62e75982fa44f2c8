"""Pooling backward: every place of the input gathers from the windows that see it, in torch's order of sums."""

from __future__ import annotations

from convlens.kernels.cpu.codegen import I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.pooling.forward import divisors
from convlens.kernels.cpu.pooling.geometry import Shape
from convlens.kernels.cpu.pooling.lines import Lines, fill, vector_type

__all__ = ["backward_values", "build_backward"]


def backward_values(shape: Shape, lanes: int) -> int:
    """Values of one thread's buffers: packed upstream gradients, and the band that they make."""
    _, rows, columns = shape.axes
    groups = shape.backward_groups(lanes)
    return ((groups + rows.back) * shape.choice_line() + groups * rows.stride * columns.size) * lanes


def build_backward(m: Module, shape: Shape) -> None:
    """Export ``backward(g, choice, out, space, groups, planes)``; see `build_forward`."""
    depth, rows, _ = shape.axes
    lanes = m.target.lanes
    height = shape.backward_groups(lanes)
    bands = -(-rows.groups // height)
    arguments = {"g": "f32*", "choice": "i8*", "out": "f32*", "space": "f32*", "planes": "int"}
    with m.body("items", **arguments) as f:
        work = _Backward(f, shape, height)
        with f.loop(f.begin, f.end) as item:
            first, rest = item % bands * height + rows.first_group, item // bands
            work.emit(rest // depth.size, rest % depth.size, first)
    with m.function("backward", **{**arguments, "groups": "int"}) as g:
        g.parallel(f, g.groups * (depth.size * bands), g.g, g.choice, g.out, g.space, g.planes)


class _Backward:
    """Emits one band of the input's gradient of one group of planes."""

    def __init__(self, f: Function, shape: Shape, height: int) -> None:
        self.f, self.shape, self.height, self.lanes = f, shape, height, f.target.lanes
        depth, rows, columns = shape.axes
        self.line = shape.choice_line()
        self.packed = f.space + f.thread * backward_values(shape, self.lanes)
        self.band = self.packed + (height + rows.back) * self.line * self.lanes
        self.deep = depth.window > 1 or depth.stride > 1 or depth.size > 1
        self.divide = None if shape.largest else divisors(f, shape)

    def emit(self, group: Value, plane: Value, first: Value) -> None:
        """Row groups ``first …`` of one plane of the input."""
        f, shape, lanes = self.f, self.shape, self.lanes
        depth, rows, columns = shape.axes
        count = f.minimum(self.height, f.index(rows.first_group + rows.groups) - first)
        if not self.deep:
            self._from_plane(group, f.index(0), f.index(0), first, count)
        else:
            fill(f, self.band, count * (rows.stride * columns.size), 0.0)
            with f.loop(0, depth.window) as step:
                tap = f.index(depth.window - 1) - step
                reached = plane + depth.before - tap * depth.dilation
                whole = (reached >= 0) & (reached % depth.stride).equals(0)
                with f.when(whole & (reached // depth.stride < depth.out)):
                    self._from_plane(group, reached // depth.stride, tap, first, count)
        lines = Lines(f, shape, group, f.planes, shape.places)
        with f.loop(0, count * rows.stride) as line:
            y = first * rows.stride + line - rows.before
            with f.when((y >= 0) & (y < rows.size)):
                source = self.band + line * (columns.size * lanes)
                lines.store(source, f.out, (plane * rows.size + y) * columns.size, columns.size)

    def _from_plane(self, group: Value, plane: Value, tap: Value, first: Value, count: Value) -> None:
        """Add what one plane of windows gives to the band."""
        f, shape = self.f, self.shape
        depth, rows, _ = shape.axes
        self._pack(group, plane, first, count)
        base = (group * depth.out + plane) * rows.out
        with f.loop(0, count) as at:
            for phase in range(rows.stride):
                taps = rows.taps(phase)
                starts = [self.packed + (at + (rows.back - back)) * (self.line * self.lanes) for _, back in taps]
                choices = [self._choices(base, first + at - back) for _, back in taps]
                numbers = [tap * (rows.window * shape.axes[2].window) + k * shape.axes[2].window for k, _ in taps]
                self._row(at * rows.stride + phase, starts, choices, numbers)

    def _choices(self, base: Value, row: Value) -> Pointer:
        """The choices of a row of windows; outside the output any row will do: its upstream gradients are 0."""
        f = self.f
        inside = f.minimum(f.maximum(row, 0), self.shape.axes[1].out - 1)
        choices: Pointer = f.choice + (base + inside) * (self.line * self.lanes)
        return choices

    def _pack(self, group: Value, plane: Value, first: Value, count: Value) -> None:
        """Upstream gradients of the windows that may reach a band, divided for an average; zeros around them."""
        f, shape, lanes = self.f, self.shape, self.lanes
        _, rows, columns = shape.axes
        lines = Lines(f, shape, group, f.planes, shape.results)
        with f.loop(0, count + rows.back) as at:
            row = first + at - rows.back
            to = self.packed + at * (self.line * lanes)
            with f.when_else((row >= 0) & (row < rows.out)) as (real, outside):
                with real:
                    fill(f, to, columns.back, 0.0)
                    inner = to + columns.back * lanes
                    lines.load(f.g, (plane * rows.out + row) * columns.out, columns.out, inner)
                    fill(f, inner + columns.out * lanes, self.line - columns.back - columns.out, 0.0)
                    if self.divide is not None:
                        with f.loop(0, columns.out) as x:
                            value = inner.load(x * lanes, lanes, align=4 * lanes)
                            inner.store(self.divide(value, plane, row, x), x * lanes, align=4 * lanes)
                with outside:
                    fill(f, to, self.line, 0.0)

    def _row(self, line: Value, starts: list[Pointer], choices: list[Pointer], numbers: list[Value]) -> None:
        """One row of the input's gradient, phase by phase along it."""
        f, shape, lanes = self.f, self.shape, self.lanes
        columns = shape.axes[2]
        to = self.band + line * (columns.size * lanes)
        wanted = [f.broadcast(Value(f, f.irb.trunc(number.ir, I32)), lanes) for number in numbers]
        for phase in range(columns.stride):
            taps = columns.taps(phase)
            begin = (phase - columns.before) % columns.stride
            first = (begin + columns.before) // columns.stride
            with f.loop(0, len(range(begin, columns.size, columns.stride))) as step:
                at = (step * columns.stride + begin) * lanes
                total = to.load(at, lanes, align=4 * lanes) if self.deep else f.zeros(lanes)
                for start, choice, number in zip(starts, choices, wanted, strict=True):
                    for k, back in taps:
                        window = step + (first - back)
                        value = start.load((window + columns.back) * lanes, lanes, align=4 * lanes)
                        if shape.largest:
                            inside = f.maximum(window, 0) if first < back else window
                            tap = choice.load(inside * lanes, lanes)
                            wide = Value(f, f.irb.zext(tap.ir, vector_type(I32, lanes)))
                            value = f.select(wide.equals(number + k), value, f.zeros(lanes))
                        total = total + value
                to.store(total, at, align=4 * lanes)
