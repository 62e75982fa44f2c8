"""The tile convolution: products of bfloat16 parts summed in float32 tiles, then bias, ReLU and store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from llvmlite import ir

from convlens.kernels.cpu.amx.geometry import Slab, weight_parts
from convlens.kernels.cpu.amx.pack import Place, pack_slab, pack_weights
from convlens.kernels.cpu.codegen import F32, I16, I32, Function, Module, Pointer, Value
from convlens.kernels.cpu.epilogue import activated

__all__ = ["PRODUCTS", "build_convolution", "multiply_parts"]

LANES = 16
_CHAIN = 40
"""Steps summed in one go: every product rounds the running sum, so long sums are built from pieces."""

PRODUCTS = {
    # each list changes one operand at a time, so that a tile is seldom loaded twice
    3: [(0, 0), (1, 0), (0, 1)],
    4: [(0, 0), (1, 0), (1, 1), (0, 1)],
    5: [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2)],
    6: [(0, 0), (1, 0), (2, 0), (1, 1), (0, 1), (0, 2)],
}
"""Which parts (of the source, of the weight) are multiplied, by how many products there are.

Two parts keep 16 bits of an operand, three all 24. 6 products leave out only what is below float32's own rounding.
The others have a relative error per term that does not grow with the number of terms, as float32's own does:
2.6e-6 for 5 (two parts of the source, three of the weight), 3.7e-6 for 4, 4.5e-6 for 3.
"""


def multiply_parts(
    f: Function, products: int, a: Pointer, a_part: int, a_tiles: Sequence[Value | int], a_stride: int,
    b: Pointer, b_part: int, b_tiles: list[int],
) -> None:  # fmt: skip
    """One step of 32 terms: tiles 0–3 += A (tiles 4, 5) · B (tiles 6, 7), for every product of parts.

    Args:
        f: function that is emitted.
        products: key of `PRODUCTS`.
        a: first element of A's first part; ``a_part`` elements on lies the next part.
        a_part: see ``a``.
        a_tiles: element offset of each A tile.
        a_stride: bytes between A's rows.
        b: as ``a``, tiles in VNNI order.
        b_part: as ``a_part``.
        b_tiles: as ``a_tiles``.
    """
    held = (-1, -1)
    seen: set[int] = set()
    for left, right in PRODUCTS[products]:
        if left != held[0]:
            for i, offset in enumerate(a_tiles):
                rows = (a + left * a_part) + offset
                f.tile_load(4 + i, rows, a_stride)
                if left not in seen:  # rows lie apart, where the hardware's own prefetching does not look
                    for row in range(16):
                        rows.bytes(row * a_stride + 128).prefetch()
            seen.add(left)
        if right != held[1]:
            for j, offset in enumerate(b_tiles):
                f.tile_load(6 + j, b + (right * b_part + offset), 64)
        held = (left, right)
        for i in range(len(a_tiles)):
            for j in range(len(b_tiles)):
                f.tile_dot(2 * i + j, 4 + i, 6 + j)


def build_convolution(m: Module, slab: Slab) -> None:
    """Export ``run(source, weight, bias, dest, packed, buffers, spoilt, batch, threads)`` for one pass.

    ``pack(weight, packed, threads)`` and ``multiply(source, bias, dest, packed, …)`` are its two halves.
    ``packed`` holds the weights, ``buffers`` one slab per thread; ``spoilt`` becomes 1 if a result is not finite.
    """
    p, products = slab.of, slab.products
    weights = pack_weights(m, p, weight_parts(products))
    steps = p.k_steps()
    offsets = [slab.source_offset(s[0], s[1], s[2], s[3]) for s in steps]
    _place_tables(m, slab)
    m.constant("step_offsets", I32, offsets)
    with m.body(
        "items", source="f32*", bias="f32*", dest="f32*", packed="bf16*", buffers="bf16*", spoilt="i32*",
        batch="int",
    ) as items:  # fmt: skip
        f = items
        f.tile_config([(16, 64)] * 8)
        buffer = f.buffers + f.thread * (slab.parts * slab.part_elements)
        with f.loop(f.begin, f.end) as item:
            _Item(f, slab, buffer, item, len(steps)).emit()
        f.tile_release()
    with m.function(
        "run", source="f32*", weight="f32*", bias="f32*", dest="f32*", packed="bf16*", buffers="bf16*",
        spoilt="i32*", batch="int",
    ) as f:  # fmt: skip
        f.parallel(weights, p.groups * p.dest_pairs * len(steps), f.weight, f.packed)
        count = (f.batch + (slab.images - 1)) // slab.images * slab.items_per_image
        f.parallel(items, count, f.source, f.bias, f.dest, f.packed, f.buffers, f.spoilt, f.batch, grain=1)
    with m.function("pack", weight="f32*", packed="bf16*") as f:
        f.parallel(weights, p.groups * p.dest_pairs * len(steps), f.weight, f.packed)
    with m.function(
        "multiply", source="f32*", bias="f32*", dest="f32*", packed="bf16*", buffers="bf16*", spoilt="i32*",
        batch="int",
    ) as f:  # fmt: skip
        count = (f.batch + (slab.images - 1)) // slab.images * slab.items_per_image
        f.parallel(items, count, f.source, f.bias, f.dest, f.packed, f.buffers, f.spoilt, f.batch, grain=1)


def _place_tables(m: Module, slab: Slab) -> None:
    """Where each place's result goes, counted from the slab's first (-1: junk); which of 16 places are real."""
    _, height, width = slab.of.axes
    pixels = []
    for place in range(-(-slab.place_count // 32) * 32):
        y, x = divmod(place, slab.row_places)
        stored = x < slab.columns and y < slab.rows
        pixels.append(y * height.dest_step * width.dest + x * width.dest_step if stored else -1)
    masks, starts = [], []
    for tile in range(0, len(pixels), LANES):
        part = pixels[tile : tile + LANES]
        mask = sum(1 << lane for lane, pixel in enumerate(part) if pixel >= 0)
        masks.append(mask - (1 << 16) if mask >= 1 << 15 else mask)
        starts.append(next((pixel for pixel in part if pixel >= 0), 0))
    m.constant("place_pixels", I32, pixels)
    m.constant("tile_masks", I16, masks)
    m.constant("tile_starts", I32, starts)


class _Item:
    """Emits one work item: fill the buffer, then every block of output channels over all places."""

    def __init__(self, f: Function, slab: Slab, buffer: Pointer, item: Value, steps: int) -> None:
        self.f, self.slab, self.p, self.products, self.steps = f, slab, slab.of, slab.products, steps
        self.buffer = buffer
        self.weight_parts = weight_parts(slab.products)
        self.tiles = min(2, slab.of.dest_tiles)
        self.scratch, self.piece = f.scratch(F32, 4 * 256), f.scratch(F32, 4 * 256)
        depths, rows, columns, chunks = slab.counts
        chunk, rest = item % chunks, item // chunks
        column, rest = rest % columns, rest // columns
        row, rest = rest % rows, rest // rows
        depth, image = rest % depths, rest // depths
        self.first_pair = chunk * slab.pairs
        group = self.first_pair // self.p.dest_pairs
        self.at = Place(image * slab.images, depth * slab.depths, row * slab.rows, column * slab.columns, group)

    def emit(self) -> None:
        """See the class."""
        f, p, slab = self.f, self.p, self.slab
        first = self.at.image
        images = f.minimum(slab.images, f.batch - first)
        with f.loop(0, images) as image:
            self.at.image = first + image
            pack_slab(f, slab, f.source, self.buffer + image * slab.image_elements, self.at)
        self.check = f.variable(f.zeros(LANES))
        depth, height, width = p.axes
        rows = f.minimum(slab.rows, f.index(height.grid) - self.at.row)
        self.limit = rows * slab.row_places
        if slab.columns < width.grid:
            self.limit = f.minimum(slab.columns, f.index(width.grid) - self.at.column)
        end = f.minimum(self.first_pair + slab.pairs, p.groups * p.dest_pairs)
        depths = f.minimum(slab.depths, f.index(depth.grid) - self.at.depth)
        with f.loop(self.first_pair, end) as pair, f.loop(0, images) as image, f.loop(0, depths) as z:
            self.at.image = first + image
            self.group, self.block = pair // p.dest_pairs, pair % p.dest_pairs
            held = (self.group - self.at.group) * (p.blocks * slab.block_elements)
            self.a = self.buffer + (
                image * slab.image_elements + held + z * (depth.buffer_step * slab.slice_elements)
            )
            self.b = f.packed + pair * (self.steps * self.weight_parts * self.tiles * 512)
            self._destination(z)
            if p.dest_tiles % 2 and p.dest_tiles > 1:
                with f.when_else(self.block.equals(p.dest_pairs - 1)) as (last, others):
                    with last:
                        self._all_places(1)
                    with others:
                        self._all_places(2)
            else:
                self._all_places(self.tiles)
        bad = self.check.get()
        with f.when(f.any(bad.differs(bad))):
            f.spoilt.store(Value(f, ir.Constant(I32, 1)))

    def _destination(self, z: Value) -> None:
        p = self.p
        depth, height, width = p.axes
        z_dest = (self.at.depth + z) * depth.dest_step + depth.dest_first
        y_dest = self.at.row * height.dest_step + height.dest_first
        pixel = (z_dest * height.dest + y_dest) * width.dest + self.at.column * width.dest_step + width.dest_first
        channels = p.groups * p.dest_channels
        plane = depth.dest * height.dest * width.dest
        first = self.group * p.dest_channels + self.block * 32
        if p.channels_last:
            self.dest = self.f.dest + ((self.at.image * plane + pixel) * channels + first)
        else:
            self.dest = self.f.dest + ((self.at.image * channels + first) * plane + pixel)
        self.bias = self.f.bias + first
        self.left = self.f.index(p.dest_channels) - self.block * 32

    def _all_places(self, width: int) -> None:
        """All tiles of 16 places, two at a time, for ``width`` tiles of output channels."""
        f = self.f
        tiles = (self.limit + 15) // LANES
        with f.loop(0, tiles - 1, 2) as tile:
            self._block(tile, 2, width)
        with f.when((tiles % 2).equals(1)):
            self._block(tiles - 1, 1, width)

    def _block(self, tile: Value, count: int, width: int) -> None:
        f, slab = self.f, self.slab
        pixel = self.p.axes[2].buffer_step * self.p.block  # elements between neighbouring places
        tile_elements = self.tiles * 512
        pieces = -(-self.steps // _CHAIN)
        length = -(-self.steps // pieces)
        piece = self.piece if pieces > 1 else self.scratch
        if pieces > 1:
            with f.loop(0, 1024, LANES) as at:
                self.scratch.store(f.zeros(LANES), at)
        offsets = Pointer(f, f.module.ir.globals["step_offsets"], I32)
        a = self.a + tile * (LANES * pixel)
        corners = [(i, j) for i in range(count) for j in range(width)]
        with f.loop(0, self.steps, length) as start:
            for i, j in corners:
                f.tile_zero(2 * i + j)
            with f.loop(start, f.minimum(start + length, self.steps)) as step:
                offset = Value(f, f.irb.sext(offsets.load(step).ir, step.type))
                multiply_parts(
                    f, self.products,
                    a + offset, slab.part_elements, [i * LANES * pixel for i in range(count)], 2 * pixel,
                    self.b + step * (self.weight_parts * tile_elements), tile_elements,
                    [j * 512 for j in range(width)],
                )  # fmt: skip
            for i, j in corners:
                f.tile_store(2 * i + j, piece + (i * 512 + j * 16), 128)
            if pieces > 1:
                with f.loop(0, 512 * count, LANES) as at:
                    self.scratch.store(self.scratch.load(at, LANES) + piece.load(at, LANES), at)
        if self.p.channels_last:
            self._store_pixels(tile, count, width)
        else:
            with f.loop(0, count) as half:
                for j in range(width):
                    self._store_planes(tile + half, self.scratch + (half * 512 + j * 16), j)

    def _finish(self, values: Value, residual: Value | None) -> Value:
        """What is left after the bias; the residual needs no watching, as nothing multiplies it."""
        if residual is not None:
            values = values + residual
        return activated(self.f, values, self.p.activation)

    def _watch(self, values: Value) -> None:
        """Note inf and NaN: times zero they are NaN, and NaN stays in a sum."""
        self.check.set(self.f.fma(values, self.f.zeros(LANES), self.check.get()))

    def _store_pixels(self, tile: Value, count: int, width: int) -> None:
        """Channels last: a row of the tile is a run of one pixel's channels."""
        f, p = self.f, self.p
        pixels = Pointer(f, f.module.ir.globals["place_pixels"], I32)
        whole = p.dest_channels % LANES == 0
        masks = [None if whole else f.mask_below(self.left - 16 * j, LANES) for j in range(width)]
        biases = [self.bias.load(16 * j, LANES, mask=masks[j]) if p.bias else None for j in range(width)]
        real = f.minimum(count * LANES, self.limit - tile * LANES)
        with f.loop(0, real) as r:
            pixel = Value(f, f.irb.sext(pixels.load(tile * LANES + r).ir, tile.type))
            with f.when(pixel >= 0):
                to = self.dest + pixel * (p.groups * p.dest_channels)
                for j in range(width):
                    values, bias = self.scratch.load(r * 32 + j * 16, LANES), biases[j]
                    values = values if bias is None else values + bias
                    self._watch(values)
                    held = to.load(j * 16, LANES, mask=masks[j]) if p.residual else None
                    to.store(self._finish(values, held), j * 16, mask=masks[j])

    def _store_planes(self, tile: Value, scratch: Pointer, j: int) -> None:
        """Channels apart: turn the tile, then write each channel's places, neighbours in its plane."""
        f, p, slab = self.f, self.p, self.slab
        depth, height, width = p.axes
        plane = depth.dest * height.dest * width.dest
        strided = width.dest_step > 1 or (height.dest_step > 1 and slab.rows > 1)
        mask: Value = f.mask_below(self.limit - tile * LANES, LANES)
        junk = slab.row_places > slab.columns
        if junk:
            bits = Pointer(f, f.module.ir.globals["tile_masks"], I16).load(tile)
            mask = mask & Value(f, f.irb.bitcast(bits.ir, ir.VectorType(ir.IntType(1), LANES)))
        start = Pointer(f, f.module.ir.globals["tile_starts"], I32).load(tile)
        to = self.dest + Value(f, f.irb.sext(start.ir, tile.type))
        kept = mask
        if junk and not strided:
            ones = f.irb.zext(f.irb.ctpop(f.irb.bitcast(mask.ir, ir.IntType(16))), tile.type)
            kept = f.mask_below(Value(f, ones), LANES)
        columns = f.transpose([scratch.load(r * 32, LANES) for r in range(LANES)])
        for c, values in enumerate(columns):
            bias = None
            with _channel_exists(f, self.left > 16 * j + c, p.dest_channels % LANES != 0):
                if p.bias:
                    bias = f.broadcast(self.bias.load(16 * j + c), LANES)
                values = values if bias is None else values + bias
                self._watch(f.select(mask, values, f.zeros(LANES)))
                if strided:
                    values = self._finish(values, None)
                    places = Pointer(f, f.module.ir.globals["place_pixels"], I32).load(tile * LANES, LANES)
                    f.scatter(self.dest + (16 * j + c) * plane, places, values, mask)
                    continue
                if junk:
                    values = f.compress(values, mask)
                held = to.load((16 * j + c) * plane, LANES, mask=kept) if p.residual else None
                to.store(self._finish(values, held), (16 * j + c) * plane, mask=kept)


def _channel_exists(f: Function, condition: Value, needed: bool) -> AbstractContextManager[None]:
    return f.when(condition) if needed else nullcontext()
