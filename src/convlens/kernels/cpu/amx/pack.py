"""Copying operands into the tile kernel's form: float32 as a sum of bfloat16 parts, padding written out."""

from __future__ import annotations

from typing import Any

from convlens.kernels.cpu.amx.geometry import Axis, Pass, Slab
from convlens.kernels.cpu.codegen import BF16, I32, Function, Module, Pointer, Value

__all__ = ["Place", "pack_slab", "pack_weights", "weight_elements"]

LANES = 16
_AHEAD = 1024  # values: the hardware does not look beyond a page of 4 KiB


class Place:
    """Where a work item begins: image, depth, row, column of its first output, first group (run-time values)."""

    def __init__(self, image: Value, depth: Value, row: Value, column: Value, group: Value) -> None:
        self.image = image
        self.depth = depth
        self.row = row
        self.column = column
        self.group = group


def weight_elements(p: Pass, parts: int) -> int:
    """bfloat16 elements of the packed weights."""
    return p.groups * p.dest_pairs * len(p.k_steps()) * parts * min(2, p.dest_tiles) * 512


def pack_weights(m: Module, p: Pass, parts: int) -> Function:
    """Body over ``groups · pairs · steps`` items: tiles in "VNNI" order, parts apart; see `multiply`.

    Lanes are output channels, gathered at their stride; what lies outside (channels, terms) becomes zero.
    """
    steps = p.k_steps()
    tiles = min(2, p.dest_tiles)
    offsets = [offset for step in steps for offset in (step[4] + [-1] * 32)[:32]]
    with m.body("pack_weights", weight="f32*", packed="bf16*") as f:
        table = Pointer(f, m.constant("weight_offsets", I32, offsets), I32)
        with f.loop(f.begin, f.end) as item:
            block, step = item // len(steps), item % len(steps)
            group, pair = block // p.dest_pairs, block % p.dest_pairs
            out = f.packed + item * (parts * tiles * 512)
            for tile in range(tiles):
                channel = pair * 32 + tile * 16
                source = f.weight + (group * p.weight_group_stride + channel * p.weight_dest_stride)
                with f.loop(0, 16) as k:
                    halves = []
                    for side in (0, 1):
                        offset = Value(f, f.irb.sext(table.load(step * 32 + k * 2 + side).ir, item.type))
                        channels = f.select(offset >= 0, f.index(p.dest_channels) - channel, f.index(0))
                        lanes = f.iota(LANES) * p.weight_dest_stride
                        taken = f.gather(source + offset, lanes, f.mask_below(channels, LANES))
                        halves.append(f.split_bf16(taken, parts))
                    for part in range(parts):
                        both = f.interleave(halves[0][part], halves[1][part])
                        out.store(both, k * 32 + (part * tiles + tile) * 512, align=64)
    return f


def pack_slab(f: Function, slab: Slab, source: Pointer, buffer: Pointer, at: Place) -> None:
    """Fill one thread's buffer with the source of one work item."""
    p = slab.of
    depth, height, _ = p.axes
    zero_span(f, slab, buffer + slab.image_elements, 64)
    with f.loop(0, slab.groups_held * p.blocks) as held:
        group, block = at.group + held // p.blocks, held % p.blocks
        first = group * p.source_channels + block * p.block
        channels: Value | int = p.block
        if p.source_channels % p.block:
            channels = f.minimum(p.block, f.index(p.source_channels) - block * p.block)
        inside_groups = group < p.groups
        with f.when(inside_groups), f.loop(0, slab.slices) as z:
            z_source = at.depth * depth.step + depth.first + z * depth.source_step()
            with f.loop(0, height.buffer_length(slab.rows)) as y:
                y_source = at.row * height.step + height.first + y * height.source_step()
                physical = y % height.buffer_step * slab.phase_rows + y // height.buffer_step
                row = buffer + (held * slab.block_elements + z * slab.slice_elements)
                row = row + physical * (slab.row_pixels * p.block)
                inside = inside_axis(f, depth, z_source) & inside_axis(f, height, y_source)
                with f.when_else(inside) as (real, padding):
                    with real:
                        line = (at.image * depth.source + z_source) * height.source + y_source
                        plane = z_source * height.source + y_source
                        _Row(f, slab, source, row, at, first, channels, line, plane).emit()
                    with padding:
                        zero_span(f, slab, row, slab.row_pixels * p.block)


def inside_axis(f: Function, axis: Axis, place: Value) -> Value:
    """Whether a source place exists (elsewhere is padding)."""
    return (place >= 0) & (place < axis.source)


def zero_span(f: Function, slab: Slab, start: Pointer, count: Value | int) -> None:
    """Zero ``count`` elements of every part."""
    zeros = f.bitcast(f.zeros(LANES, I32), BF16)
    for part in range(slab.parts):
        to = start + part * slab.part_elements
        if isinstance(count, int) and count % 32 == 0:
            with f.loop(0, count, 32) as i:
                to.store(zeros, i)
            continue
        with f.loop(0, count, 32) as i:
            to.store(zeros, i, mask=f.mask_below(f.index(count) - i, 32))


class _Row:
    """Emits the copy of one source row into one buffer row."""

    def __init__(
        self, f: Function, slab: Slab, source: Pointer, row: Pointer, at: Place,
        first: Value, channels: Value | int, line: Value, plane: Value,
    ) -> None:  # fmt: skip
        self.f, self.slab, self.p, self.row = f, slab, slab.of, row
        self.source, self.at, self.first, self.channels = source, at, first, channels
        self.line, self.plane = line, plane
        self.width = self.p.axes[2]
        self.stride = self.width.source_step()

    def emit(self) -> None:
        """The valid pixels between zeros: ``low`` to ``high`` of the buffer row."""
        f, width, block = self.f, self.width, self.p.block
        start: Value | int = width.first
        if self.slab.columns < width.grid:
            start = self.at.column * width.step + width.first
        self.start = start
        if isinstance(start, int):
            self.low: Any = min(max(0, -(start // self.stride)), self.slab.row_pixels)
            self.high: Any = max(self.low, min(self.slab.row_pixels, -((start - width.source) // self.stride)))
            count = self.high - self.low
            before, after = self.low > 0, self.high < self.slab.row_pixels
        else:
            self.low = f.minimum(
                f.maximum(0, f.index(0) - start + (self.stride - 1)) // self.stride, self.slab.row_pixels
            )
            room = f.maximum(0, f.index(width.source) - start + (self.stride - 1)) // self.stride
            self.high = f.maximum(self.low, f.minimum(self.slab.row_pixels, room))
            count = self.high - self.low
            before = after = True
        if before:
            zero_span(f, self.slab, self.row, self.low * block)
        if after:
            zero_span(
                f, self.slab, self.row + self.high * block, (f.index(self.slab.row_pixels) - self.high) * block
            )
        if isinstance(count, int) and count == 0:
            return
        if self.p.pixels:
            self._from_channels_last(count)
        else:
            self._from_planes(count)

    def _store(self, values: Value, to: Pointer, mask: Value | None) -> None:
        for part, piece in enumerate(self.f.split_bf16(values, self.slab.parts)):
            to.store(piece, part * self.slab.part_elements, mask=mask)

    def _from_channels_last(self, count: Value | int) -> None:
        f, p = self.f, self.p
        total = p.groups * p.source_channels
        pixel = self.line * self.width.source + self.start + f.index(self.low) * self.stride
        source = self.source + (pixel * total + self.first)
        to = self.row + f.index(self.low) * p.block
        if total == p.block and self.stride == 1:
            self._run(source, to, f.index(count) * p.block)
            return
        with f.loop(0, count) as j:
            self._run(source + j * (self.stride * total), to + j * p.block, self.channels)
            if p.source_channels % p.block:
                # the last block's missing channels meet zero weights, but must be finite
                gap = f.index(p.block) - self.channels
                zero_span(f, self.slab, to + (j * p.block + self.channels), gap)

    def _run(self, source: Pointer, to: Pointer, count: Value | int) -> None:
        """``count`` neighbouring values."""
        f = self.f
        whole = count - count % 64 if isinstance(count, int) else count & ~63
        with f.loop(0, whole, 64) as i:
            for line in range(0, 64, LANES):
                source.prefetch(i + (_AHEAD + line))
            for piece in range(0, 64, 32):
                pair = [f.split_bf16(source.load(i + piece + half, LANES), self.slab.parts) for half in (0, 16)]
                for part in range(self.slab.parts):
                    joined = f.shuffle(pair[0][part], pair[1][part], range(32))
                    to.store(joined, i + piece + part * self.slab.part_elements)
        with f.loop(whole, count, LANES) as i:
            mask = f.mask_below(f.index(count) - i, LANES)
            self._store(source.load(i, LANES, mask=mask), to + i, mask)

    def _from_planes(self, count: Value | int) -> None:
        """Channels lie a plane apart: turn squares of 16 channels × 16 pixels in registers."""
        f, p = self.f, self.p
        depth, height, width = p.axes
        plane_size = depth.source * height.source * width.source
        image = self.at.image * (p.groups * p.source_channels)
        inside = self.plane * width.source + self.start
        with f.loop(0, p.block, LANES) as q:
            last = f.index(self.channels) - 1
            rows = []
            for c in range(LANES):
                channel = self.first + f.minimum(q + c, last)
                rows.append(self.source + ((image + channel) * plane_size + inside))
            to = self.row + q
            mask = None if p.block % LANES == 0 else f.mask_below(f.index(p.block) - q, LANES)
            if isinstance(count, int) and count < LANES:
                self._square(rows, to, f.index(self.low), count, mask)
            elif isinstance(count, int):
                with f.loop(self.low, self.high, LANES) as j:
                    self._square(rows, to, f.minimum(j, self.high - LANES), LANES, mask)
            else:
                self._cut_row(rows, to, mask)

    def _cut_row(self, rows: list[Pointer], to: Pointer, mask: Value | None) -> None:
        """A row whose valid length is only known at run time."""
        f = self.f
        with f.when_else(self.high - self.low >= LANES) as (long, short):
            with long, f.loop(self.low, self.high, LANES) as j:
                self._square(rows, to, f.minimum(j, self.high - LANES), LANES, mask)
            with short, f.loop(self.low, self.high) as j:
                self._square(rows, to, j, 1, mask)

    def _square(self, rows: list[Pointer], to: Pointer, j: Value, count: int, mask: Value | None) -> None:
        """Pixels ``j`` to ``j + count`` of 16 channels."""
        f = self.f
        loaded = []
        for row in rows:
            if self.stride == 1:
                cut = None if count == LANES else f.mask_below(count, LANES)
                loaded.append(row.load(j, LANES, mask=cut))
            else:
                loaded.append(
                    f.gather(row + j * self.stride, f.iota(LANES) * self.stride, f.mask_below(count, LANES))
                )
        for t, pixel in enumerate(f.transpose(loaded)[:count]):
            self._store(pixel, to + (j + t) * self.p.block, mask)
