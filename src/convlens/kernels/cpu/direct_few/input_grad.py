"""Input gradient for few input channels: the packed upstream gradient against the mirrored window.

A strided convolution leaves result columns of ``stride`` kinds, each fed by its own taps: a tile holds all
kinds side by side, so that they share what they load, and interleaves them when it stores. Row kinds are
computed one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from convlens.kernels.cpu.direct_few.geometry import (
    Band,
    Shape,
    Tile,
    best_tile,
    ceil_div,
    choose_bands,
    round_up,
    unrolled_width,
)
from convlens.kernels.cpu.direct_few.packing import emit_pack, lane_mask
from convlens.kernels.cpu.direct_few.tiles import Reading, Taps, emit_sums, starts

__all__ = ["InputGradPlan", "build_input_grad", "emit_kind", "plan_input_grad"]


_MOST_MASKED = 7  # taps along a row that a mask is made for each
_LINE = 16  # values of a cache line


@dataclass(frozen=True, slots=True)
class InputGradPlan:
    """Everything that the code depends on besides the problem.

    Attributes:
        tile: block of accumulators.
        bands: bands of row groups; a group is one row of each kind.
        band: the packed upstream gradient.
        first_row: first row group, ``pad_top // stride_y``.
        groups_y: row groups.
        first_column: first column group.
        groups_x: column groups.
        back_y: row groups that the last vertical tap reaches back.
        back_x: column groups that the last horizontal tap reaches back.
        in_place: the upstream gradient is read where it lies: packing it would take as long as the sums.
    """

    tile: Tile
    bands: int
    band: Band
    first_row: int
    groups_y: int
    first_column: int
    groups_x: int
    back_y: int
    back_x: int
    in_place: bool = False


def plan_input_grad(
    shape: Shape, batch: int, threads: int, lanes: int, registers: int, l2_bytes: int, *, packed: bool = True
) -> InputGradPlan:
    """Tile and bands for a problem; without ``packed`` the upstream gradient is read in place where it can be."""
    first_row, first_column = shape.pad_top // shape.stride_y, shape.pad_left // shape.stride_x
    groups_y = (shape.pad_top + shape.height - 1) // shape.stride_y - first_row + 1
    groups_x = (shape.pad_left + shape.width - 1) // shape.stride_x - first_column + 1
    back_y, back_x = (shape.reach_y - 1) // shape.stride_y, (shape.reach_x - 1) // shape.stride_x
    kinds = [_row_taps(shape, kind) for kind in range(shape.stride_y)]
    count, step = max(kinds)[0], max(kinds)[2]
    tile = best_tile(
        shape.in_channels, groups_y, groups_x, lanes, registers, count, lambda r, a: r - a * step,
        rounds=shape.out_channels * shape.kernel_width, phases=shape.stride_x,
    )  # fmt: skip
    plain = max(shape.stride_y, shape.stride_x, shape.dilation_y, shape.dilation_x) == 1
    if not packed and plain and tile.reuse_rows and not shape.channels_last and shape.kernel_width <= _MOST_MASKED:
        bands = choose_bands(groups_y, max(batch, 1), groups_y, tile.rows, threads)
        band = Band(0, 0, 1, 0)
        return InputGradPlan(
            tile, bands, band, first_row, groups_y, first_column, groups_x, back_y, back_x, in_place=True
        )
    pitch = round_up(back_x + max(groups_x, tile.vectors * lanes), lanes)
    most = max(tile.rows, l2_bytes // 2 // (4 * shape.out_channels * pitch) - back_y)
    bands = choose_bands(groups_y, max(batch, 1), most, tile.rows, threads)
    band = Band(shape.out_channels, ceil_div(groups_y, bands) + back_y, 1, pitch)
    return InputGradPlan(tile, bands, band, first_row, groups_y, first_column, groups_x, back_y, back_x)


def _row_taps(shape: Shape, kind: int) -> tuple[int, int, int, int]:
    """Vertical taps that feed rows of one kind: how many, the first, row groups and taps between them."""
    taps = [a for a in range(shape.kernel_height) if a * shape.dilation_y % shape.stride_y == kind]
    step = shape.stride_y // math.gcd(shape.stride_y, shape.dilation_y)
    return len(taps), taps[0] if taps else 0, step * shape.dilation_y // shape.stride_y, step


def build_input_grad(m: Any, shape: Shape, plan: InputGradPlan) -> None:
    """``input_grad(g, w, out, space, batch)``; ``space`` holds one band per thread."""
    band = plan.band
    with m.body("input_grad_items", g="f32*", w="f32*", out="f32*", space="f32*") as f:
        packed = f.space + f.thread * band.values
        with f.loop(f.begin, f.end) as item:
            image, part = item // plan.bands, item % plan.bands
            first = part * plan.groups_y // plan.bands
            rows = (part + 1) * plan.groups_y // plan.bands - first
            upstream = f.g + image * (shape.out_channels * shape.out_height * shape.out_width)
            out = f.out + image * (shape.in_channels * shape.height * shape.width)
            counted = plan.groups_y if plan.bands == 1 else rows
            if plan.in_place:
                _emit_in_place(f, shape, plan, upstream, out, first, counted)
            else:
                emit_pack(
                    f, upstream, packed, band, first + plan.first_row, height=shape.out_height,
                    width=shape.out_width, pad_top=plan.back_y, pad_left=plan.back_x - plan.first_column,
                    channels_last=shape.channels_last,
                )  # fmt: skip
                for kind in range(shape.stride_y):
                    emit_kind(f, shape, plan, kind, packed, out, first, counted)
    items = f
    with m.function("input_grad", g="f32*", w="f32*", out="f32*", space="f32*", batch="int") as f:
        f.parallel(items, f.batch * plan.bands, f.g, f.w, f.out, f.space, grain=1)


def _emit_in_place(
    f: Any, shape: Shape, plan: InputGradPlan, upstream: Any, out: Any, first: Any, rows: Any
) -> None:
    """All rows of a band at stride 1; tiles at the edges of the upstream gradient leave out what is beyond."""
    tile, lanes = plan.tile, f.target.lanes
    taps = replace(
        _taps(shape, plan, 0), column=lambda b: -b, row_values=shape.out_width,
        channel_values=shape.out_height * shape.out_width,
    )  # fmt: skip
    across = tile.vectors * lanes
    with (
        starts(f, shape.in_channels, tile.outs) as o,
        starts(f, rows, tile.rows) as r,
        starts(f, plan.groups_x, across) as c,
    ):
        y, x = first + r + shape.pad_top, f.index(c) + shape.pad_left  # what the first tap reads
        weights = f.w + f.index(o) * taps.out_weights
        at = upstream + y * shape.out_width + x
        zeros = [f.zeros(lanes)] * (tile.outs * tile.rows * tile.vectors)
        sums = [f.variable(zero) for zero in zeros]
        inside = (y >= shape.kernel_height - 1) & (y + tile.rows <= shape.out_height)
        inside = inside & (x >= shape.kernel_width - 1) & (x + across <= shape.out_width)
        with f.when_else(inside) as (within, at_edge):
            for branch, masked in ((within, False), (at_edge, True)):
                with branch:
                    mask = _edge_masks(f, shape, tile, y, x) if masked else _unmasked
                    reading = Reading(_ahead(shape, plan, lanes), mask)
                    found = emit_sums(f, tile, taps, 1, at, weights, zeros, None, reading)
                    for variable, value in zip(sums, found, strict=True):
                        variable.set(value)
        values = [variable.get() for variable in sums]
        for row in range(tile.rows):
            place = out + f.index(o) * (shape.height * shape.width) + (first + r + row) * shape.width
            _store_row(f, shape, plan, values, row, place, c)


def _unmasked(row: int, tap: int, vector: int) -> None:
    return None


def _edge_masks(f: Any, shape: Shape, tile: Tile, y: Any, x: Any) -> Any:
    """``mask(row, tap, vector)`` of a tile whose first tap reads row ``y`` and column ``x`` onwards."""
    lanes = f.target.lanes
    columns = {}
    for b in range(shape.kernel_width):
        for v in range(tile.vectors):
            start = x + (v * lanes - b)
            columns[b, v] = f.mask_below(f.index(shape.out_width) - start, lanes) & f.mask_from(
                f.index(0) - start, lanes
            )
    rows = {}
    for row in range(1 - shape.kernel_height, tile.rows):
        rows[row] = f.broadcast((y + row >= 0) & (y + row < shape.out_height), lanes)
    return lambda row, b, v: columns[b, v] & rows[row]


def _ahead(shape: Shape, plan: InputGradPlan, lanes: int) -> list[int]:
    """Lines of a channel to fetch beside a tile: two tiles on along the rows or, in short rows, the tile below."""
    tile, across = plan.tile, plan.tile.vectors * lanes
    if plan.groups_x > 2 * across:
        rows, shift = range(1 - shape.kernel_height, tile.rows), 2 * across
    else:
        rows, shift = range(tile.rows), tile.rows * shape.out_width
    return [row * shape.out_width + shift + column for row in rows for column in range(0, across, _LINE)]


def emit_kind(
    f: Any,
    shape: Shape,
    plan: InputGradPlan,
    kind: int,
    packed: Any,
    out: Any,
    first: Any,
    rows: Any,
    weight: Any | None = None,
) -> None:
    """All rows of one kind in a band; the weights are ``f.w`` unless given."""
    tile, lanes = plan.tile, f.target.lanes
    plane = shape.height * shape.width
    taps = _taps(shape, plan, kind)
    base = plan.back_y - _row_taps(shape, kind)[1] * shape.dilation_y // shape.stride_y
    with (
        starts(f, shape.in_channels, tile.outs) as o,
        starts(f, rows, tile.rows) as r,
        starts(f, plan.groups_x, tile.vectors * lanes) as c,
    ):
        zeros = [f.zeros(lanes)] * (shape.stride_x * tile.outs * tile.rows * tile.vectors)
        at = packed + (f.index(r) + base) * plan.band.row_values + c
        weights = (f.w if weight is None else weight) + f.index(o) * taps.out_weights
        bounds = _bounds(f, shape, plan, taps, first + r + plan.first_row)
        sums = emit_sums(f, tile, taps, shape.stride_x, at, weights, zeros, bounds) if taps.count_y else zeros
        for row in range(tile.rows):
            y = (first + r + (plan.first_row + row)) * shape.stride_y + (kind - shape.pad_top)
            place = out + f.index(o) * plane + y * shape.width
            if shape.stride_y == 1:
                _store_row(f, shape, plan, sums, row, place, c)
            else:
                with f.when((y >= 0) & (y < shape.height)):
                    _store_row(f, shape, plan, sums, row, place, c)


def _bounds(f: Any, shape: Shape, plan: InputGradPlan, taps: Taps, row: Any) -> tuple[Any, Any] | None:
    """Vertical taps of a one-row tile that meet the upstream gradient itself, not the zeros around it."""
    if plan.tile.rows > 1 or plan.tile.reuse_rows or shape.stride_y > 1 or shape.dilation_y > 1:
        return None
    return f.maximum(row - (shape.out_height - 1), 0), f.minimum(row + 1, taps.count_y)


def _taps(shape: Shape, plan: InputGradPlan, kind: int) -> Taps:
    tile = plan.tile
    count, first, row_step, step = _row_taps(shape, kind)
    cost = tile.outs * tile.rows * tile.vectors * (count if tile.reuse_rows else 1)
    return Taps(
        channels=shape.out_channels,
        count_y=count,
        row_stride=1,
        row_step=-row_step,
        weight_step=step * shape.kernel_width,
        first_weight=first * shape.kernel_width,
        count_x=shape.kernel_width,
        unrolled=unrolled_width(shape.kernel_width, shape.stride_x, shape.dilation_x, max(cost, 1)),
        column=lambda b: plan.back_x - b * shape.dilation_x // shape.stride_x,
        phase=lambda b: b * shape.dilation_x % shape.stride_x,
        row_values=plan.band.row_values,
        channel_values=plan.band.channel_values,
        channel_weights=shape.taps,
        out_weights=shape.kernel_height * shape.kernel_width,
    )


def _store_row(f: Any, shape: Shape, plan: InputGradPlan, sums: list[Any], row: int, place: Any, c: Any) -> None:
    """One row of a tile: plain vectors, or column kinds interleaved and cut to the image."""
    tile, lanes, stride = plan.tile, f.target.lanes, shape.stride_x
    per_phase = tile.outs * tile.rows * tile.vectors
    for o in range(tile.outs):
        for v in range(tile.vectors):
            k = (o * tile.rows + row) * tile.vectors + v
            at = place + o * (shape.height * shape.width)
            if stride == 1:
                (at + c).store(sums[k], v * lanes, mask=lane_mask(f, 0, shape.width - v * lanes, lanes))
                continue
            kinds = [sums[phase * per_phase + k] for phase in range(stride)]
            start = (f.index(c) + (plan.first_column + v * lanes)) * stride - shape.pad_left
            for i, dealt in enumerate(_interleaved(f, kinds)):
                left = start + i * lanes
                mask = f.mask_below(f.index(shape.width) - left, lanes) & f.mask_from(f.index(0) - left, lanes)
                (at + left).store(dealt, mask=mask)


def _interleaved(f: Any, kinds: list[Any]) -> list[Any]:
    """``kinds[0][0], kinds[1][0], …, kinds[0][1], …`` as as many vectors."""
    count, lanes = len(kinds), kinds[0].lanes
    results = []
    for i in range(count):
        places = [divmod(i * lanes + lane, count) for lane in range(lanes)]
        chosen = f.shuffle(kinds[0], kinds[1], [lane + (lanes if kind == 1 else 0) for lane, kind in places])
        for k in range(2, count):
            chosen = f.shuffle(
                chosen, kinds[k], [lanes + lane if kind == k else j for j, (lane, kind) in enumerate(places)]
            )
        results.append(chosen)
    return results
