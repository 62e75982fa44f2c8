"""The weight gradient, rows as lanes: a block of taps lives in registers while a plane streams by.

A work item is a few neighbouring channels and a share of the images; each plane adds its sums to vectors kept
per tap, whose lanes are summed at the very end. So sums run in one order whatever the number of threads, and
in three levels (plane, images, lanes), which keeps their error small. A vector of input meets the gradient's
rows of every tap row of the block. Lanes past the end of a row are left out by mask, not by zeros, which
would turn an infinity beyond the row into NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from convlens.kernels.cpu.codegen import F64, Function, Module, Pointer, Target, Value, Variable
from convlens.kernels.cpu.depthwise.geometry import Shape
from convlens.kernels.cpu.depthwise.rows import band_for, groups_of, inside, where
from convlens.kernels.cpu.depthwise.strip import Strip

__all__ = ["Layout", "build", "layout_for"]


@dataclass(frozen=True)
class Layout:
    """How the sums are split and where they lie in the workspace, in elements.

    Attributes:
        strip: of the input.
        planes: neighbouring out channels of one work item.
        shares: parts that the images are split into, each with sums of its own.
        taps: sums of each out channel: the weights', and the bias's last.
        private: workspace of one thread.
        partial: sums of all shares, behind the threads' workspaces.
    """

    strip: Strip
    planes: int
    shares: int
    taps: int
    private: int
    partial: int


@cache
def layout_for(shape: Shape, target: Target) -> Layout:
    """The layout for the forward ``shape``; depends on nothing that changes between calls."""
    strip = Strip.of(shape, band_for(shape, 1, target.l2_bytes))
    channels = shape.channels * shape.outs
    shares = 1 if channels >= 8 else 8
    size = math.prod(shape.in_size)
    planes = max(1, min(8, 2048 // size, channels // 8, 4096 // shape.taps))
    taps = shape.taps + shape.bias
    private = strip.size + planes * shape.taps * target.lanes + 16 * planes
    return Layout(strip, planes, shares, taps, private, shares * channels * taps)


def build(m: Module, shape: Shape) -> None:
    """``sums(g, x, gw, gb, work, batch)`` for the forward ``shape``; its ``bias`` asks for the bias gradient."""
    layout = layout_for(shape, m.target)
    channels = shape.channels * shape.outs
    blocks = -(-channels // layout.planes)
    with m.body("items", g="f32*", x="f32*", partial="f32*", work="f32*", batch="int") as f:
        base = f.work + f.thread * layout.private
        layout.strip.clear(f, base)
        with f.loop(f.begin, f.end) as item:
            _Item(f, shape, layout, base, item % blocks, item // blocks).emit()
    items = f
    with m.body("total", partial="f32*", gw="f32*", gb="f32*") as f:
        with f.loop(f.begin, f.end) as channel:
            _total(f, shape, layout, channel)
    total = f
    arguments = dict.fromkeys(("g", "x", "gw", "gb", "partial", "work"), "f32*")
    with m.function("sums", **arguments, batch="int") as f:
        f.parallel(items, layout.shares * blocks, f.g, f.x, f.partial, f.work, f.batch)
        f.parallel(total, channels, f.partial, f.gw, f.gb)


def _total(f: Function, shape: Shape, layout: Layout, channel: Value) -> None:
    """Add the shares of one channel, in order."""
    channels = shape.channels * shape.outs
    with f.loop(0, layout.taps) as tap:
        sum_ = f.variable(f.partial.load(channel * layout.taps + tap))
        with f.loop(1, layout.shares) as share:
            sum_.set(sum_.get() + f.partial.load((share * channels + channel) * layout.taps + tap))
        with f.when(tap < shape.taps):
            f.gw.store(sum_.get(), channel * shape.taps + tap)
        with f.when(tap >= shape.taps):
            f.gb.store(sum_.get(), channel)


class _Item:
    """Emits one work item: some channels over a share of the images."""

    def __init__(
        self, f: Function, shape: Shape, layout: Layout, base: Pointer, block: Value, share: Value
    ) -> None:
        self.f, self.shape, self.layout, self.strip = f, shape, layout, layout.strip
        self.base, self.sums, self.share = base, base + layout.strip.size, share
        self.lanes = f.target.lanes
        self.bias = (self.sums + layout.planes * shape.taps * self.lanes).cast(F64)
        self.channels = shape.channels * shape.outs
        self.first_channel = block * layout.planes
        self.blocks = tap_blocks(shape, f.target)

    def emit(self) -> None:
        f, shape, layout, lanes = self.f, self.shape, self.layout, self.lanes
        with f.loop(0, layout.planes * shape.taps * lanes, lanes) as i:
            self.sums.store(f.zeros(lanes), i)
        for plane in range(layout.planes):
            self.bias.store(f.sum(f.zeros(lanes, F64)), plane)
        count = f.minimum(self.channels - self.first_channel, layout.planes)
        begin, end = (f.batch * (self.share + more) // layout.shares for more in (0, 1))
        with f.loop(begin, end) as image, f.loop(0, count) as turn:
            channel = self.first_channel + turn
            in_plane = image * shape.channels + (channel // shape.outs if shape.outs > 1 else channel)
            x = f.x + in_plane * math.prod(shape.in_size)
            g = f.g + (image * self.channels + channel) * math.prod(shape.out_size)
            # the plane that follows: the next channel's, or behind the last one the next image's first
            step = f.select(turn + 1 < count, f.index(1), self.channels - count + 1)
            self.next_g = g + step * math.prod(shape.out_size)
            step = f.select(turn + 1 < count, f.index(1), shape.channels - count + 1)
            self.next_x = x + step * math.prod(shape.in_size) if shape.outs == 1 else None
            self._plane(x, g, self.sums + turn * (shape.taps * lanes), self.bias + turn)
        into = f.partial + (self.share * self.channels + self.first_channel) * layout.taps
        with f.loop(0, count) as turn:
            to = into + turn * layout.taps
            with f.loop(0, shape.taps) as tap:
                to.store(f.sum(self.sums.load((turn * shape.taps + tap) * lanes, lanes)), tap)
            if shape.bias:
                to.store(f.to_f32(self.bias.load(turn)), shape.taps)

    def _plane(self, x: Pointer, g: Pointer, sums: Pointer, bias: Pointer) -> None:
        f, shape, strip = self.f, self.shape, self.strip
        depth, height, width = shape.out_size
        if shape.bias:
            self._bias(g, bias)
        with f.loop(0, height, strip.band) as start:
            end = f.minimum(start + strip.band, height)
            first = strip.first_row(f, start)
            strip.fill(f, self.base, x, 0, first)
            with f.loop(0, shape.kernel[0]) as tap_d:
                for number, block in enumerate(self.blocks):
                    with _steps(f, block.rows) as tap_h, _steps(f, block.columns) as tap_w:
                        _Block(self, block, tap_d, tap_h, tap_w, start, end, first, number == 0).emit(g, sums)

    def _bias(self, g: Pointer, into: Pointer) -> None:
        """Add a whole plane, in float64: torch's own sum of so many numbers is nearly exact."""
        f, lanes, count = self.f, self.lanes, math.prod(self.shape.out_size)
        acc = [f.variable(f.zeros(lanes, F64)) for _ in range(2)]

        def add(total: Variable, i: Value | int, mask: Value | None = None) -> None:
            total.set(total.get() + f.to_f64(g.load(i, lanes, mask=mask)))

        whole = count // (2 * lanes) * 2 * lanes
        with f.loop(0, whole, 2 * lanes) as i:
            for k, total in enumerate(acc):
                add(total, i + k * lanes)
        for k, rest in enumerate(range(whole, count, lanes)):
            add(acc[k], rest, f.mask_below(count - rest, lanes) if count - rest < lanes else None)
        into.store(into.load() + f.sum(acc[0].get() + acc[1].get()))


@dataclass(frozen=True)
class Taps:
    """A kind of block of taps: which of them start one (begin, end, step), its size, and vectors apart."""

    rows: tuple[int, int, int]
    columns: tuple[int, int, int]
    tall: int
    wide: int
    groups: int


def tap_blocks(shape: Shape, target: Target) -> list[Taps]:
    """Cut the taps into blocks that fit the registers, cheapest shape first, remainders as blocks of their own."""
    tall, wide = shape.kernel[1], shape.kernel[2]
    groups = min(2, groups_of(shape, target.lanes))
    lanes = target.lanes
    if wide > 2 * lanes:
        groups = 1
    spans = [(0, wide, 1)]  # columns: begin, end, groups
    if groups == 2:
        spans = [(0, wide - lanes, 2), (wide - lanes, lanes, 1)]
    found = []
    for begin, end, count in spans:
        if begin < end:
            rows, columns = _best(tall, end - begin, count, target)
            for (h0, h1, h), (w0, w1, w) in product(_cut(0, tall, rows), _cut(begin, end, columns)):
                found.append(Taps((h0, h1, h), (w0, w1, w), h, w, count))
    return found


def _best(tall: int, wide: int, groups: int, target: Target) -> tuple[int, int]:
    def cost(block: tuple[int, int]) -> float:
        total = 0.0
        for (h0, h1, h), (w0, w1, w) in product(_cut(0, tall, block[0]), _cut(0, wide, block[1])):
            products, loads = h * w * groups, 1.9 * (w + h * groups)
            total += ((h1 - h0) // h) * ((w1 - w0) // w) * (max(products, loads, 8) + 0.1 * loads + 1)
        return total

    free = target.registers - 3
    blocks = product(range(1, 1 + min(tall, 8)), range(1, 1 + min(wide, 24)))
    fitting = [(h, w) for h, w in blocks if h * w * groups + h * groups <= free]
    return min(fitting or [(1, 1)], key=cost)


def _cut(begin: int, end: int, step: int) -> list[tuple[int, int, int]]:
    whole = begin + (end - begin) // step * step
    parts = [(begin, whole, step), (whole, end, end - whole)]
    return [part for part in parts if part[0] < part[1]]


def _steps(f: Function, bounds: tuple[int, int, int]) -> Any:
    begin, end, step = bounds
    return nullcontext(f.index(begin)) if begin + step >= end else f.loop(*bounds)


class _Block:
    """Emits the sums of one block of taps over the out rows of one strip."""

    def __init__(
        self, item: _Item, taps: Taps, tap_d: Value, tap_h: Value, tap_w: Value, start: Value, end: Value,
        first: Value, fetches: bool,
    ) -> None:  # fmt: skip
        self.item, self.fetches = item, fetches
        self.f, self.shape, self.strip, self.base, self.lanes = (
            item.f,
            item.shape,
            item.strip,
            item.base,
            item.lanes,
        )
        self.taps, self.tap_d, self.tap_h, self.tap_w = taps, tap_d, tap_h, tap_w
        self.start, self.end, self.first = start, end, first
        self.vectors = -(-self.shape.out_size[2] // self.lanes)

    def emit(self, g: Pointer, sums: Pointer) -> None:
        f, shape, taps, lanes = self.f, self.shape, self.taps, self.lanes
        keys = list(product(range(taps.tall), range(taps.wide), range(taps.groups)))
        self.acc = {key: f.variable(f.zeros(lanes)) for key in keys}
        depth, height, width = shape.out_size
        with f.loop(0, depth) as d:
            from_d = d * shape.stride[0] - shape.pad[0] + self.tap_d * shape.dilation[0]
            with where(f, inside(from_d, shape.in_size[0], shape, 0)):
                self.g, self.depth = g + d * (height * width), from_d
                if shape.stride[1] == 1 and shape.dilation[1] == 1 and taps.tall > 1:
                    self._shared_rows()
                else:
                    self._own_rows()
        for (h, w, q), total in self.acc.items():
            tap = (self.tap_d * shape.kernel[1] + self.tap_h + h) * shape.kernel[2] + self.tap_w + w + q * lanes
            sums.store(sums.load(tap * lanes, lanes) + total.get(), tap * lanes)

    def _input(self, row: Value) -> Pointer:
        """Input row ``row`` at the block's first column of taps."""
        line = self.strip.at(self.base, 0, self.depth, row - self.first)
        step, apart = self.shape.stride[2], self.shape.dilation[2]
        if step == 1:
            return line + self.tap_w * apart
        column = self.tap_w * apart
        return line + (column % step * self.strip.pitch + column // step)

    def _gradient(self, row: Value) -> Pointer:
        return self.g + row * self.shape.out_size[2]

    def _shared_rows(self) -> None:
        """Every input row once, against the gradient's rows of all tap rows."""
        f, shape, tall = self.f, self.shape, self.taps.tall
        offset = shape.pad[1] - self.tap_h  # gradient row = input row + offset - h
        begin = f.maximum(self.start - offset, 0)
        end = f.minimum(self.end - offset + (tall - 1), shape.in_size[1])
        low = f.minimum(f.maximum(self.start - offset + (tall - 1), begin), end)
        high = f.maximum(f.minimum(self.end - offset, end), low)
        with f.loop(low, high) as row:
            self._ask_for_next(row)
            pairs = [(h, self._input(row), self._gradient(row + offset - h)) for h in range(tall)]
            self._row(pairs)
        before = low - begin
        with f.loop(0, before + (end - high)) as edge:
            row = f.select(edge < before, begin + edge, high + edge - before)
            for h in range(tall):
                g_row = row + offset - h
                with f.when((g_row >= self.start) & (g_row < self.end)):
                    self._row([(h, self._input(row), self._gradient(g_row))])

    def _own_rows(self) -> None:
        """Every gradient row, against the input row of each tap row."""
        f, shape = self.f, self.shape
        with f.loop(self.start, self.end) as row:
            self._ask_for_next(row)
            for h in range(self.taps.tall):
                from_row = row * shape.stride[1] - shape.pad[1] + (self.tap_h + h) * shape.dilation[1]
                with where(f, inside(from_row, shape.in_size[1], shape, 1)):
                    self._row([(h, self._input(from_row), self._gradient(row))])

    def _ask_for_next(self, row: Value) -> None:
        """Fetch the same row of the planes that follow, so that memory works meanwhile."""
        shape, item = self.shape, self.item
        if not self.fetches or shape.out_size[1] == 1:
            return
        for plane, size in ((item.next_g, shape.out_size), (item.next_x, shape.in_size)):
            share = -(-size[1] * size[2] // shape.out_size[1])
            if plane is not None and share <= 512:
                for place in range(0, share, 16):
                    plane.prefetch(row * share + place, locality=2)

    def _row(self, pairs: Sequence[tuple[int, Pointer, Pointer]]) -> None:
        """Columns: vectors of input; group q meets the gradient's vector q places to the left."""
        last, groups = self.vectors - 1, self.taps.groups
        if last - groups + 1 <= 1:
            for v in range(last + groups):
                self._vector(pairs, v, [q for q in range(groups) if 0 <= v - q <= last])
            return
        for v in range(groups - 1):
            self._vector(pairs, v, list(range(v + 1)))
        with self.f.loop(groups - 1, last) as middle:
            self._vector(pairs, middle, list(range(groups)))
        for v in range(last, last + groups):
            self._vector(pairs, v, [q for q in range(groups) if v - q <= last])

    def _vector(self, pairs: Sequence[tuple[int, Pointer, Pointer]], v: Value | int, groups: list[int]) -> None:
        f, lanes, tail = self.f, self.lanes, self.shape.out_size[2] % self.lanes
        mask = f.mask_below(tail, lanes) if tail else None
        gradients = []
        for h, _, g_line in pairs:
            for q in groups:
                ends = mask if isinstance(v, int) and v - q == self.vectors - 1 else None
                column = v * lanes - q * lanes if isinstance(v, int) else (v - q) * lanes
                gradients.append((h, q, g_line.load(column, lanes, mask=ends), ends))
        x_line = pairs[0][1] + (v * lanes if isinstance(v, int) else v * lanes)
        for w in range(self.taps.wide):
            value = x_line.load(self._tap(w), lanes)
            for h, q, gradient, ends in gradients:
                total = self.acc[h, w, q]
                added = f.fma(value, gradient, total.get())
                total.set(added if ends is None else f.select(ends, added, total.get()))

    def _tap(self, w: int) -> Value | int:
        """Offset of tap column ``tap_w + w`` from that of ``tap_w``."""
        step, apart = self.shape.stride[2], self.shape.dilation[2]
        if step == 1:
            return w * apart
        pitch = self.strip.pitch
        here, there = (self.tap_w + w) * apart, self.tap_w * apart
        return (here % step - there % step) * pitch + (here // step - there // step)
