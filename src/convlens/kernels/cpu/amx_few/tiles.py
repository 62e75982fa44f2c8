"""Few input channels on tiles: weights are rows of A, pair rows are rows of B, so results need no turning."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from convlens.kernels.cpu.amx.geometry import weight_parts
from convlens.kernels.cpu.amx.multiply import PRODUCTS
from convlens.kernels.cpu.amx_few.geometry import LANES, Cut, Tap
from convlens.kernels.cpu.codegen import BF16, F32, I32, Function, Module, Pointer, Value, Variable
from convlens.kernels.cpu.direct_few.packing import emit_pack
from convlens.kernels.cpu.direct_few.tiles import starts

__all__ = ["build"]

_LARGEST_VALUE, _LARGEST_WEIGHT = 2.0**64, 2.0**48
"""So that no sum of a thousand products of parts overflows, where a sum of the whole numbers might not."""


def build(m: Module, cut: Cut, bias: bool, relu: bool) -> None:
    """Export ``run(source, weight, bias, dest, packed, buffers, spoilt, batch, threads)``, and its halves.

    ``pack(weight, packed, spoilt, threads)`` and ``multiply(source, bias, dest, packed, …)`` are those. ``packed``
    holds `Cut.weight_elements`, ``buffers`` `Cut.thread_bytes` for each thread; ``spoilt`` becomes 1 if a value or
    a weight is not finite or too large.
    """
    weights = _weights_body(m, cut)
    items = _items_body(m, cut, bias, relu)
    arrays = {
        "source": "f32*", "bias": "f32*", "dest": "f32*", "packed": "bf16*", "buffers": "bf16*", "spoilt": "i32*",
    }  # fmt: skip

    def multiply(f: Function) -> None:
        count = f.batch * cut.bands
        f.parallel(items, count, f.source, f.bias, f.dest, f.packed, f.buffers, f.spoilt, grain=1)

    with m.function("run", weight="f32*", **arrays, batch="int") as f:
        f.parallel(weights, cut.dest_tiles * LANES, f.weight, f.packed, f.spoilt)
        multiply(f)
    with m.function("pack", weight="f32*", packed="bf16*", spoilt="i32*") as f:
        f.parallel(weights, cut.dest_tiles * LANES, f.weight, f.packed, f.spoilt)
    with m.function("multiply", **arrays, batch="int") as f:
        multiply(f)


def _weights_body(m: Module, cut: Cut) -> Function:
    """Body over output channels, those that fill up the last tiles included: a row of each step's tile."""
    parts, channels = weight_parts(cut.products), cut.shape.out_channels
    m.constant("weight_offsets", I32, cut.offsets())
    with m.body("pack_weights", weight="f32*", packed="bf16*", spoilt="i32*") as f:
        check = f.variable(f.zeros(LANES))
        table = Pointer(f, m.ir.globals["weight_offsets"], I32)
        with f.loop(f.begin, f.end) as channel:
            there = f.select(channel < channels, f.index(LANES), f.index(0))
            row = f.weight + f.minimum(channel, channels - 1) * cut.shape.taps
            tile, line = channel // LANES, channel % LANES
            # [pair of tiles][step][part][tile][row][term]
            to = f.packed + (tile // 2 * (cut.steps * parts * 1024) + tile % 2 * 512 + line * 32)
            with f.loop(0, cut.steps) as step:
                halves = []
                for half in range(2):
                    places = table.load(step * 32 + half * LANES, LANES)
                    mask = (places >= 0) & f.mask_below(there, LANES)
                    halves.append(f.split_bf16(f.gather(row, places, mask), parts))
                    _watch(f, check, halves[-1][0], _LARGEST_WEIGHT)
                for part in range(parts):
                    both = f.shuffle(halves[0][part], halves[1][part], range(32))
                    to.store(both, (step * parts + part) * 1024, align=64)
        _note(f, check)
    f.ir.attributes.add("noinline")
    return f


def _items_body(m: Module, cut: Cut, bias: bool, relu: bool) -> Function:
    shape = cut.shape
    with m.body(
        "items", source="f32*", bias="f32*", dest="f32*", packed="bf16*", buffers="bf16*", spoilt="i32*"
    ) as f:
        f.tile_config([(16, 64)] * 8)
        work = _Item(f, cut, bias, relu)
        work.clear_slack()
        with f.loop(f.begin, f.end) as item:
            image, band = item // cut.bands, item % cut.bands
            first = band * shape.out_height // cut.bands
            work.emit(image, first, (band + 1) * shape.out_height // cut.bands - first)
        _note(f, work.check)
        f.tile_release()
    return f


def _watch(f: Function, check: Variable, value: Value, largest: float) -> None:
    """Let ``check`` become NaN where a value is not finite, or larger than ``largest``."""
    scaled = f.from_bf16(value) * (2.0**128 / largest)
    check.set(f.fma(scaled, f.zeros(LANES), check.get()))


def _note(f: Function, check: Variable) -> None:
    bad = check.get()
    with f.when(f.any(bad.differs(bad))):
        f.spoilt.store(Value(f, ir.Constant(I32, 1)))


class _Item:
    """Emits one band of rows of one image."""

    def __init__(self, f: Function, cut: Cut, bias: bool, relu: bool) -> None:
        self.f, self.cut, self.shape = f, cut, cut.shape
        self.has_bias, self.relu = bias, relu
        self.weight_parts = weight_parts(cut.products)
        self.pairs = f.buffers.bytes(f.thread * cut.thread_bytes)
        after = self.pairs + cut.parts * cut.part_elements
        self.line = after.cast(F32)
        self.halves = (self.line + cut.line.values).cast(BF16)
        self.scratch = f.scratch(F32, 4 * 256)
        self.direct = not (bias or relu or self.shape.out_channels % (2 * LANES))
        self.check = f.variable(f.zeros(LANES))

    def clear_slack(self) -> None:
        """What tiles see past a band's last row meets no weights, but must be finite."""
        f, cut = self.f, self.cut
        zeros = f.bitcast(f.zeros(LANES, I32), BF16)
        for part in range(cut.parts):
            with f.loop(cut.part_elements - LANES * cut.pitch, cut.part_elements, 32) as i:
                (self.pairs + part * cut.part_elements).store(zeros, i, align=64)

    def emit(self, image: Value, first: Value, rows: Value) -> None:
        """``rows`` result rows from ``first`` on."""
        f, cut, shape = self.f, self.cut, self.shape
        with f.loop(0, (rows - 1) * shape.stride_y + shape.kernel_height) as row:
            self._pack_row(image, first * shape.stride_y + row, row)
        plane = shape.out_height * shape.out_width
        dest = f.dest + (image * (shape.out_channels * plane) + first * shape.out_width)
        with f.loop(0, rows) as row, starts(f, shape.out_width, 2 * LANES) as place:
            source = self.pairs + (row * (shape.stride_y * len(cut.pairs) * cut.pitch) + f.index(place) * 2)
            to = dest + (row * shape.out_width + f.index(place))
            with f.loop(0, cut.dest_tiles // 2) as block:
                self._block(source, to + block * (2 * LANES * plane), block, plane)

    def _pack_row(self, image: Value, padded_row: Value, row: Value) -> None:
        """One source row into its pair rows."""
        f, cut, shape, line = self.f, self.cut, self.shape, self.cut.line
        emit_pack(
            f, f.source + image * (shape.in_channels * shape.height * shape.width), self.line, line, padded_row,
            height=shape.height, width=shape.width, pad_top=shape.pad_top, pad_left=shape.pad_left,
            channels_last=False,
        )  # fmt: skip
        with f.loop(0, line.values, LANES) as i:
            value = self.line.load(i, LANES, align=64)
            pieces = f.split_bf16(value, cut.parts)
            _watch(f, self.check, pieces[0], _LARGEST_VALUE)
            for part, piece in enumerate(pieces):
                self.halves.store(piece, i + part * line.values, align=32)
        to = self.pairs + row * (len(cut.pairs) * cut.pitch)
        with f.loop(0, cut.pitch // 2, LANES) as place:
            for number, pair in enumerate(cut.pairs):
                for part in range(cut.parts):
                    both = self._natural(pair, place, part) if cut.natural else self._dealt(pair, place, part)
                    (to + place * 2).store(both, number * cut.pitch + part * cut.part_elements, align=64)

    def _dealt(self, pair: tuple[Tap, Tap | None], place: Value, part: int) -> Value:
        """Two taps of 16 places from phases, interleaved."""
        f, line, values = self.f, self.cut.line, []
        for tap in pair:
            if tap is None:
                values.append(f.bitcast(f.zeros(LANES // 2, I32), BF16))
            else:
                at = tap[0] * line.channel_values + line.column(tap[1]) + part * line.values
                values.append(self.halves.load(place + at, LANES))
        return f.interleave(*values)

    def _natural(self, pair: tuple[Tap, Tap | None], place: Value, part: int) -> Value:
        """Two taps of 16 places at stride 2: as they lie, or out of the first of two such pairs."""
        f, line = self.f, self.cut.line

        def both(tap: Tap) -> Value:
            at = tap[0] * line.channel_values + tap[1] + part * line.values
            value: Value = self.halves.load(place * 2 + at, 2 * LANES)
            return value

        first, second = pair
        if second == (first[0], first[1] + 1):
            return both(first)
        kept = f.bitcast(both(first), I32) & 0xFFFF
        if second is not None:
            kept = kept | (f.bitcast(both(second), I32) << 16)
        return f.bitcast(kept, BF16)

    def _block(self, source: Pointer, to: Pointer, block: Value, plane: int) -> None:
        """32 output channels × 32 places, or 16 where a row is shorter."""
        f, cut = self.f, self.cut
        count = 2 if self.shape.out_width > LANES else 1
        weights = f.packed + block * (cut.steps * self.weight_parts * 1024)
        corners = [(i, j) for i in range(2) for j in range(count)]
        for i, j in corners:
            f.tile_zero(2 * i + j)
        with f.loop(0, cut.steps) as step:
            a, b = weights + step * (self.weight_parts * 1024), source + step * (LANES * cut.pitch)
            held, asked = (-1, -1), 0
            for left, right in PRODUCTS[cut.products]:
                if left != held[0]:
                    for j in range(count):
                        f.tile_load(6 + j, b + (left * cut.part_elements + j * 2 * LANES), 2 * cut.pitch)
                if right != held[1]:
                    for i in range(2):
                        f.tile_load(4 + i, a + (right * 1024 + i * 512), 64)
                held = (left, right)
                for i, j in corners:
                    f.tile_dot(2 * i + j, 4 + i, 6 + j)
                    asked = self._ask_for(to, plane, step, asked)
        if self.direct:
            for i, j in corners:
                f.tile_store(2 * i + j, to + (i * LANES * plane + j * LANES), 4 * plane)
            return
        for i, j in corners:
            f.tile_store(2 * i + j, self.scratch + (i * 512 + j * LANES), 128)
        channels = f.index(self.shape.out_channels) - block * (2 * LANES)
        with f.loop(0, f.minimum(channels, 2 * LANES)) as channel:
            bias = f.bias.broadcast(block * (2 * LANES) + channel, LANES) if self.has_bias else None
            for j in range(count):
                value = self.scratch.load(channel * (2 * LANES) + j * LANES, LANES, align=64)
                self._store(value, bias, to + (channel * plane + j * LANES))

    def _ask_for(self, to: Pointer, plane: int, step: Value, asked: int) -> int:
        """Fetch some lines of the block's results, a few with every product: all at once would hold it up."""
        dots = len(PRODUCTS[self.cut.products]) * 4
        each = -(-64 // (self.cut.steps * dots))
        for number in range(asked, asked + each):
            line = self.f.minimum(step * (dots * each) + number, 63)
            (to + (line // 2 * plane + line % 2 * LANES)).prefetch(write=True)
        return asked + each

    def _store(self, value: Value, bias: Any, to: Pointer) -> None:
        f = self.f
        value = value if bias is None else value + bias
        value = f.max(value, 0.0) if self.relu else value
        to.store(value)
