"""Forward convolution of few input channels: pixels along a row as lanes, blocks of output channels."""

from __future__ import annotations

from dataclasses import dataclass
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
from convlens.kernels.cpu.direct_few.tiles import Taps, emit_sums, starts
from convlens.kernels.cpu.epilogue import activated

__all__ = ["ForwardPlan", "build_forward", "forward_taps", "initial_sums", "plan_forward"]


_STRIP_BYTES = 24 << 10


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """Everything that the code of one forward problem depends on besides the problem."""

    tile: Tile
    bands: int
    band: Band
    strip: int
    """Result rows whose source rows stay in the first-level cache."""


def plan_forward(shape: Shape, batch: int, threads: int, lanes: int, registers: int, l2_bytes: int) -> ForwardPlan:
    """Tile and bands for a problem."""

    def row_of(r: int, a: int) -> int:
        return r * shape.stride_y + a * shape.dilation_y

    tile = best_tile(
        shape.out_channels, shape.out_height, shape.out_width, lanes, registers, shape.kernel_height, row_of,
        rounds=shape.in_channels * shape.kernel_width,
    )  # fmt: skip
    pitch = round_up((shape.reach_x - 1) // shape.stride_x + max(shape.out_width, tile.vectors * lanes) + 1, lanes)
    row_bytes = 4 * shape.in_channels * pitch * shape.stride_x
    most = max(tile.rows, (l2_bytes // 4 // row_bytes - shape.reach_y) // shape.stride_y)
    bands = choose_bands(shape.out_height, max(batch, 1), most, tile.rows, threads)
    rows = (ceil_div(shape.out_height, bands) - 1) * shape.stride_y + shape.reach_y
    fitting = (_STRIP_BYTES // row_bytes - shape.reach_y) // shape.stride_y + 1
    if 4 * shape.out_channels * shape.taps > _STRIP_BYTES:
        fitting = shape.out_height  # the weights would be fetched anew for every strip: no gain
    strip = max(tile.rows, min(shape.out_height // bands, fitting // tile.rows * tile.rows))
    return ForwardPlan(tile, bands, Band(shape.in_channels, rows, shape.stride_x, pitch), strip)


def build_forward(m: Any, shape: Shape, plan: ForwardPlan, bias: bool, activation: str) -> None:
    """``forward(x, w, bias, out, space, batch)``; ``space`` holds one band per thread."""
    tile, band, lanes = plan.tile, plan.band, m.target.lanes
    taps = forward_taps(shape, plan)
    with m.body("forward_items", x="f32*", w="f32*", bias="f32*", out="f32*", space="f32*") as f:
        packed = f.space + f.thread * band.values
        with f.loop(f.begin, f.end) as item:
            image, part = item // plan.bands, item % plan.bands
            first = part * shape.out_height // plan.bands
            rows = (part + 1) * shape.out_height // plan.bands - first
            emit_pack(
                f, f.x + image * (shape.in_channels * shape.height * shape.width), packed, band,
                first * shape.stride_y, height=shape.height, width=shape.width, pad_top=shape.pad_top,
                pad_left=shape.pad_left, channels_last=shape.channels_last,
            )  # fmt: skip
            plane = shape.out_height * shape.out_width
            out = f.out + image * (shape.out_channels * plane) + first * shape.out_width
            counted = shape.out_height if plan.bands == 1 else rows
            # all output channels of a few rows before the next rows: the source stays in the first-level cache
            with (
                starts(f, counted, plan.strip) as r0,
                starts(f, shape.out_channels, tile.outs) as o,
                starts(f, plan.strip, tile.rows) as r1,
                starts(f, shape.out_width, tile.vectors * lanes) as c,
            ):
                r = f.index(r0) + r1
                weights = f.w + f.index(o) * shape.taps
                at = packed + r * (shape.stride_y * band.row_values) + c
                place = out + f.index(o) * plane + r * shape.out_width + c
                _ask_for(f, tile, place, plane, shape.out_width)
                initial = initial_sums(f, tile, f.bias + o if bias else None)
                sums = emit_sums(f, tile, taps, 1, at, weights, initial)
                sums = [activated(f, value, activation) for value in sums]
                _store(f, tile, sums, place, plane, shape.out_width)
    items = f
    with m.function("forward", x="f32*", w="f32*", bias="f32*", out="f32*", space="f32*", batch="int") as f:
        f.parallel(items, f.batch * plan.bands, f.x, f.w, f.bias, f.out, f.space, grain=1)


def forward_taps(shape: Shape, plan: ForwardPlan) -> Taps:
    """What each tap of a forward tile reads."""
    tile, band = plan.tile, plan.band
    cost = tile.outs * tile.rows * tile.vectors * (shape.kernel_height if tile.reuse_rows else 1)
    return Taps(
        channels=shape.in_channels,
        count_y=shape.kernel_height,
        row_stride=shape.stride_y,
        row_step=shape.dilation_y,
        weight_step=shape.kernel_width,
        first_weight=0,
        count_x=shape.kernel_width,
        unrolled=unrolled_width(shape.kernel_width, shape.stride_x, shape.dilation_x, cost),
        column=lambda b: band.column(b * shape.dilation_x),
        phase=lambda b: 0,
        row_values=band.row_values,
        channel_values=band.channel_values,
        channel_weights=shape.kernel_height * shape.kernel_width,
        out_weights=shape.taps,
    )


def initial_sums(f: Any, tile: Tile, bias: Any | None) -> list[Any]:
    """Zeros, or the bias of each result channel from ``bias`` on, for every accumulator of a tile."""
    if bias is None:
        return [f.zeros(f.target.lanes)] * (tile.outs * tile.rows * tile.vectors)
    return [bias.broadcast(o, f.target.lanes) for o in range(tile.outs) for _ in range(tile.rows * tile.vectors)]


def _ask_for(f: Any, tile: Tile, place: Any, plane: int, width: int) -> None:
    """Fetch the lines of a tile's results before its sums are made: they lie in planes far apart."""
    lanes = f.target.lanes
    for o in range(tile.outs):
        for r in range(tile.rows):
            for v in range(tile.vectors):
                place.prefetch(o * plane + r * width + v * lanes, write=True, locality=2)


def _store(f: Any, tile: Tile, sums: list[Any], place: Any, plane: int, width: int) -> None:
    lanes, k = f.target.lanes, 0
    for o in range(tile.outs):
        for r in range(tile.rows):
            for v in range(tile.vectors):
                mask = lane_mask(f, 0, width - v * lanes, lanes)
                place.store(sums[k], o * plane + r * width + v * lanes, mask=mask)
                k += 1
