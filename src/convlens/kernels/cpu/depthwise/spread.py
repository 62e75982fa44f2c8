"""The input gradient at a stride: every phase of the columns is a convolution of its own, interleaved on storing.

Place u (counted from the padded edge) is ``step·i + phase``; the taps of its phase lie ``step`` apart and read
the gradient at ``i - shift``. All phases of a run of i are summed together, so each loaded vector of the
gradient feeds them all, and the result is written in whole vectors.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from convlens.kernels.cpu.codegen import Function, Module, Pointer, Value, Variable
from convlens.kernels.cpu.depthwise.geometry import Shape, Triple
from convlens.kernels.cpu.depthwise.rows import band_for
from convlens.kernels.cpu.depthwise.strip import Strip

__all__ = ["build", "strip_for"]


def _runs(shape: Shape) -> Shape:
    """The gradient as the source of a stride-1 convolution over i: what `Strip` lays out. ``shape`` is forward."""
    firsts, shifts, counts = [], [], []
    for axis in range(3):
        step, pad = shape.stride[axis], shape.pad[axis]
        firsts.append(pad // step)
        shifts.append((shape.kernel[axis] - 1) * shape.dilation[axis] // step)
        counts.append((shape.in_size[axis] - 1 + pad) // step - pad // step + 1)
    pads = tuple(shift - first for shift, first in zip(shifts, firsts, strict=True))
    kernel: Triple = (shifts[0] + 1, shifts[1] + 1, shifts[2] + 1)
    return replace(
        shape,
        sources=shape.outs,
        outs=1,
        in_size=shape.out_size,
        out_size=(counts[0], counts[1], counts[2]),
        kernel=kernel,
        stride=(1, 1, 1),
        pad=(pads[0], pads[1], pads[2]),
        dilation=(1, 1, 1),
        bias=False,
        activation="none",
    )


@cache
def strip_for(shape: Shape, l2_bytes: int) -> Strip:
    """The strip of a forward shape's gradient."""
    runs = _runs(shape)
    return Strip.of(runs, band_for(runs, 1, l2_bytes))


def build(m: Module, shape: Shape) -> None:
    """``planes(g, w, x, work, batch)`` for the forward ``shape``; ``work`` holds a strip for each thread."""
    strip = strip_for(shape, m.target.l2_bytes)
    runs, band = strip.shape, strip.band
    bands = -(-runs.out_size[1] // band)
    with m.body("items", g="f32*", w="f32*", x="f32*", work="f32*") as f:
        base = f.work + f.thread * strip.size
        strip.clear(f, base)
        with f.loop(f.begin, f.end) as item:
            plane = item // bands if bands > 1 else item
            start = f.index(0)
            if bands > 1:
                start = f.minimum((item % bands) * band, runs.out_size[1] - band)
            _Plane(f, shape, strip, base, plane, start).emit()
    items = f
    with m.function("planes", g="f32*", w="f32*", x="f32*", work="f32*", batch="int") as f:
        f.parallel(items, f.batch * (shape.channels * bands), f.g, f.w, f.x, f.work)


class _Plane:
    """Emits one work item: a band of the gradient of one channel of one image."""

    def __init__(self, f: Function, shape: Shape, strip: Strip, base: Pointer, plane: Value, start: Value) -> None:
        self.f, self.shape, self.strip, self.base, self.plane, self.start = f, shape, strip, base, plane, start
        self.lanes = f.target.lanes
        self.first = strip.first_row(f, start)
        phases = shape.stride[2]
        self.vectors = -(-strip.shape.out_size[2] // self.lanes)
        self.block = max(1, min(self.vectors, 8, (f.target.registers - 6) // phases))

    def emit(self) -> None:
        f, shape, strip = self.f, self.shape, self.strip
        sources, size = strip.shape.sources, math.prod(shape.out_size)
        with f.loop(0, sources) as source:
            strip.fill(f, self.base, f.g + (self.plane * sources + source) * size, source, self.first)
        depth, height, width = shape.in_size
        step, first = shape.stride[1], shape.pad[1] // shape.stride[1]
        with f.loop(0, depth) as d, f.loop(0, strip.band * step) as place:
            row = (self.start + first) * step + place - shape.pad[1]
            with f.when((row >= 0) & (row < height)):
                line = f.x + ((self.plane * depth + d) * height + row) * width
                self._columns(d, row, line)

    def _columns(self, d: Value, row: Value, line: Pointer) -> None:
        whole, rest = divmod(self.vectors, self.block)
        width = self.block * self.lanes
        if whole == 1:
            self._run(d, row, line, 0, self.block)
        elif whole:
            with self.f.loop(0, whole * width, width) as column:
                self._run(d, row, line, column, self.block)
        if rest:
            self._run(d, row, line, whole * width, rest)

    def _run(self, d: Value, row: Value, line: Pointer, column: Value | int, vectors: int) -> None:
        f, shape, strip = self.f, self.shape, self.strip
        zero = f.zeros(self.lanes)
        acc = [[f.variable(zero) for _ in range(vectors)] for _ in range(shape.stride[2])]
        area = shape.kernel[1] * shape.kernel[2]
        with f.loop(0, strip.shape.sources) as source, f.loop(0, shape.kernel[0]) as tap_d:
            from_d, there = self._origin(d, tap_d, 0)
            with f.when(there), f.loop(0, shape.kernel[1]) as tap_h:
                from_row, there = self._origin(row, tap_h, 1)
                with f.when(there):
                    channel = self.plane % shape.channels
                    w = f.w + ((channel * strip.shape.sources + source) * shape.taps + tap_d * area)
                    read = strip.at(self.base, source, from_d, from_row - self.first) + column
                    self._taps(acc, w + tap_h * shape.kernel[2], read)
        self._store(acc, line, column)

    def _origin(self, place: Value, tap: Value, axis: int) -> tuple[Value, Value]:
        """Where in the gradient a tap reads for ``place``, and whether it does."""
        step = self.shape.stride[axis]
        reach = place + self.shape.pad[axis] - tap * self.shape.dilation[axis]
        origin = reach // step
        return origin, (reach >= 0) & (reach % step).equals(0) & (origin < self.shape.out_size[axis])

    def _taps(self, acc: list[list[Variable]], w: Pointer, read: Pointer) -> None:
        shape, step = self.shape, self.shape.stride[2]
        furthest = self.strip.shape.kernel[2] - 1
        by_shift: dict[int, list[tuple[int, int]]] = {}
        for tap in range(shape.kernel[2]):
            shift, phase = divmod(tap * shape.dilation[2], step)
            by_shift.setdefault(shift, []).append((phase, tap))
        for shift, users in by_shift.items():
            weights = [(phase, w.broadcast(tap, self.lanes)) for phase, tap in users]
            for v in range(len(acc[0])):
                value = read.load(furthest - shift + v * self.lanes, self.lanes)
                for phase, weight in weights:
                    acc[phase][v].set(self.f.fma(value, weight, acc[phase][v].get()))

    def _store(self, acc: list[list[Variable]], line: Pointer, column: Value | int) -> None:
        """Interleave the phases; lanes before the first and after the last column of the row stay unwritten."""
        f, step, lanes, width = self.f, self.shape.stride[2], self.lanes, self.shape.in_size[2]
        origin = self.shape.pad[2] // step * step - self.shape.pad[2]  # 0, or negative above -step
        for v in range(len(acc[0])):
            phases = [acc[phase][v].get() for phase in range(step)]
            for part in range(step):
                begin = (v * step + part) * lanes + origin
                value = self._interleaved(phases, part)
                if isinstance(column, int):
                    begin += column * step
                    if begin >= width:
                        continue
                    inside = begin >= 0 and begin + lanes <= width
                    place = f.index(begin)
                else:
                    inside, place = False, column * step + begin
                mask = None if inside else self._between(place, width)
                line.store(value, place, mask=mask)

    def _interleaved(self, phases: list[Value], part: int) -> Value:
        lanes, step = self.lanes, len(phases)
        wanted = [divmod(part * lanes + lane, step) for lane in range(lanes)]
        result = phases[0]
        picks = [place for place, _ in wanted]
        for phase in range(1, step):
            picks = [
                lanes + place if at == phase else pick for pick, (place, at) in zip(picks, wanted, strict=True)
            ]
            result = self.f.shuffle(result, phases[phase], picks)
            picks = list(range(lanes))
        return result if step > 1 else self.f.shuffle(result, result, picks)

    def _between(self, place: Value, width: int) -> Value:
        """Lanes whose column ``place + lane`` lies in the row."""
        upto, before = (self.f.mask_below(count, self.lanes) for count in (width - place, 0 - place))
        return upto ^ before
