"""Rows as lanes: neighbouring columns of one plane fill a vector (the contiguous layout).

A block of out rows × vectors of columns lives in registers; every vector loaded from a source row feeds all
taps that want it: those of the other rows of the block, and in kernels wider than a vector also those of the
vector beside it. So the multiply-adds limit, not the loads, which mostly straddle two cache lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from llvmlite import ir

from convlens.kernels.cpu.codegen import F32, Function, Module, Pointer, Target, Value
from convlens.kernels.cpu.depthwise.geometry import Shape
from convlens.kernels.cpu.depthwise.streaming import ResultStream, buffer_size
from convlens.kernels.cpu.depthwise.strip import Strip
from convlens.kernels.cpu.epilogue import activated

__all__ = [
    "Blocking",
    "band_for",
    "block_for",
    "build",
    "groups_of",
    "inside",
    "stream_size",
    "strip_for",
    "where",
]

_AHEAD = 4096  # elements between what is computed and what is fetched, at least
_LINE = 16  # elements of a cache line
_LONGEST_SUM = 128  # taps added one after the other in a kernel of more than twice as many
_HELD = 9  # weights of one depth that stay in registers
_UNROLLED = 220  # multiply-adds of a block that are written out; more are looped over rows
_UNROLLED_WIDTH = 9  # taps along a row that are written out


@dataclass(frozen=True)
class Blocking:
    """``rows`` × ``vectors`` out values in registers; ``band`` rows (a multiple of ``rows``, or all) a strip."""

    rows: int
    vectors: int
    band: int


@cache
def block_for(shape: Shape, target: Target) -> Blocking:
    """The block that costs least: multiply-adds wasted at the edges against loads shared."""
    _, height, width = shape.out_size
    vectors = -(-width // target.lanes)
    area = shape.kernel[1] * shape.kernel[2]
    held = area if area <= _HELD and target.registers > 16 else 0
    budget = target.registers - held - (6 if target.registers > 16 else 4)

    def cost(block: tuple[int, int]) -> float:
        rows, columns = block
        blocks = -(-height // rows) * (vectors // columns + (vectors % columns > 0))
        shared = groups_of(shape, target.lanes)
        taps = shape.kernel[1] * shape.kernel[2]
        reads = (rows + shape.kernel[1] - 1) * shape.kernel[2] if shape.stride[1] == 1 else rows * taps
        loads = (1.9 * reads * (columns + shared - 1) / shared + rows * taps) / 2
        products = rows * columns * taps / 2 * max(1.0, 8 / (rows * columns))
        tail = vectors % columns * rows * taps / 2
        return -(-height // rows) * tail * 0.2 + blocks * (max(products, loads) + 0.1 * loads + 6)

    blocks = list(product(range(1, 1 + min(height, 12)), range(1, 1 + min(vectors, 16))))
    rows, columns = min((b for b in blocks if b[0] * b[1] <= budget), key=cost)
    return Blocking(rows, columns, band_for(shape, rows, target.l2_bytes))


def band_for(shape: Shape, rows: int, l2_bytes: int) -> int:
    """All out rows if their strip fits a quarter of the second-level cache, else as many (by ``rows``) as do."""
    height = shape.out_size[1]
    limit = max(l2_bytes // 4, 64 << 10) // 4
    if Strip.of(shape, height).size <= limit:
        return height
    fixed, one = Strip.of(shape, rows).size, Strip.of(shape, 2 * rows).size
    more = max(0, limit - fixed) // max(1, one - fixed)
    return min(rows * (1 + more), height)


@cache
def strip_for(shape: Shape, target: Target) -> Strip:
    """The strip that `build` lays out for ``target``."""
    return Strip.of(shape, block_for(shape, target).band)


@cache
def stream_size(shape: Shape, target: Target) -> int:
    """Elements of the buffer that a thread's streamed results pass through; 0 if they are not to be streamed."""
    if block_for(shape, target).band < shape.out_size[1]:
        return 0
    return buffer_size(shape.outs * math.prod(shape.out_size))


def build(m: Module, shape: Shape, streamed: bool) -> None:
    """``planes(x, w, bias, y, work, batch)``: ``work`` holds a strip, and a stream's buffer, for each thread.

    With ``streamed`` the result goes past the caches; ``y`` and ``work`` then start at a multiple of a vector.
    """
    block = block_for(shape, m.target)
    strip = Strip.of(shape, block.band)
    bands = -(-shape.out_size[1] // block.band)
    with m.body("items", x="f32*", w="f32*", bias="f32*", y="f32*", work="f32*") as f:
        buffer = stream_size(shape, m.target) if streamed else 0
        base = f.work + f.thread * (strip.size + buffer)
        count = shape.outs * math.prod(shape.out_size)
        strip.clear(f, base)
        stream = ResultStream(f, base + strip.size, f.y, count, f.begin) if streamed else None
        with f.loop(f.begin, f.end) as item:
            plane = item // bands if bands > 1 else item
            start = f.minimum((item % bands) * block.band, shape.out_size[1] - block.band) if bands > 1 else 0
            into = stream.into() if stream else f.y + plane * count
            _Plane(f, shape, block, strip, base, plane, f.index(start), into, streamed).emit()
            if stream:
                stream.leave()
        if stream:
            stream.end()
    items = f
    with m.function("planes", x="f32*", w="f32*", bias="f32*", y="f32*", work="f32*", batch="int") as f:
        f.parallel(items, f.batch * (shape.channels * bands), f.x, f.w, f.bias, f.y, f.work)


class _Plane:
    """Emits one work item: a band of the out planes of one channel of one image."""

    def __init__(
        self, f: Function, shape: Shape, block: Blocking, strip: Strip, base: Pointer, plane: Value, start: Value,
        into: Pointer, streamed: bool,
    ) -> None:  # fmt: skip
        self.f, self.shape, self.block, self.strip, self.base = f, shape, block, strip, base
        self.into, self.streamed = into, streamed
        self.plane, self.start = plane, start
        self.channel = plane % shape.channels
        self.lanes = f.target.lanes
        self.first = strip.first_row(f, start)

    def emit(self) -> None:
        f, shape = self.f, self.shape
        depth, height, width = shape.in_size
        with f.loop(0, shape.sources) as source:
            from_plane = f.x + (self.plane * shape.sources + source) * (depth * height * width)
            self.strip.fill(f, self.base, from_plane, source, self.first)
        block, out_depth, out_height, out_width = self.block, *shape.out_size
        with f.loop(0, shape.outs) as out, f.loop(0, out_depth) as d:
            number = self.channel * shape.outs + out
            weight = f.w + (self.channel * (shape.outs * shape.sources) + out) * shape.taps
            to_plane = self.into + (out * out_depth + d) * (out_height * out_width)
            with f.loop(0, -(-block.band // block.rows)) as step:
                self._ask_for_next(out * out_depth + d, step)
                row = self.start + f.minimum(step * block.rows, block.band - block.rows)
                self._columns(lambda column, n: self._block(d, row, column, n, weight, number, to_plane))

    def _ask_for_next(self, turn: Value, step: Value) -> None:
        """Fetch a share of what comes after this plane, so that memory works while this one is computed."""
        shape, block = self.shape, self.block
        if block.band < shape.out_size[1]:
            return  # long runs of rows: the hardware sees them coming
        steps = -(-block.band // block.rows) * shape.outs * shape.out_size[0]
        turn = turn * -(-block.band // block.rows) + step
        for start, planes, size, writes in (
            (self.f.x, shape.sources, shape.in_size, False),
            (self.f.y, shape.outs, shape.out_size, True),
        ):
            if writes and self.streamed:
                continue
            count = planes * math.prod(size)
            share = -(-count // (_LINE * steps)) * _LINE
            ahead = start + (self.plane * count + max(count, _AHEAD) + turn * share)
            for line in range(0, min(share, 32 * _LINE), _LINE):
                ahead.prefetch(line, write=writes, locality=2)

    def _columns(self, emit: Callable[[Value, int], None]) -> None:
        vectors = -(-self.shape.out_size[2] // self.lanes)
        whole, rest = divmod(vectors, self.block.vectors)
        if whole == 1:
            emit(self.f.index(0), self.block.vectors)
        elif whole:
            step = self.block.vectors * self.lanes
            with self.f.loop(0, whole * step, step) as column:
                emit(column, self.block.vectors)
        if rest:
            emit(self.f.index(whole * self.block.vectors * self.lanes), rest)

    def _block(
        self, d: Value, row: Value, column: Value, vectors: int, weight: Pointer, number: Value, to_plane: Pointer
    ) -> None:
        f, shape = self.f, self.shape
        zero = f.broadcast(f.bias.load(number), self.lanes) if shape.bias else f.zeros(self.lanes)
        acc = [[f.variable(zero) for _ in range(vectors)] for _ in range(self.block.rows)]
        long = _is_long(shape)
        if long:
            self.aside = f.scratch(F32, self.block.rows * vectors * self.lanes)
            for place in range(self.block.rows * vectors):
                self.aside.store(f.zeros(self.lanes), place * self.lanes)
        with f.loop(0, shape.sources) as source, f.loop(0, shape.kernel[0]) as tap_d:
            from_d = d * shape.stride[0] - shape.pad[0] + tap_d * shape.dilation[0]
            w = self._weights_from(weight + source * shape.taps, tap_d)
            with where(f, inside(from_d, shape.in_size[0], shape, 0)):
                self._rows(acc, w, source, from_d, row, column)
        for r, c in product(range(self.block.rows), range(vectors)):
            value = acc[r][c].get()
            if long:
                value = value + self.aside.load((r * vectors + c) * self.lanes, self.lanes)
            self._store(value, to_plane + (row + r) * shape.out_size[2], column + c * self.lanes, c)

    def _store(self, value: Value, line: Pointer, column: Value, c: int) -> None:
        f, width = self.f, self.shape.out_size[2]
        value = activated(f, value, self.shape.activation)
        in_last = -(-width // self.lanes) - 1
        may_be_last = c == in_last % self.block.vectors if in_last >= self.block.vectors else c == in_last
        mask = f.mask_below(width - column, self.lanes) if width % self.lanes and may_be_last else None
        line.store(value, column, mask=mask)

    def _weights_from(self, weight: Pointer, tap_d: Value) -> Pointer:
        area = self.shape.kernel[1] * self.shape.kernel[2]
        return weight + (self.shape.taps - 1 - tap_d * area) if self.shape.flip else weight + tap_d * area

    def _weight(self, w: Pointer, tap_h: Value | int, tap_w: Value | int) -> Value:
        if isinstance(tap_h, int) and isinstance(tap_w, int) and (tap_h, tap_w) in self.held:
            return self.held[tap_h, tap_w]
        place = self.f.index(tap_h) * self.shape.kernel[2] + tap_w
        return w.broadcast(0 - place if self.shape.flip else place, self.lanes)

    # --- source rows of a block ---------------------------------------------------------------------------

    def _rows(self, acc: Any, w: Pointer, source: Value, depth: Value, row: Value, column: Value) -> None:
        """Every source row of the block, with the out rows it feeds: all written out, or the middle looped."""
        shape, rows, taps = self.shape, self.block.rows, self.shape.kernel[1]
        step, apart = shape.stride[1], shape.dilation[1]
        top = row * step - shape.pad[1]
        # few weights are loaded once, not in the branch of every source row
        self.held: dict[tuple[int, int], Value] = {}
        if taps * shape.kernel[2] <= _HELD and self.f.target.registers > 16:
            every = product(range(taps), range(shape.kernel[2]))
            self.held = {tap: self._weight(w, *tap) for tap in every}

        def feed(j: Value | int, users: Sequence[tuple[int, Value | int]]) -> None:
            from_row = top + j
            with where(self.f, inside(from_row, shape.in_size[1], shape, 1)):
                line = self.strip.at(self.base, source, depth, from_row - self.first) + column
                self._taps(acc, w, line, users)

        products = rows * len(acc[0]) * taps * min(shape.kernel[2], _UNROLLED_WIDTH)
        if products <= _UNROLLED or rows >= taps and step == apart == 1:
            for j in range((rows - 1) * step + (taps - 1) * apart + 1):
                users = [(r, (j - r * step) // apart) for r in range(rows) if (j - r * step) % apart == 0]
                users = [(r, h) for r, h in users if 0 <= h < taps]
                if users:
                    feed(j, users)
        elif step == apart == 1:
            for j in range(rows - 1):
                feed(j, [(r, j - r) for r in range(j + 1)])
            with self._in_parts(acc, rows - 1, taps) as middle:
                feed(middle, [(r, middle - r) for r in range(rows)])
            for j in range(taps, taps + rows - 1):
                feed(j, [(r, j - r) for r in range(j - taps + 1, rows)])
        else:
            with self.f.loop(0, taps) as tap:
                for r in range(rows):
                    feed(tap * apart + r * step, [(r, tap)])

    @contextmanager
    def _in_parts(self, acc: Any, begin: int, end: int) -> Iterator[Value]:
        """Loop over rows; a long sum is put aside every few rows, or its rounding would grow with its length."""
        f, rows = self.f, max(1, _LONGEST_SUM // self.shape.kernel[2])
        if not _is_long(self.shape):
            with f.loop(begin, end) as row:
                yield row
            return
        with f.loop(begin, end, rows) as part:
            for place, total in enumerate(itertools.chain(*acc)):
                aside = self.aside + place * self.lanes
                aside.store(aside.load(0, self.lanes) + total.get())
                total.set(f.zeros(self.lanes))
            with f.loop(part, f.minimum(part + rows, end)) as row:
                yield row

    # --- taps along a row ---------------------------------------------------------------------------------

    def _taps(self, acc: Any, w: Pointer, line: Pointer, users: Sequence[tuple[int, Value | int]]) -> None:
        f, shape, lanes = self.f, self.shape, self.lanes
        taps, apart = shape.kernel[2], shape.dilation[2]
        groups = groups_of(shape, lanes)
        if groups > 1:
            edge = taps - (groups - 1) * lanes  # offsets below it have a tap in every group
            for begin, end, count in ((0, edge, groups), (edge, lanes, groups - 1)):
                if begin < end:
                    with f.loop(begin, end) as offset:
                        self._products(acc, w, line + offset, users, [offset + q * lanes for q in range(count)])
        elif taps <= _UNROLLED_WIDTH or shape.stride[2] > 1:
            for tap in range(taps):
                self._products(acc, w, line + self.strip.tap(tap * apart), users, [tap])
        else:
            with f.loop(0, taps) as looped:
                self._products(acc, w, line + looped * apart, users, [looped])

    def _products(
        self, acc: Any, w: Pointer, line: Pointer, users: Sequence[tuple[int, Value | int]], taps: list[Any]
    ) -> None:
        """Each vector of ``line`` into all accumulators: tap ``q`` of ``taps`` lies q vectors to the right."""
        _keep_order(self.f)
        weights = [[self._weight(w, tap_h, tap_w) for tap_w in taps] for _, tap_h in users]
        vectors = len(acc[0])
        for place in range(vectors + len(taps) - 1):
            value = line.load(place * self.lanes, self.lanes)
            for (r, _), row_weights in zip(users, weights, strict=True):
                for q, weight in enumerate(row_weights):
                    if 0 <= place - q < vectors:
                        total = acc[r][place - q]
                        total.set(self.f.fma(value, weight, total.get()))


def _keep_order(f: Function) -> None:
    """No load below moves above this: LLVM would load the rows of a whole block first and spill them."""
    nothing = ir.FunctionType(ir.VoidType(), [])
    f.irb.asm(nothing, "", "~{memory}", [], side_effect=True)


def _is_long(shape: Shape) -> bool:
    return shape.kernel[1] * shape.kernel[2] > 2 * _LONGEST_SUM


def groups_of(shape: Shape, lanes: int) -> int:
    """Taps a whole number of vectors apart that share a load: more than one in kernels wider than a vector."""
    if shape.stride[2] != 1 or shape.dilation[2] != 1:
        return 1
    return -(-shape.kernel[2] // lanes)


def inside(place: Value, size: int, shape: Shape, axis: int) -> Value | None:
    """Whether a source row or depth exists; None if every one that is asked for does."""
    pad, reach = shape.pad[axis], (shape.kernel[axis] - 1) * shape.dilation[axis]
    last = (shape.out_size[axis] - 1) * shape.stride[axis] - pad + reach
    if pad <= 0 and last < size:
        return None
    return (place >= 0) & (place < size)


def where(f: Function, condition: Value | None) -> Any:
    """``if condition:``, or always."""
    return nullcontext() if condition is None else f.when(condition)
