"""Rows between a tensor's own order and buffers with 4, 8 or 16 planes side by side, ``[column][lane]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convlens.kernels.cpu.codegen import INT, Function, Pointer, Value
from convlens.kernels.cpu.pooling.geometry import Shape

__all__ = ["Lines", "fill", "vector_type"]


def fill(f: Function, to: Pointer, count: Value | int, value: float) -> None:
    """``count`` columns of one value."""
    lanes = f.target.lanes
    with f.loop(0, count) as i:
        to.store(f.splat(value, lanes), i * lanes, align=4 * lanes)


@dataclass(frozen=True)
class Lines:
    """The planes (or channels) of one group of lanes, in a tensor of ``places`` a plane.

    ``group`` counts groups of lanes: of ``planes`` planes, or, channels last, of all images' channels.
    """

    f: Function
    shape: Shape
    group: Value
    planes: Value
    places: int

    def _first(self) -> Value:
        """Channels last: where the group's first channel of place 0 lies."""
        groups = self.shape.groups(self.f.target.lanes)
        image, part = self.group // groups, self.group % groups
        first: Value = image * (self.places * self.shape.channels) + part * self.f.target.lanes
        return first

    def _mask(self) -> Value | None:
        f, lanes = self.f, self.f.target.lanes
        if self.shape.channels % lanes == 0:
            return None
        part = self.group % self.shape.groups(lanes)
        return f.mask_below(f.index(self.shape.channels) - part * lanes, lanes)

    def load(self, tensor: Pointer, place: Value, width: int, to: Pointer) -> None:
        """``width`` neighbouring places from ``place`` on, to ``to[column][lane]``."""
        f, lanes = self.f, self.f.target.lanes
        if self.shape.channels_last:
            at, mask = tensor + (self._first() + place * self.shape.channels), self._mask()
            with f.loop(0, width) as x:
                to.store(at.load(x * self.shape.channels, lanes, mask=mask), x * lanes, align=4 * lanes)
            return
        last = self.planes - 1
        rows = [
            tensor + (f.minimum(self.group * lanes + lane, last) * self.places + place) for lane in range(lanes)
        ]
        with f.loop(0, width // lanes * lanes, lanes) as x:
            for i, column in enumerate(f.transpose([row.load(x, lanes) for row in rows])):
                to.store(column, (x + i) * lanes, align=4 * lanes)
        if rest := width % lanes:
            x, mask = width - rest, f.mask_below(rest, lanes)
            for i, column in enumerate(f.transpose([row.load(x, lanes, mask=mask) for row in rows])[:rest]):
                to.store(column, (x + i) * lanes, align=4 * lanes)

    def store(self, source: Pointer, tensor: Pointer, place: Value, width: int) -> None:
        """The reverse of `load`; 32-bit integers widen where the tensor's are of 64 bits."""
        f, lanes = self.f, self.f.target.lanes
        if self.shape.channels_last:
            at, mask = tensor + (self._first() + place * self.shape.channels), self._mask()
            with f.loop(0, width) as x:
                value = source.load(x * lanes, lanes, align=4 * lanes)
                at.store(_fitting(f, value, tensor), x * self.shape.channels, mask=mask)
            return
        count = self.planes - self.group * lanes
        rows = [tensor + ((self.group * lanes + lane) * self.places + place) for lane in range(lanes)]
        with f.when_else(count >= lanes) as (whole, some):
            with whole:
                self._store_rows(source, rows, width, None)
            with some:
                self._store_rows(source, rows, width, count)

    def _store_rows(self, source: Pointer, rows: list[Pointer], width: int, count: Value | None) -> None:
        lanes = self.f.target.lanes
        with self.f.loop(0, width // lanes * lanes, lanes) as x:
            self._store_block(source, rows, x, lanes, count)
        if rest := width % lanes:
            self._store_block(source, rows, self.f.index(width - rest), rest, count)

    def _store_block(
        self, source: Pointer, rows: list[Pointer], x: Value, valid: int, count: Value | None
    ) -> None:
        f, lanes = self.f, self.f.target.lanes
        columns = [source.load((x + i) * lanes, lanes, align=4 * lanes) for i in range(valid)]
        columns += [columns[-1]] * (lanes - valid)
        mask = None if valid == lanes else f.mask_below(valid, lanes)
        for lane, value in enumerate(f.transpose(columns)):
            value = _fitting(f, value, rows[lane])
            if count is None or lane == 0:
                rows[lane].store(value, x, mask=mask)
                continue
            with f.when(count > lane):
                rows[lane].store(value, x, mask=mask)


def _fitting(f: Function, value: Value, tensor: Pointer) -> Value:
    """``value``, widened where the tensor holds 64-bit integers."""
    from llvmlite import ir

    if tensor.element_type is not INT:
        return value
    return Value(f, f.irb.sext(value.ir, ir.VectorType(INT, value.lanes)))


def vector_type(element: Any, lanes: int) -> Any:
    """LLVM's type of a vector."""
    from llvmlite import ir

    return ir.VectorType(element, lanes)
