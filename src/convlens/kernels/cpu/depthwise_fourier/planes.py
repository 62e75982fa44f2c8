"""Rows of planes, channels as lanes: into a buffer with zeros around them, and back with bias and ReLU."""

from __future__ import annotations

from convlens.kernels.cpu.codegen import Function, Pointer, Value, Variable
from convlens.kernels.cpu.depthwise_fourier.geometry import Shape
from convlens.kernels.cpu.direct.pack import turned_store

__all__ = ["load_row", "store_row"]


def load_row(
    f: Function, shape: Shape, to: Pointer, image: Value, channel: Value, row: Value, left: Value
) -> None:
    """Source places ``left …`` of a row, as many as a tile is wide; zeros outside the plane.

    Args:
        f: function that is emitted.
        shape: the convolution.
        to: ``[place][lane]``.
        image: number of the image.
        channel: first channel.
        row: of the source; may lie outside.
        left: first place; may lie outside.
    """
    lanes, columns = f.target.lanes, shape.columns
    inside = (row >= 0) & (row < shape.rows.source)
    begin = f.minimum(f.maximum(f.index(0) - left, 0), columns.length)
    end = f.maximum(begin, f.minimum(f.index(columns.source) - left, columns.length))
    begin, end = f.select(inside, begin, f.index(columns.length)), f.select(inside, end, f.index(columns.length))
    for low, high in ((f.index(0), begin), (end, f.index(columns.length))):
        with f.loop(low, high) as x:
            to.store(f.zeros(lanes), x * lanes, align=4 * lanes)
    if shape.channels_last:
        line = (image * shape.rows.source + row) * columns.source + left
        at = f.source + (line * shape.channels + channel)
        mask = None if shape.channels % lanes == 0 else f.mask_below(f.index(shape.channels) - channel, lanes)
        with f.loop(begin, end) as x:
            to.store(at.load(x * shape.channels, lanes, mask=mask), x * lanes, align=4 * lanes)
        return
    plane = shape.rows.source * columns.source
    lines = [
        f.source
        + ((image * shape.channels + f.minimum(channel + lane, shape.channels - 1)) * plane
           + row * columns.source + left)
        for lane in range(lanes)
    ]  # fmt: skip
    whole = begin + (end - begin) // lanes * lanes
    with f.loop(begin, whole, lanes) as x:
        for i, value in enumerate(f.transpose([line.load(x, lanes) for line in lines])):
            to.store(value, (x + i) * lanes, align=4 * lanes)
    with f.when(whole < end):
        mask = f.mask_below(end - whole, lanes)
        for i, value in enumerate(f.transpose([line.load(whole, lanes, mask=mask) for line in lines])):
            with f.when(whole + i < end):
                to.store(value, (whole + i) * lanes, align=4 * lanes)


def store_row(
    f: Function, shape: Shape, given: Pointer, image: Value, channel: Value, row: Value, left: Value,
    check: Variable,
) -> None:  # fmt: skip
    """A row of a tile's results to its places; ``check`` becomes NaN where one is not finite."""
    lanes, columns = f.target.lanes, shape.columns
    left_over = f.index(shape.channels) - channel
    mask = None if shape.channels % lanes == 0 else f.mask_below(left_over, lanes)
    bias = f.bias.load(channel, lanes, mask=mask) if shape.bias else None
    width = f.minimum(columns.step, f.index(columns.dest) - left)

    def finished(x: Value) -> Value:
        value = given.load(x * lanes, lanes, align=4 * lanes)
        check.set(f.fma(value, f.zeros(lanes), check.get()))
        value = value if bias is None else value + bias
        return f.max(value, 0.0) if shape.relu else value

    if shape.channels_last:
        at = f.dest + (((image * shape.rows.dest + row) * columns.dest + left) * shape.channels + channel)
        with f.loop(0, width) as x:
            at.store(finished(x), x * shape.channels, mask=mask)
        return
    plane = shape.rows.dest * columns.dest
    to = f.dest + ((image * shape.channels + channel) * plane + row * columns.dest + left)
    whole = width // lanes * lanes
    with f.loop(0, whole, lanes) as x:
        turned_store(f, [finished(x + i) for i in range(lanes)], to + x, plane, left_over)
    rest = columns.step % lanes if columns.tiles == 1 else None
    if rest == 0:
        return
    with f.loop(whole, width) as x:
        value = finished(x)
        for lane in range(lanes):
            with f.when(left_over > lane):
                to.store(f.extract(value, lane), x + lane * plane)
