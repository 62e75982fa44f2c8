"""Pieces of the source under each tile, padding written out, transformed: tiles × channels per point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convlens.kernels.cpu.codegen import F32, Function, Module, Pointer, Value
from convlens.kernels.cpu.winograd.geometry import Axis, Cut
from convlens.kernels.cpu.winograd.points import Rows
from convlens.kernels.cpu.winograd.transform import transform

__all__ = ["Band", "Layout", "pieces_body"]


@dataclass(frozen=True)
class Band:
    """Where a band begins, in images and tiles, and how many of each it has (run-time values)."""

    image: Any
    row: Any
    column: Any
    images: Any
    rows: Any
    columns: Any

    @staticmethod
    def arguments() -> dict[str, str]:
        """The fields as arguments of a body."""
        return dict.fromkeys(("image", "row", "column", "images", "rows", "columns"), "int")

    @classmethod
    def numbered(cls, f: Function, rows: Axis, columns: Axis, cut: Cut, item: Value, batch: Value) -> Band:
        """Band ``item`` of a batch."""
        down, across = -(-rows.tiles // cut.rows), -(-columns.tiles // cut.columns)
        column, rest = item % across, item // across
        row, image = rest % down * cut.rows, rest // down * cut.images
        column = column * cut.columns
        return cls(
            image, row, column,
            f.minimum(cut.images, batch - image),
            f.minimum(cut.rows, f.index(rows.tiles) - row),
            f.minimum(cut.columns, f.index(columns.tiles) - column),
        )  # fmt: skip

    @property
    def values(self) -> tuple[Any, ...]:
        """The fields, as arguments."""
        return (self.image, self.row, self.column, self.images, self.rows, self.columns)

    @property
    def tiles(self) -> Value:
        """Tiles of the band."""
        tiles: Value = self.images * self.rows * self.columns
        return tiles


@dataclass(frozen=True)
class Layout:
    """Where packed sources and transformed pieces lie, in elements.

    Attributes:
        line: columns of a packed row.
        plane: columns of a packed image.
        stride: from one tile to the next.
        step: from one point to the next.
    """

    line: int
    plane: int
    stride: int
    step: int


def pieces_body(
    m: Module, name: str, axes: tuple[Axis, Axis], down: Rows, across: Rows, channels: int, channels_last: bool,
    layout: Layout,
) -> Function:  # fmt: skip
    """Body over vectors of channels: pack a band's source and transform it, ``down @ piece @ across.T``."""
    rows, columns = axes
    lanes = m.target.lanes
    with m.body(name, source="f32*", packed="f32*", to="f32*", **Band.arguments()) as f:
        band = Band(f.image, f.row, f.column, f.images, f.rows, f.columns)
        middle = f.scratch(F32, len(down) * len(across[0]) * lanes)
        line, plane = layout.line, layout.plane
        with f.loop(f.begin, f.end) as vector:
            packer = _Pack(f, rows, columns, channels, channels_last, line, plane, vector * lanes)
            packer.emit(band)
            with f.loop(0, band.images) as image, f.loop(0, band.rows) as row, f.loop(0, band.columns) as column:
                where = image * plane + row * (rows.step * line) + column * columns.step
                here = f.packed + where * lanes
                tile = (image * band.rows + row) * band.columns + column
                to = f.to + (tile * layout.stride + vector * lanes)

                def load(r: Value | int, c: Value | int, here: Pointer = here) -> Value:
                    value: Value = here.load((f.index(r) * line + c) * lanes, lanes, align=4 * lanes)
                    return value

                def store(r: Value, c: int, value: Value, to: Pointer = to) -> None:
                    to.store(value, (r * len(across) + c) * layout.step, align=4 * lanes)

                transform(f, down, across, middle, load, store)
    f.ir.attributes.add("noinline")
    return f


class _Pack:
    """Emits the copy of a band's source, one vector of channels wide: ``packed[image][row][column][lane]``."""

    def __init__(
        self, f: Function, rows: Axis, columns: Axis, channels: int, channels_last: bool, line: int, plane: int,
        channel: Value,
    ) -> None:  # fmt: skip
        self.f, self.rows, self.columns, self.channels = f, rows, columns, channels
        self.channels_last, self.line, self.plane, self.channel = channels_last, line, plane, channel

    def emit(self, band: Band) -> None:
        """See the class."""
        f, rows, columns, lanes = self.f, self.rows, self.columns, self.f.target.lanes
        height = band.rows * rows.step + (rows.window - 1)
        self.width = band.columns * columns.step + (columns.window - 1)
        self.column = band.column * columns.step + columns.first
        with f.loop(0, band.images) as image, f.loop(0, height) as row:
            y = band.row * rows.step + rows.first + row
            to = f.packed + (image * self.plane + row * self.line) * lanes
            with f.when_else((y >= 0) & (y < rows.source)) as (real, padding):
                with real:
                    self._row(band.image + image, y, to)
                with padding, f.loop(0, self.width) as column:
                    to.store(f.zeros(lanes), column * lanes, align=4 * lanes)

    def _row(self, image: Value, y: Value, to: Pointer) -> None:
        f, lanes, size = self.f, self.f.target.lanes, self.columns.source
        if self.channels_last:
            mask = f.mask_below(f.index(self.channels) - self.channel, lanes)  # none of a vector beyond the last
            at = f.source + (((image * self.rows.source + y) * size + self.column) * self.channels + self.channel)
            low = f.minimum(f.maximum(f.index(0) - self.column, 0), self.width)
            high = f.maximum(low, f.minimum(self.width, f.index(size) - self.column))
            for begin, end in ((f.index(0), low), (high, self.width)):
                with f.loop(begin, end) as column:
                    to.store(f.zeros(lanes), column * lanes, align=4 * lanes)
            with f.loop(low, high) as column:
                to.store(at.load(column * self.channels, lanes, mask=mask), column * lanes, align=4 * lanes)
            return
        with f.loop(0, self.width, lanes) as column:
            x = self.column + column
            mask = f.mask_below(f.index(size) - x, lanes) & f.mask_from(f.index(0) - x, lanes)
            lines = []
            for lane in range(lanes):
                channel = f.minimum(self.channel + lane, self.channels - 1)
                line = f.source + (((image * self.channels + channel) * self.rows.source + y) * size + x)
                lines.append(line.load(0, lanes, mask=mask))
            for i, value in enumerate(f.transpose(lines)):
                to.store(value, (column + i) * lanes, align=4 * lanes)
