"""Forward convolution and input gradient: blocks of places × vectors of channels, weights from panels."""

from __future__ import annotations

import contextlib
from typing import Any

from convlens.kernels.cpu.codegen import F32, INT, Function, Module, Pointer, Value
from convlens.kernels.cpu.direct.geometry import Block, Pass, Shape, band_rows
from convlens.kernels.cpu.direct.pack import (
    pack_body,
    pass_values,
    tap_list,
    turned_store,
    unpack_body,
    weights_body,
)
from convlens.kernels.cpu.epilogue import activated

__all__ = ["LONGEST_SUM", "build_multiply", "spreads"]

LONGEST_SUM = 64
"""Products added one after the other; then sums of so many are added, for the rounding errors of long ones."""


def spreads(shape: Shape) -> bool:
    """Whether results go through a buffer with channels fastest: planes whose columns come in several passes."""
    return not shape.channels_last and any(axes[2].dest_step > 1 for axes in shape.passes)


def build_multiply(m: Module, shape: Shape, block: Block, parts: int) -> None:
    """Export ``run(source, weight, bias, dest, packed, panels, spread, batch, threads)``.

    ``packed`` is not used where `Shape.packs` is false; ``parts`` cuts the blocks of an item. Without
    ``spread`` also its two halves, for weights that stay: ``prepare(weight, panels, threads)`` and
    ``multiply(source, bias, dest, packed, panels, batch, threads)``.
    """
    pack = pack_body(
        m, "pack", shape.source, shape.groups, shape.source_channels, shape.source_channels,
        shape.channels_last and not shape.from_planes,
    )  # fmt: skip
    weights = weights_body(m, shape, block)
    spread = spreads(shape)
    starts, at = [], 0
    for size in pass_values(shape, block):
        starts.append(at)
        at += size * shape.groups
    bodies = [
        (_pass_body(m, f"pass{i}", shape, block, axes, parts, spread), axes, start)
        for i, (axes, start) in enumerate(zip(shape.passes, starts, strict=True))
        if tap_list(shape, axes)
    ]
    unpack = unpack_body(m, shape, block.vectors) if spread else None
    vectors = shape.groups * block.vectors * shape.source_channels

    def multiply(f: Function, to: Pointer) -> None:
        packed = f.packed if shape.packs else f.source
        for body, axes, start in bodies:
            bands = -(-axes[1].count // _height(shape, block, axes))
            items = f.batch * (axes[0].count * bands * shape.groups * parts)
            f.parallel(body, items, packed, f.panels + start, f.bias, to, grain=1)

    def pack_source(f: Function) -> None:
        if shape.packs:
            f.parallel(pack, f.batch * (shape.source[0].packed * shape.source[1].packed), f.source, f.packed)

    if not spread:
        with m.function("prepare", weight="f32*", panels="f32*") as f:
            f.parallel(weights, vectors, f.weight, f.panels)
        with m.function(
            "multiply", source="f32*", bias="f32*", dest="f32*", packed="f32*", panels="f32*", batch="int"
        ) as f:
            pack_source(f)
            multiply(f, f.dest)
    with m.function(
        "run", source="f32*", weight="f32*", bias="f32*", dest="f32*", packed="f32*", panels="f32*", spread="f32*",
        batch="int",
    ) as f:  # fmt: skip
        pack_source(f)
        f.parallel(weights, vectors, f.weight, f.panels)
        multiply(f, f.spread if spread else f.dest)
        if unpack is not None:
            f.parallel(unpack, f.batch * (shape.dest_places // shape.dest[2]), f.spread, f.dest)


def _height(shape: Shape, block: Block, axes: Pass) -> int:
    least = max(size[0] for size in block.places)
    return min(axes[1].count, band_rows(shape, axes, least))


def _pass_body(m: Module, name: str, shape: Shape, block: Block, axes: Pass, parts: int, spread: bool) -> Function:
    """Body over images × planes × bands of rows × groups × parts of the blocks."""
    height = _height(shape, block, axes)
    bands = -(-axes[1].count // height)
    with m.body(name, packed="f32*", panels="f32*", bias="f32*", dest="f32*") as f:
        work = _Pass(f, shape, block, axes, spread)
        with f.loop(f.begin, f.end) as item:
            part, rest = item % parts, item // parts
            group, rest = rest % shape.groups, rest // shape.groups
            band, rest = rest % bands, rest // bands
            plane, image = rest % axes[0].count, rest // axes[0].count
            first = band * height
            rows = f.minimum(height, f.index(axes[1].count) - first)
            begin, end = part * block.blocks // parts, (part + 1) * block.blocks // parts
            work.emit(image, group, plane, first, rows, begin, end)
    f.ir.attributes.add("noinline")
    return f


class _Pass:
    """Emits the blocks of one pass."""

    def __init__(self, f: Function, shape: Shape, block: Block, axes: Pass, spread: bool) -> None:
        self.f, self.shape, self.block, self.axes, self.lanes = f, shape, block, axes, f.target.lanes
        self.taps = tap_list(shape, axes)
        name = f"offsets.{f.name}"
        self.offsets = Pointer(f, f.module.constant(name, INT, [offset for _, offset in self.taps]), INT)
        self.fastest = shape.channels_last or spread
        self.kept = block.vectors * self.lanes if spread else shape.dest_channels
        self.most = max(
            a * b * w for (a, b), w, c in zip(block.places, block.widths, block.counts, strict=True) if c
        )
        self.totals = f.scratch(F32, self.most * self.lanes)
        self.panel_values = len(self.taps) * shape.source_channels * block.vectors * self.lanes

    def emit(
        self, image: Value, group: Value, plane: Value, first: Value, rows: Value, begin: Value, end: Value
    ) -> None:
        """Blocks ``begin … end`` of channels, over ``rows`` rows from ``first`` on."""
        f, shape, block = self.f, self.shape, self.block
        depth, down, across = self.axes
        panel = f.panels + group * self.panel_values
        source = f.packed + (image * shape.packed_places * shape.pitch + group * shape.source_channels)
        wide = block.counts[0]
        ranges = ((begin, f.minimum(end, wide)), (f.maximum(begin, wide), end))
        for which, (low, high) in enumerate(ranges):
            if not block.counts[which]:
                continue
            width, (tall, broad) = block.widths[which], block.places[which]
            base = 0 if which == 0 else block.widths[0] * wide
            with f.loop(low, high) as number:
                vector = (number - (wide if which else 0)) * width + base
                weights = panel + vector * (len(self.taps) * shape.source_channels * self.lanes)
                with (
                    _starts(f, rows, tall, down.count) as (r, above),
                    _starts(f, across.count, broad, across.count) as (c, before),
                ):
                    row = first + r
                    z, y = plane * depth.step + depth.source, row * down.step + down.source
                    line = (z * shape.source[1].packed + y) * shape.source[2].packed
                    place = (line + c * across.step + across.source) * shape.pitch
                    sums = self._sums(source + place, weights, width, tall, broad)
                    done = (above, before) if shape.residual else (None, None)
                    self._store(sums, image, group, plane, row, c, vector, width, tall, broad, done)

    def _sums(self, source: Pointer, weights: Pointer, width: int, tall: int, broad: int) -> list[Value]:
        """``[row][column][vector]`` of one block."""
        f, lanes, channels, count = self.f, self.lanes, self.shape.source_channels, len(self.taps)
        held = [f.variable(f.zeros(lanes)) for _ in range(tall * broad * width)]
        if count * channels <= LONGEST_SUM:
            with f.loop(0, count) as tap:
                self._channels(held, source, weights, tap, width, tall, broad, f.index(0), f.index(channels))
            return [value.get() for value in held]
        for k in range(len(held)):
            self.totals.store(f.zeros(lanes), k * lanes, align=4 * lanes)

        def clear() -> None:
            for value in held:
                value.set(f.zeros(lanes))

        def flush() -> None:
            for k, value in enumerate(held):
                before = self.totals.load(k * lanes, lanes, align=4 * lanes)
                self.totals.store(before + value.get(), k * lanes, align=4 * lanes)

        if channels >= LONGEST_SUM:
            parts = -(-channels // LONGEST_SUM)
            part = -(-channels // parts)
            with f.loop(0, count) as tap, f.loop(0, channels, part) as low:
                clear()
                high = f.minimum(low + part, channels)
                self._channels(held, source, weights, tap, width, tall, broad, low, high)
                flush()
        else:
            run = -(-LONGEST_SUM // channels)
            with f.loop(0, count, run) as begin:
                clear()
                with f.loop(begin, f.minimum(begin + run, count)) as tap:
                    self._channels(held, source, weights, tap, width, tall, broad, f.index(0), f.index(channels))
                flush()
        return [self.totals.load(k * lanes, lanes, align=4 * lanes) for k in range(len(held))]

    def _channels(
        self, held: list[Any], source: Pointer, weights: Pointer, tap: Value, width: int, tall: int, broad: int,
        low: Value, high: Value,
    ) -> None:  # fmt: skip
        """Add the products of one tap over a run of source channels."""
        f, shape, lanes = self.f, self.shape, self.lanes
        _, down, across = self.axes
        here = source + self.offsets.load(tap)
        panel = weights + tap * (shape.source_channels * width * lanes)
        line = down.step * shape.source[2].packed * shape.pitch
        places = [r * line + c * across.step * shape.pitch for r in range(tall) for c in range(broad)]
        with f.loop(low, high) as channel:
            factors = [panel.load((channel * width + v) * lanes, lanes, align=4 * lanes) for v in range(width)]
            for k, place in enumerate(places):
                value = here.broadcast(channel + place, lanes)
                for v in range(width):
                    sum_ = held[k * width + v]
                    sum_.set(f.fma(value, factors[v], sum_.get()))

    def _store(
        self, sums: list[Value], image: Value, group: Value, plane: Value, row: Value, column: Value,
        vector: Value, width: int, tall: int, broad: int, done: tuple[Value | None, Value | None],
    ) -> None:  # fmt: skip
        """Bias, residual and activation; ``done`` rows and columns of the block have had theirs."""
        f, shape, lanes = self.f, self.shape, self.lanes
        depth, down, across = self.axes
        above, before = done
        z = plane * depth.dest_step + depth.dest
        x = column * across.dest_step + across.dest
        for v in range(width):
            channel = (vector + v) * lanes
            left = f.index(shape.dest_channels) - channel
            mask = None if shape.dest_channels % lanes == 0 else f.mask_below(left, lanes)
            bias = f.bias.load(group * shape.dest_channels + channel, lanes, mask=mask) if shape.bias else None
            for r, row_ahead in enumerate(_ahead(f, tall, above)):
                y = (row + r) * down.dest_step + down.dest
                values = [sums[(r * broad + c) * width + v] for c in range(broad)]
                if bias is not None:
                    values = [value + bias for value in values]
                line = (z * shape.dest[1] + y) * shape.dest[2] + x
                if self.fastest:
                    pitch = shape.groups * self.kept
                    at = (image * shape.dest_places + line) * pitch + group * self.kept + channel
                    whole = None if self.kept % lanes == 0 else mask
                    with row_ahead:
                        for c, ahead in enumerate(_ahead(f, broad, before)):
                            with ahead:
                                self._put(f.dest + at + c * across.dest_step * pitch, values[c], whole)
                    continue
                if not shape.residual:
                    values = [activated(f, value, shape.activation) for value in values]
                first = (image * shape.groups + group) * shape.dest_channels + channel
                to = f.dest + (first * shape.dest_places + line)
                with row_ahead:
                    for c in range(0, broad, lanes):
                        adding = None
                        if shape.residual:
                            adding = shape.activation, None if before is None else f.mask_from(before - c, lanes)
                        turned_store(f, values[c : c + lanes], to + c, shape.dest_places, left, adding)

    def _put(self, to: Pointer, value: Value, mask: Value | None) -> None:
        if self.shape.residual:
            value = value + to.load(0, self.lanes, mask=mask)
        to.store(activated(self.f, value, self.shape.activation), mask=mask)


def _ahead(f: Function, count: int, done: Value | None) -> Any:
    """For each of ``count`` places a branch around what is only for places that are not ``done``."""
    for place in range(count):
        yield contextlib.nullcontext() if done is None else f.when(done <= place)


@contextlib.contextmanager
def _starts(f: Function, total: Value | int, step: int, most: int) -> Any:
    """Starts of blocks of ``step`` that cover ``total`` (at least ``step``), and how far each overlaps the last.

    None for the latter where none can.
    """
    if most <= step:
        yield f.index(0), None
        return
    with f.loop(0, total, step) as start:
        moved = f.minimum(start, f.index(total) - step if isinstance(total, int) else total - step)
        even = isinstance(total, int) and total % step == 0
        yield moved, None if even else start - moved
