"""Copies into the order that blocks read: sources with channels varying fastest, weights as panels, and back."""

from __future__ import annotations

from typing import Any

from convlens.kernels.cpu.codegen import F32, Function, Module, Pointer, Value
from convlens.kernels.cpu.direct.geometry import Block, Shape, Source
from convlens.kernels.cpu.epilogue import activated

__all__ = ["pack_body", "pass_values", "tap_list", "turned_store", "unpack_body", "weights_body"]


_FEW = 4  # channels that are interleaved by shuffles


def pack_body(
    m: Module, name: str, axes: tuple[Source, Source, Source], groups: int, channels: int, kept: int,
    channels_last: bool,
) -> Function:  # fmt: skip
    """Body over rows of packed images: ``packed[image][z][y][x][group][channel]``, zeros in the padding.

    Args:
        m: the module.
        name: of the body.
        axes: of the source.
        groups: of channels.
        channels: of a group.
        kept: values that a group takes in a packed place, zeros from ``channels`` on.
        channels_last: the source's order.
    """
    depth, rows, columns = axes
    with m.body(name, source="f32*", packed="f32*") as f:
        with f.loop(f.begin, f.end) as item:
            y, rest = item % rows.packed - rows.before, item // rows.packed
            z, image = rest % depth.packed - depth.before, rest // depth.packed
            to = f.packed + item * (columns.packed * groups * kept)
            inside = (y >= 0) & (y < rows.size) & (z >= 0) & (z < depth.size)
            with f.when_else(inside) as (real, outside):
                with real:
                    _row(f, axes, groups, channels, kept, channels_last, image, z * rows.size + y, to)
                with outside:
                    _zeros(f, to, columns.packed * groups * kept)
    f.ir.attributes.add("noinline")
    return f


def _zeros(f: Function, to: Pointer, count: int) -> None:
    lanes = f.target.lanes
    with f.loop(0, count // lanes * lanes, lanes) as i:
        to.store(f.zeros(lanes), i)
    if rest := count % lanes:
        to.store(f.zeros(lanes), count - rest, mask=f.mask_below(rest, lanes))


def _row(
    f: Function, axes: tuple[Source, Source, Source], groups: int, channels: int, kept: int, channels_last: bool,
    image: Value, line: Value, to: Pointer,
) -> None:  # fmt: skip
    depth, rows, columns = axes
    lanes, pitch = f.target.lanes, groups * kept
    skipped = max(0, -columns.before)
    inner = max(0, min(columns.size - skipped, columns.packed - max(0, columns.before)))
    before = max(0, columns.before)
    _zeros(f, to, before * pitch)
    _zeros(f, to + (before + inner) * pitch, (columns.packed - before - inner) * pitch)
    first = to + before * pitch
    plane = depth.size * rows.size * columns.size
    total = groups * channels
    if channels_last:
        at = f.source + (image * plane + line * columns.size + skipped) * total
        with f.loop(0, inner) as x, f.loop(0, groups) as group:
            here, there = at + (x * total + group * channels), first + (x * pitch + group * kept)
            for c in range(0, kept, lanes):
                mask = None if c + lanes <= channels else f.mask_below(channels - c, lanes)
                whole = None if c + lanes <= kept else f.mask_below(kept - c, lanes)
                there.store(here.load(c, lanes, mask=mask), c, mask=whole)
        return
    at = f.source + (image * (total * plane) + line * columns.size + skipped)
    if groups == 1 and kept == channels <= _FEW:
        _interleaved_row(f, at, first, channels, plane, inner)
        return
    with f.loop(0, groups) as group, f.loop(0, kept, lanes) as channel:
        left = f.index(channels) - channel
        planes = [
            at + (group * channels + f.minimum(channel + lane, channels - 1)) * plane for lane in range(lanes)
        ]
        on = f.mask_below(left, lanes)
        whole = None if kept % lanes == 0 else f.mask_below(f.index(kept) - channel, lanes)

        def block(x: Value | int, valid: int) -> None:
            mask = None if valid == lanes else f.mask_below(valid, lanes)
            turned = f.transpose([row.load(x, lanes, mask=mask) for row in planes])
            for i, value in enumerate(turned[:valid]):
                value = f.select(on, value, f.zeros(lanes)) if kept > channels else value
                place = first + ((f.index(x) + i) * pitch + group * kept + channel)
                place.store(value, mask=whole)

        with f.loop(0, inner // lanes * lanes, lanes) as x:
            block(x, lanes)
        if rest := inner % lanes:
            block(inner - rest, rest)


def _interleaved_row(f: Function, at: Pointer, first: Pointer, channels: int, plane: int, inner: int) -> None:
    """A row of few planes: vectors of theirs give as many vectors of places."""
    lanes = f.target.lanes

    def block(x: Value, valid: int) -> None:
        mask = None if valid == lanes else f.mask_below(valid, lanes)
        planes = [at.load(x + c * plane, lanes, mask=mask) for c in range(channels)]
        for k in range(channels):
            left = valid * channels - k * lanes
            if left <= 0:
                continue
            places = [divmod(k * lanes + lane, channels) for lane in range(lanes)]
            value = planes[0] if channels == 1 else f.shuffle(planes[0], planes[1], _picks(places, 1, lanes, True))
            for c in range(2, channels):
                value = f.shuffle(value, planes[c], _picks(places, c, lanes, False))
            first.store(value, x * channels + k * lanes, mask=None if left >= lanes else f.mask_below(left, lanes))

    with f.loop(0, inner // lanes * lanes, lanes) as x:
        block(x, lanes)
    if rest := inner % lanes:
        block(f.index(inner - rest), rest)


def _picks(places: list[tuple[int, int]], channel: int, lanes: int, initial: bool) -> list[int]:
    """Lanes of what is there already, or of plane 0, and of plane ``channel``; anything for later planes."""
    found = []
    for lane, (place, of) in enumerate(places):
        if of == channel:
            found.append(lanes + place)
        elif of < channel:
            found.append(place if initial else lane)
        else:
            found.append(0)
    return found


def unpack_body(m: Module, shape: Shape, vectors: int) -> Function:
    """Body over rows of results with channels fastest (whole vectors of each group), to planes."""
    lanes = m.target.lanes
    width, places = shape.dest[2], shape.dest_places
    pitch = shape.groups * vectors * lanes
    with m.body("unpack", spread="f32*", dest="f32*") as f:
        with f.loop(f.begin, f.end) as item, f.loop(0, shape.groups) as group, f.loop(0, vectors) as vector:
            lines = places // width
            image, line = item // lines, item % lines
            at = f.spread + (item * (width * pitch) + (group * vectors + vector) * lanes)
            first = image * (shape.groups * shape.dest_channels) + group * shape.dest_channels + vector * lanes
            to = f.dest + (first * places + line * width)
            left = f.index(shape.dest_channels) - vector * lanes
            with f.loop(0, width // lanes * lanes, lanes) as x:
                turned_store(f, [at.load((x + i) * pitch, lanes) for i in range(lanes)], to + x, places, left)
            if rest := width % lanes:
                values = [at.load((width - rest + i) * pitch, lanes) for i in range(rest)]
                turned_store(f, values, to + (width - rest), places, left)
    f.ir.attributes.add("noinline")
    return f


def turned_store(
    f: Function, values: list[Value], to: Pointer, plane: int, channels: Value,
    adding: tuple[str, Value | None] | None = None,
) -> None:  # fmt: skip
    """At most ``lanes`` neighbouring places, channels as lanes, into planes; channels beyond the last stay out.

    ``adding``: what lies there is added first, this activation applied to the sum, and only places of this mask
    are written.
    """
    lanes, valid = f.target.lanes, len(values)
    mask = None if valid == lanes else f.mask_below(valid, lanes)
    if adding is not None and adding[1] is not None:
        mask = adding[1] if mask is None else mask & adding[1]
    rows = f.transpose(values + [values[-1]] * (lanes - valid))

    def store(lane: int, row: Value) -> None:
        if adding is not None:
            row = activated(f, row + to.load(lane * plane, lanes, mask=mask), adding[0])
        to.store(row, lane * plane, mask=mask)

    with f.when_else(channels >= lanes) as (whole, some):
        with whole:
            for lane, row in enumerate(rows):
                store(lane, row)
        with some:
            for lane, row in enumerate(rows[:-1]):
                with f.when(channels > lane):
                    store(lane, row)


def weights_body(m: Module, shape: Shape, block: Block) -> Function:
    """Body over groups × vectors of dest channels × source channels: the taps of each, into every pass's panel.

    A panel is ``[block][tap][source channel][vector of the block][lane]``, one for each pass and group.
    """
    lanes, taps = block.lanes, shape.taps
    with m.body("weights", weight="f32*", panels="f32*") as f:
        scratch = f.scratch(F32, (taps + lanes) * lanes)
        with f.loop(f.begin, f.end) as item:
            channel, rest = item % shape.source_channels, item // shape.source_channels
            vector, group = rest % block.vectors, rest // block.vectors
            for start in range(0, taps, lanes):
                count = min(lanes, taps - start)
                mask = None if count == lanes else f.mask_below(count, lanes)
                rows = []
                for lane in range(lanes):
                    dest = f.minimum(vector * lanes + lane, shape.dest_channels - 1)
                    at = group * shape.weight_group + dest * shape.weight_dest + channel * shape.weight_source
                    rows.append((f.weight + (at + start)).load(0, lanes, mask=mask))
                for tap, value in enumerate(f.transpose(rows)[:count]):
                    scratch.store(value, (start + tap) * lanes)
            _to_panels(f, shape, block, scratch, group, vector, channel)
    f.ir.attributes.add("noinline")
    return f


def pass_values(shape: Shape, block: Block) -> list[int]:
    """Values of each pass's panel of one group."""
    per_tap = shape.source_channels * block.vectors * block.lanes
    return [
        per_tap * len(depth.taps) * len(rows.taps) * len(columns.taps) for depth, rows, columns in shape.passes
    ]


def tap_list(shape: Shape, axes: Any) -> list[tuple[int, int]]:
    """A pass's taps: number in the weight, offset in the packed source."""
    depth, rows, columns = axes
    return [
        (shape.tap_number((kz, ky, kx)), shape.offset((oz, oy, ox)))
        for kz, oz in depth.taps
        for ky, oy in rows.taps
        for kx, ox in columns.taps
    ]


def _to_panels(
    f: Function, shape: Shape, block: Block, scratch: Pointer, group: Value, vector: Value, channel: Value
) -> None:
    lanes = block.lanes
    wide = block.widths[0] * block.counts[0]
    narrow = vector - wide
    width = f.select(vector < wide, f.index(block.widths[0]), f.index(block.widths[1]))
    first = f.select(vector < wide, vector - vector % block.widths[0], vector - narrow % max(1, block.widths[1]))
    sizes = pass_values(shape, block)
    start = 0
    for axes, size in zip(shape.passes, sizes, strict=True):
        taps = tap_list(shape, axes)
        panel = f.panels + (group * size + start)
        start += size * shape.groups
        base = first * (len(taps) * shape.source_channels) + (vector - first)
        for j, (tap, _) in enumerate(taps):
            place = base + (channel + j * shape.source_channels) * width
            panel.store(scratch.load(tap * lanes, lanes), place * lanes, align=4 * lanes)
