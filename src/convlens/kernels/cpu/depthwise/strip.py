"""The strip: a padded copy of a band of rows of one plane, in the near cache, where every load may be a vector.

Rows lie ``pitch`` apart, with zeros between them that serve as the right padding of one row and the left
padding of the next. At stride s the columns are dealt into s phases, so that taps read neighbours. Rows outside
the plane are not in the strip: loops leave them out. Zeros are written once per thread, values for each plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convlens.kernels.cpu.codegen import I32, Function, Pointer, Value
from convlens.kernels.cpu.depthwise.geometry import Shape

__all__ = ["Strip"]

_ALIGN = 16


@dataclass(frozen=True)
class Strip:
    """Where things lie in a strip.

    Attributes:
        shape: the convolution.
        band: out rows computed from one strip.
        rows: source rows that it holds.
        lead: zeros before the first row.
        pitch: elements from one row, or phase of a row, to the next.
        size: elements of one strip, all depths and sources.
    """

    shape: Shape
    band: int
    rows: int
    lead: int
    pitch: int
    size: int

    @classmethod
    def of(cls, shape: Shape, band: int) -> Strip:
        """Lay out a strip for ``band`` out rows."""
        _, height, width = shape.in_size
        whole = band >= shape.out_size[1]
        reach = (band - 1) * shape.stride[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1
        rows = height if whole else reach
        step, pad = shape.stride[2], shape.pad[2]
        last = (shape.out_size[2] - 1) * step + (shape.kernel[2] - 1) * shape.dilation[2]
        if step == 1:
            gap = max(pad, last - pad - (width - 1), 0)
            lead, pitch = _rounded(max(pad, 0)), _rounded(width + gap)
        else:
            lead, pitch = 0, _rounded(max(last, width + pad) // step + 1)
        depth_rows = shape.sources * shape.in_size[0] * rows * step
        # unused lanes of the last vector of the last row read past it, by a vector and the taps at most
        slack = _rounded(2 * _ALIGN + last // step + 1)
        return cls(shape, band, rows, lead, pitch, lead + depth_rows * pitch + slack)

    def first_row(self, f: Function, band_start: Value | int) -> Value:
        """Row of the plane that is the strip's first; may lie outside the plane."""
        if self.band >= self.shape.out_size[1]:
            return f.index(0)
        return f.index(band_start) * self.shape.stride[1] - self.shape.pad[1]

    def at(self, base: Pointer, source: Value | int, depth: Value | int, row: Value) -> Pointer:
        """Address of padded column 0 of a row (phase 0); ``row`` counts from the strip's first."""
        f = base.f
        step = self.shape.stride[2]
        line = (f.index(source) * self.shape.in_size[0] + depth) * self.rows + row
        origin = self.lead - self.shape.pad[2] if step == 1 else 0
        return base + (line * (self.pitch * step) + origin)

    def tap(self, column: int) -> int:
        """Offset, from a row's padded column 0, of what tap position ``column`` reads for out column 0."""
        step = self.shape.stride[2]
        return column % step * self.pitch + column // step

    def clear(self, f: Function, base: Pointer) -> None:
        """Zero the whole strip."""
        lanes = f.target.lanes
        zero = f.zeros(lanes)
        with f.loop(0, self.size, lanes) as i:  # a size is a multiple of any vector's
            base.store(zero, i)

    def fill(self, f: Function, base: Pointer, plane: Pointer, source: Value | int, first: Value) -> None:
        """Copy the rows of one source plane that the strip holds; ``first`` as from `first_row`."""
        depth, height, width = self.shape.in_size
        begin, end = f.maximum(first, 0), f.minimum(first + self.rows, height)
        if self.band >= self.shape.out_size[1]:
            begin, end = f.index(0), f.index(height)
        with f.loop(0, depth) as d, f.loop(begin, end) as row:
            line = plane + (d * height + row) * width
            into = self.at(base, source, d, row - first)
            if self.shape.stride[2] == 1:
                self._copy_row(f, line, into + self.shape.pad[2])
            else:
                for phase in range(self.shape.stride[2]):
                    self._copy_phase(f, line, into + phase * self.pitch, phase)

    def _copy_row(self, f: Function, line: Pointer, into: Pointer) -> None:
        def vector(i: Value | int, count: int) -> None:
            lanes = f.target.lanes
            mask = f.mask_below(count, lanes) if count < lanes else None
            into.store(line.load(i, lanes, mask=mask), i)

        _over_columns(f, self.shape.in_size[2], vector)

    def _copy_phase(self, f: Function, line: Pointer, into: Pointer, phase: int) -> None:
        step, pad = self.shape.stride[2], self.shape.pad[2]
        start = max(0, -((phase - pad) // step))  # first place of this phase that lies in the row
        column = step * start + phase - pad
        count = -(-(self.shape.in_size[2] - column) // step)
        if count <= 0:
            return
        table = _steps(f, step) if step > 2 else None

        def vector(i: Value | int, left: int) -> None:
            lanes = f.target.lanes
            read = line + (f.index(i) * step + column)
            mask = f.mask_below(left, lanes) if left < lanes else None
            if table is not None:
                value = f.gather(read, table, mask)
            else:
                value = _every_second(f, read, min(left, lanes))
            into.store(value, f.index(i) + start, mask=mask)

        _over_columns(f, count, vector)


def _over_columns(f: Function, count: int, vector: Any) -> None:
    """``vector(i, remaining)`` over columns: looped while whole vectors remain, then the tail."""
    lanes = f.target.lanes
    whole = count // lanes * lanes
    if whole > 8 * lanes:
        with f.loop(0, whole, lanes) as i:
            vector(i, 2 * lanes)
    else:
        for place in range(0, whole, lanes):
            vector(place, 2 * lanes)
    if count > whole:
        vector(whole, count - whole)


def _every_second(f: Function, read: Pointer, count: int) -> Value:
    """Elements 0, 2, … of ``read``, ``count`` of them; nothing behind the last wanted one is touched."""
    lanes, there = f.target.lanes, 2 * count - 1
    if count == lanes:  # the second vector starts one early, so that it ends on the last wanted element
        low, high = read.load(0, lanes), read.load(lanes - 1, lanes)
        picks = [2 * i if 2 * i < lanes else 2 * i + 1 for i in range(lanes)]
        return f.shuffle(low, high, picks)
    low = read.load(0, lanes, mask=f.mask_below(there, lanes) if there < lanes else None)
    high = read.load(lanes, lanes, mask=f.mask_below(there - lanes, lanes)) if there > lanes else f.zeros(lanes)
    return f.shuffle(low, high, [2 * i for i in range(lanes)])


def _steps(f: Function, step: int) -> Value:
    return f.iota(f.target.lanes) * f.splat(step, f.target.lanes, I32)


def _rounded(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN
