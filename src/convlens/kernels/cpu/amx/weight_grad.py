"""The weight gradient on tiles: places are the summed index; see `sums` for the geometry."""

from __future__ import annotations

import contextlib

from llvmlite import ir

from convlens.kernels.cpu.amx.multiply import multiply_parts
from convlens.kernels.cpu.amx.pack import Place, inside_axis
from convlens.kernels.cpu.amx.sums import Sums
from convlens.kernels.cpu.codegen import BF16, F32, I32, Function, Module, Pointer, Value

__all__ = ["build_weight_grad"]

LANES = 16
_MOST_TOTALS = 512
"""Tiles of output channels whose sums of the bias fit a thread's stack; more are paired one after the other."""


def build_weight_grad(m: Module, cut: Sums, bias: bool) -> None:
    """Export ``run(grad, source, weight, bias, buffers, sums, spoilt, batch, threads)``.

    ``weight`` and ``bias`` receive the gradients; ``sums`` holds every item's own sums, and after them
    those of the bias, per split.
    """
    m.constant("unit_offsets", I32, [cut.unit_offset(u) for u in range(cut.units)] + [0])
    with m.body(
        "items", grad="f32*", source="f32*", buffers="bf16*", sums="f32*", bias_sums="f32*", batch="int"
    ) as items:
        f = items
        f.tile_config([(16, 64)] * 8)
        with f.loop(f.begin, f.end) as item:
            _Item(f, cut, bias, item).emit()
        f.tile_release()
    adding = _add_sums(m, cut)
    bias_adding = _add_bias(m, cut) if bias else None
    p = cut.of
    with m.function(
        "run", grad="f32*", source="f32*", weight="f32*", bias="f32*", buffers="bf16*", sums="f32*",
        spoilt="i32*", batch="int",
    ) as f:  # fmt: skip
        count = p.groups * cut.shares * cut.splits
        bias_sums = f.sums + count * cut.sum_elements
        f.parallel(items, count, f.grad, f.source, f.buffers, f.sums, bias_sums, f.batch, grain=1)
        blocks = p.groups * cut.shares * cut.channel_tiles * p.dest_tiles
        f.parallel(adding, blocks, f.sums, f.weight, f.spoilt)
        if bias_adding is not None:
            f.parallel(bias_adding, p.groups * p.dest_tiles, bias_sums, f.bias, f.spoilt)


class _Item:
    """Emits one item: all slabs of one split, for one share of a group's input channels."""

    def __init__(self, f: Function, cut: Sums, bias: bool, item: Value) -> None:
        self.f, self.cut, self.p, self.products, self.bias = f, cut, cut.of, cut.products, bias
        self.inputs = f.buffers + f.thread * cut.buffer_elements
        self.grads = self.inputs + cut.parts * cut.input_part
        self.sums = f.sums + item * cut.sum_elements
        self.share, rest = item % cut.shares, item // cut.shares
        self.group, self.split = rest % self.p.groups, rest // self.p.groups

    def emit(self) -> None:
        """See the class."""
        f, cut, p = self.f, self.cut, self.p
        with f.loop(0, cut.sum_elements, LANES) as i:
            self.sums.store(f.zeros(LANES), i)
        if self.bias:
            self.bias_sums = f.bias_sums + (self.split * p.groups + self.group) * (p.dest_tiles * 16)
            with f.when(self.share.equals(0)), f.loop(0, p.dest_tiles * 16, LANES) as i:
                self.bias_sums.store(f.zeros(LANES), i)
        slabs = (f.batch + (cut.images - 1)) // cut.images * cut.slabs_per_image
        begin, end = slabs * self.split // cut.splits, slabs * (self.split + 1) // cut.splits
        with f.loop(begin, end) as slab:
            depths, rows, columns = cut.counts
            column, rest = slab % columns, slab // columns
            row, rest = rest % rows, rest // rows
            depth, first = rest % depths, rest // depths * cut.images
            self.images = f.minimum(cut.images, f.batch - first)
            with f.loop(0, self.images) as image:
                self.image = image
                self.at = Place(first + image, depth, row * cut.rows, column * cut.columns, self.group)
                self._keep_inputs()
                self._pair_grads()
            self._multiply()

    # --- operands --------------------------------------------------------------------------------------

    def _keep_inputs(self) -> None:
        """Inputs channel by channel, row by row, residue by residue of the steps; padding written as zeros."""
        f, cut, p = self.f, self.cut, self.p
        depth, height, width = p.axes
        first_tile = self.share * cut.channel_tiles
        with f.loop(0, cut.channel_tiles) as tile, f.loop(0, cut.slices) as z:
            channel = (first_tile + tile) * 16
            left = f.maximum(0, f.index(p.source_channels) - channel)
            z_source = self.at.depth * depth.step + depth.first + z * depth.source_step()
            with f.loop(0, height.buffer_length(cut.rows)) as y:
                y_source = self.at.row * height.step + height.first + y * height.source_step()
                inside = inside_axis(f, depth, z_source) & inside_axis(f, height, y_source)
                room = f.select(inside, left, f.index(0))
                versions = len(cut.versions)
                row = y % height.buffer_step * versions * cut.phase_rows + y // height.buffer_step
                to = self.inputs + self.image * cut.image_elements
                to = to + (tile * (16 * cut.plane_elements) + z * cut.slice_elements)
                to = to + row * cut.row_places
                for version, (first, step) in enumerate(cut.versions):
                    start = self.at.column * width.step + first
                    to_version = to + version * cut.phase_elements
                    with f.loop(0, cut.row_places, LANES) as x:
                        column = start + x * step
                        channels = self._squares(channel, room, z_source, y_source, column, step)
                        mask = f.mask_below(f.index(cut.row_places) - x, LANES)
                        for c, values in enumerate(channels):
                            for part, piece in enumerate(f.split_bf16(values, cut.parts)):
                                where = to_version + (x + (part * cut.input_part + c * cut.plane_elements))
                                where.store(piece, mask=mask)

    def _squares(self, channel: Value, room: Value, z: Value, y: Value, column: Value, step: int) -> list[Value]:
        """16 channels × 16 pixels from ``column`` on, ``step`` apart; zeros outside the input."""
        f, p = self.f, self.p
        depth, height, width = p.axes
        total = p.groups * p.source_channels
        first = self.group * p.source_channels + channel
        if p.channels_last:
            line = ((self.at.image * depth.source + z) * height.source + y) * width.source
            pixels = []
            for t in range(LANES):
                place = column + t * step
                valid = f.select(inside_axis(f, width, place), room, f.index(0))
                pixels.append(
                    f.source.load((line + place) * total + first, LANES, mask=f.mask_below(valid, LANES))
                )
            return f.transpose(pixels)
        plane = depth.source * height.source * width.source
        line = (self.at.image * total + first) * plane + (z * height.source + y) * width.source + column
        lanes = f.iota(LANES) * step
        here = Value(f, f.irb.trunc(f.minimum(f.maximum(column, -(1 << 30)), 1 << 30).ir, I32))
        places = lanes + f.broadcast(here, LANES)
        inside = (places >= 0) & (places < width.source)
        none = f.mask_below(0, LANES)
        channels = []
        for c in range(LANES):
            exists = f.broadcast(f.index(c) < room, LANES)
            mask = f.select(exists, inside, none)
            start = f.source + (line + c * plane)
            channels.append(start.load(0, LANES, mask=mask) if step == 1 else f.gather(start, lanes, mask))
        return channels

    def _pair_grads(self) -> None:
        """grad_output as pairs of places, 16 output channels wide, junk places zero; sums the bias on the way."""
        f, cut, p = self.f, self.cut, self.p
        # channels in the order of memory: all of a place before the next place, or all places of a plane
        places_first = p.channels_last and p.dest_tiles <= _MOST_TOTALS
        kept = p.dest_tiles if places_first else 1
        self.totals = f.scratch(F32, kept * LANES)
        if places_first:
            self._clear_totals(kept)
            with f.loop(0, cut.rows) as y, f.loop(0, cut.row_places, LANES) as x, f.loop(0, p.dest_tiles) as tile:
                self._pair_square(tile, tile, y, x)
            with f.loop(0, p.dest_tiles) as tile:
                self._end_grads(tile, tile)
            return
        with f.loop(0, p.dest_tiles) as tile:
            self._clear_totals(kept)
            with f.loop(0, cut.rows) as y, f.loop(0, cut.row_places, LANES) as x:
                self._pair_square(tile, f.index(0), y, x)
            self._end_grads(tile, f.index(0))

    def _clear_totals(self, count: int) -> None:
        if self.bias:
            with self.f.loop(0, count * LANES, LANES) as i:
                self.totals.store(self.f.zeros(LANES), i)

    def _end_grads(self, tile: Value, slot: Value) -> None:
        """Junk pairs after the last one, and the sums of the bias."""
        f, cut = self.f, self.cut
        nothing = f.bitcast(f.zeros(LANES, I32), BF16)
        with f.loop(cut.rows * cut.row_places // 2, cut.steps * 16) as pair:
            for part in range(cut.grad_parts):
                self._pair_place(self._grad_block(tile), pair, part).store(nothing, align=64)
        if self.bias:
            with f.when(self.share.equals(0)):
                total = self.totals.load(slot * LANES, LANES)
                self.bias_sums.store(self.bias_sums.load(tile * 16, LANES) + total, tile * 16)

    def _grad_block(self, tile: Value) -> Pointer:
        cut = self.cut
        block: Pointer = self.grads + (tile // 2 * cut.grad_block + tile % 2 * 512)
        return block + self.image * (cut.steps * cut.grad_parts * cut.grad_tiles * 512)

    def _pair_square(self, tile: Value, slot: Value, y: Value, x: Value) -> None:
        """16 output channels of 16 places; their sums to ``slot`` of the totals."""
        f, cut, p = self.f, self.cut, self.p
        _, height, width = p.axes
        valid_columns = f.minimum(cut.columns, f.index(width.grid) - self.at.column)
        count = f.select(self.at.row + y < height.grid, valid_columns, f.index(0))
        room, half = f.index(cut.row_places) - x, y * (cut.row_places // 2) + x // 2
        whole = (x + LANES <= count) & (tile * LANES + LANES <= p.dest_channels)
        block = self._grad_block(tile)
        with f.when_else(whole) as (all_of_them, some):
            with all_of_them:
                self._pair_pixels(slot, block, half, self._grad_pixels(tile * 16, y, x, None), None)
            with some:
                self._pair_pixels(slot, block, half, self._grad_pixels(tile * 16, y, x, count), room)

    def _pair_pixels(
        self, slot: Value, block: Pointer, half: Value, pixels: list[Value], room: Value | None
    ) -> None:
        f = self.f
        if self.bias:
            self.totals.store(self.totals.load(slot * LANES, LANES) + _tree_sum(pixels), slot * LANES)
        for t in range(0, LANES, 2):
            with contextlib.nullcontext() if room is None else f.when(room > t):
                self._store_pair(block, half + t // 2, pixels[t], pixels[t + 1])

    def _store_pair(self, block: Pointer, pair: Value, even: Value, odd: Value) -> None:
        f, parts = self.f, self.cut.grad_parts
        pieces = zip(f.split_bf16(even, parts), f.split_bf16(odd, parts), strict=True)
        for part, (left, right) in enumerate(pieces):
            self._pair_place(block, pair, part).store(f.interleave(left, right), align=64)

    def _pair_place(self, block: Pointer, pair: Value, part: int) -> Pointer:
        step = self.cut.grad_parts * self.cut.grad_tiles * 512
        return block + (pair // 16 * step + pair % 16 * 32 + part * self.cut.grad_tiles * 512)

    def _grad_pixels(self, channel: Value, y: Value, x: Value, count: Value | None) -> list[Value]:
        """16 places from ``x`` on, each 16 output channels; zero from place ``count`` on (None: all exist)."""
        f, p = self.f, self.p
        depth, height, width = p.axes
        total = p.groups * p.dest_channels
        first = self.group * p.dest_channels + channel
        left = f.index(p.dest_channels) - channel
        line = (self.at.depth * height.grid + self.at.row + y) * width.grid + self.at.column + x
        plane = depth.grid * height.grid * width.grid
        if p.channels_last:
            start = f.grad + ((self.at.image * plane + line) * total + first)
            pixels = []
            for t in range(LANES):
                mask = None
                if count is not None:
                    mask = f.mask_below(f.select(x + t < count, left, f.index(0)), LANES)
                start.prefetch((t + LANES) * total)  # of the next square: the hardware sees lines far apart
                pixels.append(start.load(t * total, LANES, mask=mask))
            return pixels
        start = f.grad + ((self.at.image * total + first) * plane + line)
        rows = []
        for c in range(LANES):
            mask = None
            if count is not None:
                mask = f.mask_below(f.select(left > c, count - x, f.index(0)), LANES)
            rows.append(start.load(c * plane, LANES, mask=mask))
        return f.transpose(rows)

    # --- products --------------------------------------------------------------------------------------

    def _multiply(self) -> None:
        """Add the slab's products to the sums: every pair of units by every block of output channels."""
        f, cut, p = self.f, self.cut, self.p
        odd_units, odd_grads = cut.units % 2, p.dest_tiles % 2 and p.dest_tiles > 1
        with f.loop(0, p.dest_pairs) as pair, f.loop(0, cut.unit_blocks) as block:
            widest = 2 if cut.units > 1 else 1
            variants: list[tuple[int, int, Value | None]] = [(widest, cut.grad_tiles, None)]
            if odd_units and cut.units > 1:
                variants.append((1, cut.grad_tiles, block.equals(cut.unit_blocks - 1)))
            if odd_grads:
                narrow = pair.equals(p.dest_pairs - 1)
                variants += [(units, 1, narrow if c is None else narrow & c) for units, _, c in variants]
            self._choose(variants, pair, block)

    def _choose(self, variants: list[tuple[int, int, Value | None]], pair: Value, block: Value) -> None:
        """The narrowest variant whose condition holds."""
        units, tiles, condition = variants[-1]
        if condition is None:
            self._block(pair, block, units, tiles)
            return
        with self.f.when_else(condition) as (narrow, others):
            with narrow:
                self._block(pair, block, units, tiles)
            with others:
                self._choose(variants[:-1], pair, block)

    def _block(self, pair: Value, block: Value, units: int, tiles: int) -> None:
        f, cut = self.f, self.cut
        sums = self.sums + (pair * cut.unit_blocks + block) * 1024
        for i in range(units):
            for j in range(tiles):
                f.tile_load(2 * i + j, sums + (2 * i + j) * 256, 64)
        table = Pointer(f, f.module.ir.globals["unit_offsets"], I32)
        offsets = [Value(f, f.irb.sext(table.load(block * 2 + i).ir, block.type)) for i in range(units)]
        grads = self.grads + pair * cut.grad_block
        tile_elements = cut.grad_tiles * 512
        with f.loop(0, self.images) as image, f.loop(0, cut.steps) as step:
            multiply_parts(
                f, self.products,
                self.inputs + (image * cut.image_elements + step * 32), cut.input_part, offsets,
                2 * cut.plane_elements,
                grads + (image * cut.steps + step) * (cut.grad_parts * tile_elements), tile_elements,
                [j * 512 for j in range(tiles)],
            )  # fmt: skip
        for i in range(units):
            for j in range(tiles):
                f.tile_store(2 * i + j, sums + (2 * i + j) * 256, 64)


def _add_sums(m: Module, cut: Sums) -> Function:
    """Body over ``groups · shares · channel tiles · output tiles``: add the splits, turn, write the gradient."""
    p = cut.of
    with m.body("add_sums", sums="f32*", weight="f32*", spoilt="i32*") as f:
        check = f.variable(f.zeros(LANES))
        with f.loop(f.begin, f.end) as item:
            out, rest = item % p.dest_tiles, item // p.dest_tiles
            tile, rest = rest % cut.channel_tiles, rest // cut.channel_tiles
            share, group = rest % cut.shares, rest // cut.shares
            channel = (share * cut.channel_tiles + tile) * 16
            mask = f.mask_below(f.index(p.source_channels) - channel, LANES)
            start = f.weight + (group * p.weight_group_stride + out * (16 * p.weight_dest_stride))
            start = start + channel * p.weight_source_stride
            with f.loop(0, cut.taps) as tap:
                unit = tile * cut.taps + tap
                block = out // 2 * cut.unit_blocks + unit // 2
                place = block * 1024 + (unit % 2 * 2 + out % 2) * 256
                rows = [f.variable(f.zeros(LANES)) for _ in range(LANES)]
                with f.loop(0, cut.splits) as split:
                    whole = (split * p.groups + group) * cut.shares + share
                    source = f.sums + (whole * cut.sum_elements + place)
                    for r, row in enumerate(rows):
                        row.set(row.get() + source.load(r * 16, LANES))
                for c, values in enumerate(f.transpose([row.get() for row in rows])):
                    with f.when(out * 16 + c < p.dest_channels):
                        kept = f.select(mask, values, f.zeros(LANES))
                        check.set(f.fma(kept, f.zeros(LANES), check.get()))
                        to = start + (tap + c * p.weight_dest_stride)
                        if p.weight_source_stride == 1:
                            to.store(values, mask=mask)
                        else:
                            f.scatter(to, f.iota(LANES) * p.weight_source_stride, values, mask)
        _report(f, check.get())
    return f


def _add_bias(m: Module, cut: Sums) -> Function:
    """Body over ``groups · output tiles``: add the splits' sums of the bias."""
    p = cut.of
    with m.body("add_bias", sums="f32*", bias="f32*", spoilt="i32*") as f:
        check = f.variable(f.zeros(LANES))
        with f.loop(f.begin, f.end) as item:
            tile, group = item % p.dest_tiles, item // p.dest_tiles
            total = f.variable(f.zeros(LANES))
            with f.loop(0, cut.splits) as split:
                place = (split * p.groups + group) * (p.dest_tiles * 16) + tile * 16
                total.set(total.get() + f.sums.load(place, LANES))
            check.set(f.fma(total.get(), f.zeros(LANES), check.get()))
            mask = f.mask_below(f.index(p.dest_channels) - tile * 16, LANES)
            f.bias.store(total.get(), group * p.dest_channels + tile * 16, mask=mask)
        _report(f, check.get())
    return f


def _tree_sum(values: list[Value]) -> Value:
    """Sum by pairs: fewer roundings on the way than one after the other."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _report(f: Function, check: Value) -> None:
    with f.when(f.any(check.differs(check))):
        f.spoilt.store(Value(f, ir.Constant(I32, 1)))
