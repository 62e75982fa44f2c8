"""Lines of tiles: packed with their padding, channels as lanes, and transformed to points."""

from __future__ import annotations

from dataclasses import dataclass

from convlens.kernels.cpu.codegen import Function, Module, Pointer, Value
from convlens.kernels.cpu.fourier.geometry import Axis, Shape
from convlens.kernels.cpu.fourier.transform import Side

__all__ = ["Pieces", "pieces_body"]


@dataclass(frozen=True)
class Pieces:
    """What is cut into pieces, and where its points go.

    Attributes:
        axes: rows and columns; ``first`` is the place of the first tile, ``source`` the size.
        size: rows and columns of a piece that are not zero.
        channels: of the tensor.
        side: of the products.
        vectors: vectors of channels of a tile's points.
        step: elements from one point to the next.
        scale: factor of every point.
    """

    axes: tuple[Axis, Axis]
    size: tuple[int, int]
    channels: int
    side: Side
    vectors: int
    step: int
    scale: float = 1.0


def pieces_body(m: Module, name: str, shape: Shape, given: Pieces) -> Function:
    """Body over lines of a chunk × vectors of channels; ``line`` is the first line of the chunk."""
    rows, columns = given.axes
    lanes = m.target.lanes
    with m.body(name, source="f32*", to="f32*", buffers="f32*", own="int", line="int") as f:
        packed = f.buffers + f.thread * f.own
        middle = packed + given.size[0] * columns.packed * lanes
        with f.loop(f.begin, f.end) as item:
            vector, number = item % given.vectors, item // given.vectors
            line = f.line + number
            image, down = line // rows.tiles, line % rows.tiles
            _pack(f, shape, given, packed, image, down * rows.step + rows.first, vector * lanes)
            with f.loop(0, columns.tiles) as tile:
                here = packed + tile * (columns.step * lanes)
                there = f.to + ((number * columns.tiles + tile) * given.vectors + vector) * lanes

                def load(row: Value | int, column: int, here: Pointer = here) -> Value:
                    at = (f.index(row) * columns.packed + column) * lanes
                    value: Value = here.load(at, lanes, align=4 * lanes)
                    return value

                def store(point: Value | int, value: Value, there: Pointer = there) -> None:
                    there.store(value, f.index(point) * given.step, align=4 * lanes)

                shape.transform.forward(f, given.side, given.size, load, middle, store, given.scale)
    f.ir.attributes.add("noinline")
    return f


def _pack(
    f: Function, shape: Shape, given: Pieces, packed: Pointer, image: Value, first: Value, channel: Value
) -> None:
    """``packed[row][column][lane]`` of one line of tiles, zeros outside the tensor."""
    lanes = f.target.lanes
    rows, columns = given.axes
    before = max(0, -columns.first)
    skipped = max(0, columns.first)
    inner = max(0, min(columns.source - skipped, columns.packed - before))
    with f.loop(0, given.size[0]) as row:
        y = first + row
        to = packed + row * (columns.packed * lanes)
        with f.when_else((y >= 0) & (y < rows.source)) as (real, outside):
            with real:
                _zeros(f, to, before)
                _zeros(f, to + (before + inner) * lanes, columns.packed - before - inner)
                line = image * (rows.source * columns.source) + y * columns.source + skipped
                _row(f, shape, given, line, image, y, to + before * lanes, inner, channel)
            with outside:
                _zeros(f, to, columns.packed)


def _row(
    f: Function, shape: Shape, given: Pieces, line: Value, image: Value, y: Value, to: Pointer, inner: int,
    channel: Value,
) -> None:  # fmt: skip
    lanes, channels = f.target.lanes, given.channels
    rows, columns = given.axes
    if shape.channels_last:
        mask = None if channels % lanes == 0 else f.mask_below(f.index(channels) - channel, lanes)
        at = f.source + (line * channels + channel)
        with f.loop(0, inner) as x:
            to.store(at.load(x * channels, lanes, mask=mask), x * lanes, align=4 * lanes)
        return
    plane = rows.source * columns.source
    skipped = max(0, columns.first)
    planes = [
        f.source
        + ((image * channels + f.minimum(channel + lane, channels - 1)) * plane + y * columns.source + skipped)
        for lane in range(lanes)
    ]
    with f.loop(0, inner // lanes * lanes, lanes) as x:
        for i, value in enumerate(f.transpose([place.load(x, lanes) for place in planes])):
            to.store(value, (x + i) * lanes, align=4 * lanes)
    if rest := inner % lanes:
        last, mask = inner - rest, f.mask_below(rest, lanes)
        values = f.transpose([place.load(last, lanes, mask=mask) for place in planes])[:rest]
        for i, value in enumerate(values):
            to.store(value, (last + i) * lanes, align=4 * lanes)


def _zeros(f: Function, to: Pointer, count: int) -> None:
    lanes = f.target.lanes
    with f.loop(0, count) as i:
        to.store(f.zeros(lanes), i * lanes, align=4 * lanes)
