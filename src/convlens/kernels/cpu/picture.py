"""One small kernel over a whole picture of interleaved channels, in one pass: bytes or floats in, floats out.

A band of rows is one item of work. Its sources are read once for all its rows, as they lie (bytes turn numbers in
registers), and a row and a column filter meet in a buffer of one band, which the second-level cache holds. Sizes
and weights vary between calls; which taps there are is a constant of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from llvmlite import ir
from torch import Tensor

from convlens.kernels.cpu.codegen import F32, I8, Function, Module, Pointer, Value, compiled, threads

__all__ = ["LEAST_EDGE", "MOST_ROWS", "correlate_apart", "correlate_inside"]

MOST_ROWS = 40
"""Rows of a kernel that code is written out for."""
LEAST_EDGE = 16
"""Pixels at either side that `correlate_inside` leaves out; kernels reach at most so far."""

_LINE = 64  # bytes of a cache line
_BAND_BYTES = 1 << 20  # of the buffer between the two filters
_AT_ONCE = 4
_SHORT = 12  # up to so many weights are kept in registers
_ELEMENTS = {torch.uint8: "i8*", torch.float32: "f32*"}


@dataclass(frozen=True, slots=True)
class _Apart:
    """A column and a row filter: which of their places are not zero, and the rows of a band."""

    tall: int
    column: tuple[int, ...]
    wide: int
    along: tuple[int, ...]
    channels: int
    band: int
    element: str
    stream: bool


@dataclass(frozen=True, slots=True)
class _Inside:
    """A kernel's places (row, column) that are not zero, and the rows of a band."""

    tall: int
    taps: tuple[tuple[int, int], ...]
    left: int
    channels: int
    band: int
    element: str
    stream: bool


def correlate_apart(
    picture: Tensor, out: Tensor, column: Sequence[float], along: Sequence[float], down: Sequence[int],
    across: Sequence[int], channels: int,
) -> bool:  # fmt: skip
    """Fill ``out`` with ``picture`` filtered by ``column`` along its height, then by ``along`` along its width.

    Args:
        picture: uint8 or float32 ``(height, width · channels)``, contiguous.
        out: float32, the same shape, contiguous.
        column: weights from the top.
        along: weights from the left.
        down: for each row of the padded picture the row it is taken from, −1 for zeros.
        across: the same for its columns of pixels.
        channels: values of a pixel.

    Returns:
        Whether it was done; False for kernels and pictures that there is no code for.
    """
    height, length = picture.shape
    left = len(along) // 2
    reach = (len(along) - 1) * channels
    pitch = -(-length // 16) * 16 + -(-(reach + 16) // 16) * 16
    pitch += 16 * (pitch % 1024 == 0)  # lines at multiples of 4 KiB would share their places in the cache
    fitting = [rows for rows in (16, 8, 4, 2, 1) if rows <= height and 4 * rows * pitch <= _BAND_BYTES]
    if len(column) > MOST_ROWS or not fitting or picture.dtype not in _ELEMENTS:
        return False
    wanted = 8 if len(column) < 8 and fitting[0] > 8 else fitting[0]
    shape = _Apart(
        len(column), _used(column), len(along), _used(along), channels, wanted, _ELEMENTS[picture.dtype],
        _streams(out),
    )  # fmt: skip
    width = length // channels
    beyond = torch.tensor([*across[:left], *across[left + width :]] or [0], dtype=torch.int64)
    rows, keep = _addresses(picture, down)
    team = threads()
    space = torch.empty(team * wanted * pitch + 16)
    weights = [torch.tensor([one[k] for k in _used(one)]) for one in (column, along)]
    compiled("cpu.picture.apart", _build_apart, shape=shape).correlate(
        rows.data_ptr(), weights[0].data_ptr(), weights[1].data_ptr(), out.data_ptr(), beyond.data_ptr(),
        -(-space.data_ptr() // _LINE) * _LINE, pitch, length, height, team,
    )  # fmt: skip
    del keep
    return True


def correlate_inside(
    picture: Tensor, out: Tensor, kernel: Tensor, down: Sequence[int], channels: int
) -> tuple[int, int] | None:
    """Fill ``out`` with ``picture`` filtered by a kernel that is no outer product, but for columns at its sides.

    Args:
        picture: uint8 or float32 ``(height, width · channels)``, contiguous.
        out: float32, the same shape, contiguous.
        kernel: float32 ``(kernel_height, kernel_width)``.
        down: for each row of the padded picture the row it is taken from, −1 for zeros.
        channels: values of a pixel.

    Returns:
        First and last pixel (excluded) of each row that are done; None where there is no code.
    """
    height, length = picture.shape
    tall, wide = kernel.shape
    width = length // channels
    inner = (width - 2 * LEAST_EDGE) // 16 * 16
    values = kernel.flatten().tolist()
    used = [k for k, value in enumerate(values) if value != 0] or [0]
    band = next((rows for rows in (8, 4, 2, 1) if rows <= height and rows * len(used) <= 400), 0)
    if tall > MOST_ROWS or wide > LEAST_EDGE or inner < 16 or not band or picture.dtype not in _ELEMENTS:
        return None
    taps = tuple((k // wide, k % wide) for k in used)
    shape = _Inside(tall, taps, wide // 2, channels, band, _ELEMENTS[picture.dtype], _streams(out))
    weights = torch.tensor([values[k] for k in used])
    rows, keep = _addresses(picture, down)
    compiled("cpu.picture.inside", _build_inside, shape=shape).correlate(
        rows.data_ptr(), weights.data_ptr(), out.data_ptr(), LEAST_EDGE * channels, inner * channels, length,
        height, threads(),
    )  # fmt: skip
    del keep
    return LEAST_EDGE, LEAST_EDGE + inner


def _used(weights: Sequence[float]) -> tuple[int, ...]:
    return tuple(k for k, weight in enumerate(weights) if weight != 0) or (0,)


def _streams(out: Tensor) -> bool:
    """Whether every row of the result begins with a cache line."""
    return out.data_ptr() % _LINE == 0 and out.stride(0) * 4 % _LINE == 0


def _addresses(picture: Tensor, down: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where each row of the padded picture lies, and what must live until it is read."""
    zeros = torch.zeros(picture.shape[1], dtype=picture.dtype)
    step = picture.stride(0) * picture.element_size()
    places = torch.tensor(down, dtype=torch.int64)
    found = torch.where(places < 0, zeros.data_ptr(), picture.data_ptr() + places * step)
    return found, zeros


def _build_apart(m: Module, shape: _Apart) -> None:
    """Export ``correlate(rows, column, along, y, beyond, space, pitch, length, height, threads)``."""
    band, left = shape.band, shape.wide // 2
    inset = -(-left * shape.channels // 16) * 16  # so that the middle of a line is aligned
    arguments = {
        "rows": "int*", "column": "f32*", "along": "f32*", "y": "f32*", "beyond": "int*", "space": "f32*",
        "pitch": "int", "length": "int", "height": "int",
    }  # fmt: skip
    with m.body("bands", **arguments) as f:
        lines = f.space + f.thread * (f.pitch * band) + inset
        with f.loop(f.begin, f.end) as item:
            first = f.minimum(item * band, f.height - band)
            _down(f, shape, lines, first)
            with f.loop(0, band) as row:
                line = lines + row * f.pitch
                _beyond(f, shape, line)
                _along(f, shape, line.at(-left * shape.channels), f.y + (first + row) * f.length)
    bands = f
    with m.function("correlate", **arguments) as g:
        items = (g.height + (band - 1)) // band
        g.parallel(
            bands, items, g.rows, g.column, g.along, g.y, g.beyond, g.space, g.pitch, g.length, g.height, grain=1
        )


def _down(f: Function, shape: _Apart, lines: Pointer, first: Value) -> None:
    """The column filter: a band of rows from their sources, each of which is read once."""
    lanes, band = f.target.lanes, shape.band
    sources = _rows(f, first, band + shape.tall - 1, shape.element)
    weights = _Weights(f, f.column, len(shape.column), band)

    def vector(at: Value, mask: Value | None) -> None:
        sums: list[Value | None] = [None] * band
        for i, source in enumerate(sources):
            users = [(i - tap, k) for k, tap in enumerate(shape.column) if 0 <= i - tap < band]
            if users:
                value = _numbers(f, source, at, lanes, mask)
                for row, k in users:
                    sums[row] = _plus(f, sums[row], value, weights[k])
        for row, total in enumerate(sums):
            assert total is not None  # noqa: S101 - every row has all taps
            (lines + f.pitch * row).store(total, at, mask=mask)

    with f.loop(0, f.length // lanes * lanes, lanes) as at:
        vector(at, None)
    rest = f.length % lanes
    with f.when(rest > 0):
        vector(f.length - rest, f.mask_below(rest, lanes))


def _beyond(f: Function, shape: _Apart, line: Pointer) -> None:
    """The pixels to either side of a filtered line, from where they come from."""
    left, right, channels = shape.wide // 2, shape.wide - 1 - shape.wide // 2, shape.channels
    for count, start, table in ((left, f.index(-left * channels), 0), (right, f.length, left)):
        if not count:
            continue
        with f.loop(0, count) as k:
            source = f.beyond.load(k + table)
            for c in range(channels):
                place = line + (start + k * channels + c)
                with f.when_else(source < 0) as (nothing, something):
                    with nothing:
                        place.store(f.number(0.0))
                    with something:
                        place.store(line.load(source * channels + c))


def _along(f: Function, shape: _Apart, line: Pointer, out: Pointer) -> None:
    """The row filter, from a line with its borders to the result."""
    lanes = f.target.lanes
    weights = _Weights(f, f.along, len(shape.along), 2 * _AT_ONCE)

    def block(at: Value, vectors: int, mask: Value | None) -> None:
        sums: list[Value | None] = [None] * vectors
        for k, tap in enumerate(shape.along):
            for v in range(vectors):
                value = line.load(at + (tap * shape.channels + v * lanes), lanes, mask=mask)
                sums[v] = _plus(f, sums[v], value, weights[k])
        _put(out, at, sums, lanes, mask, shape.stream)

    _cover(f, f.length, block)


def _build_inside(m: Module, shape: _Inside) -> None:
    """Export ``correlate(rows, w, y, start, inner, length, height, threads)``."""
    lanes, band = m.target.lanes, shape.band
    arguments = {
        "rows": "int*", "w": "f32*", "y": "f32*", "start": "int", "inner": "int", "length": "int", "height": "int",
    }  # fmt: skip
    columns = sorted({column for _, column in shape.taps})
    number = {tap: k for k, tap in enumerate(shape.taps)}
    with m.body("bands", **arguments) as f:
        weights = _Weights(f, f.w, len(shape.taps), band + 2)
        with f.loop(f.begin, f.end) as item:
            first = f.minimum(item * band, f.height - band)
            sources = _rows(f, first, band + shape.tall - 1, shape.element)
            with f.loop(f.start, f.start + f.inner, lanes) as at:
                sums: list[Value | None] = [None] * band
                for i, source in enumerate(sources):
                    for column in columns:
                        users = [(row, number.get((i - row, column))) for row in range(band)]
                        if all(k is None for _, k in users):
                            continue
                        value = _numbers(f, source, at + (column - shape.left) * shape.channels, lanes, None)
                        for row, k in users:
                            if k is not None:
                                sums[row] = _plus(f, sums[row], value, weights[k])
                for row, total in enumerate(sums):
                    _put(f.y + (first + row) * f.length, at, [total], lanes, None, shape.stream)
    bands = f
    with m.function("correlate", **arguments) as g:
        items = (g.height + (band - 1)) // band
        g.parallel(bands, items, g.rows, g.w, g.y, g.start, g.inner, g.length, g.height, grain=1)


class _Weights:
    """Weights in every lane: few are kept in registers, many are read where they are needed."""

    def __init__(self, f: Function, pointer: Pointer, count: int, taken: int) -> None:
        self._f, self._pointer = f, pointer
        fits = count <= _SHORT and count + taken + 2 <= f.target.registers
        self._held = [pointer.broadcast(k, f.target.lanes) for k in range(count)] if fits else None

    def __getitem__(self, k: int) -> Value:
        if self._held is not None:
            return self._held[k]
        return self._pointer.broadcast(k, self._f.target.lanes)


def _rows(f: Function, first: Value, count: int, element: str) -> list[Pointer]:
    kind = I8 if element == "i8*" else F32
    pointer = ir.PointerType()
    return [Pointer(f, f.irb.inttoptr(f.rows.load(first + i).ir, pointer), kind) for i in range(count)]


def _numbers(f: Function, source: Pointer, at: Value, lanes: int, mask: Value | None) -> Value:
    """``lanes`` values as float32."""
    loaded = source.load(at, lanes, mask=mask)
    return loaded if source.element_type is F32 else f.from_bytes(loaded)


def _plus(f: Function, total: Value | None, value: Value, weight: Value) -> Value:
    return value * weight if total is None else f.fma(value, weight, total)


def _put(
    out: Pointer, at: Value, sums: Sequence[Value | None], lanes: int, mask: Value | None, stream: bool
) -> None:
    for v, total in enumerate(sums):
        assert total is not None  # noqa: S101 - every sum has a tap
        if stream and mask is None:
            out.stream(total, at + v * lanes)
        else:
            out.store(total, at + v * lanes, mask=mask)


def _cover(f: Function, length: Value, block: Callable[[Value, int, Value | None], None]) -> None:
    """Blocks of four vectors, of one, and a masked one, over a line."""
    lanes = f.target.lanes
    wide = length // (_AT_ONCE * lanes)
    with f.loop(0, wide) as step:
        block(step * (_AT_ONCE * lanes), _AT_ONCE, None)
    with f.loop(wide * _AT_ONCE, length // lanes) as step:
        block(step * lanes, 1, None)
    rest = length % lanes
    with f.when(rest > 0):
        block(length - rest, 1, f.mask_below(rest, lanes))
