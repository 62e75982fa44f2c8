"""The inner block of the direct kernels: accumulators × taps over a packed band, pixels as lanes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from convlens.kernels.cpu.codegen.values import F32
from convlens.kernels.cpu.direct_few.geometry import Tile, ceil_div

__all__ = ["Reading", "Taps", "emit_sums", "starts"]

_BLOCK_TERMS = 64  # products added up in a row: sums of sums keep rounding errors those of a blocked product


@dataclass(frozen=True, slots=True)
class Taps:
    """Which source value and weight each tap reads, relative to a tile's own place and one source channel.

    Attributes:
        channels: source channels summed over.
        count_y: vertical taps.
        row_stride: source rows between result rows.
        row_step: source rows between vertical taps.
        weight_step: weights between vertical taps.
        first_weight: weight of the first vertical tap.
        count_x: horizontal taps.
        unrolled: horizontal taps that one round of the loop holds.
        column: source offset of a horizontal tap.
        phase: accumulator phase that a horizontal tap feeds.
        row_values: values between source rows.
        channel_values: values between source channels.
        channel_weights: weights between source channels.
        out_weights: weights between result channels.
    """

    channels: int
    count_y: int
    row_stride: int
    row_step: int
    weight_step: int
    first_weight: int
    count_x: int
    unrolled: int
    column: Callable[[int], int]
    phase: Callable[[int], int]
    row_values: int
    channel_values: int
    channel_weights: int
    out_weights: int

    def row(self, result_row: int, tap: int) -> int:
        """Source row of a result row and vertical tap."""
        return result_row * self.row_stride + tap * self.row_step


@dataclass(frozen=True, slots=True)
class Reading:
    """Source values where they lie, without a packed band: needs tiles that load every row once for all taps.

    Attributes:
        ahead: offsets, from a tile's place in a channel, of the lines that are fetched for tiles to come.
        mask: ``mask(row, horizontal tap, vector)``: lanes that lie in the source; None: all.
    """

    ahead: list[int]
    mask: Callable[[int, int, int], Any | None]


@contextlib.contextmanager
def starts(f: Any, total: Any, step: int) -> Iterator[Any]:
    """Starts of blocks of ``step`` that cover ``total`` (at least ``step``); the last one may overlap."""
    if isinstance(total, int):
        if total <= step:
            yield 0
            return
        with f.loop(0, ceil_div(total, step)) as i:
            yield i * step if total % step == 0 else f.minimum(i * step, total - step)
        return
    with f.loop(0, (total + (step - 1)) // step) as i:
        yield f.minimum(i * step, total - step)


def emit_sums(
    f: Any,
    tile: Tile,
    taps: Taps,
    phases: int,
    source: Any,
    weights: Any,
    initial: list[Any],
    bounds: tuple[Any, Any] | None = None,
    reading: Reading | None = None,
) -> list[Any]:
    """Sums of one tile over all channels and taps.

    Args:
        f: the function being emitted.
        tile: the block.
        taps: what each tap reads.
        phases: column phases of the accumulators.
        source: pointer to the tile's first value in channel 0.
        weights: pointer to the weights of the tile's first result channel.
        initial: start values, ``[phase][out][row][vector]`` flattened.
        bounds: first vertical tap, and the one after the last, that meet more than padding; None: all.
        reading: how source values are loaded where they do not lie in a packed band.
    """
    per_channel = taps.count_y * taps.count_x // phases
    block = max(1, _BLOCK_TERMS // max(1, per_channel))
    if taps.channels * per_channel <= 2 * _BLOCK_TERMS or block >= taps.channels:
        sums = [f.variable(value) for value in initial]
        with f.loop(0, taps.channels) as channel:
            _emit_channel(f, tile, taps, source, weights, channel, sums, bounds, reading)
        return [variable.get() for variable in sums]
    lanes = f.target.lanes
    totals = f.scratch(F32, len(initial) * lanes)
    for k, value in enumerate(initial):
        totals.store(value, k * lanes)
    sums = [f.variable(f.zeros(lanes)) for _ in initial]
    with f.loop(0, taps.channels, block) as first:
        for variable in sums:
            variable.set(f.zeros(lanes))
        with f.loop(first, f.minimum(first + block, taps.channels)) as channel:
            _emit_channel(f, tile, taps, source, weights, channel, sums, bounds, reading)
        for k, variable in enumerate(sums):
            totals.store(totals.load(k * lanes, lanes) + variable.get(), k * lanes)
    return [totals.load(k * lanes, lanes) for k in range(len(initial))]


def _emit_channel(
    f: Any,
    tile: Tile,
    taps: Taps,
    source: Any,
    weights: Any,
    channel: Any,
    sums: list[Any],
    bounds: Any,
    reading: Reading | None,
) -> None:
    rounds, rest = divmod(taps.count_x, taps.unrolled)
    at = source + channel * taps.channel_values
    weight = weights + (channel * taps.channel_weights + taps.first_weight)
    shift = taps.column(taps.unrolled) - taps.column(0)
    if reading is not None:
        for place in reading.ahead:
            at.prefetch(place, locality=2)
        _emit_round(f, tile, taps, at, weight, sums, taps.count_x, range(taps.count_y), reading)
        return
    if rounds > 1:
        with f.loop(0, rounds) as i:
            _emit_rows(f, tile, taps, at + i * shift, weight + i * taps.unrolled, sums, taps.unrolled, bounds)
    else:
        _emit_rows(f, tile, taps, at, weight, sums, taps.unrolled, bounds)
    if rest:
        _emit_rows(f, tile, taps, at + rounds * shift, weight + rounds * taps.unrolled, sums, rest, bounds)


def _emit_rows(
    f: Any, tile: Tile, taps: Taps, at: Any, weight: Any, sums: list[Any], taps_x: int, bounds: Any
) -> None:
    if tile.reuse_rows:
        _emit_round(f, tile, taps, at, weight, sums, taps_x, range(taps.count_y))
    elif taps.count_y == 1:
        _emit_round(f, tile, taps, at, weight, sums, taps_x, range(1))
    else:
        first, last = bounds or (0, taps.count_y)
        with f.loop(first, last) as a:
            row = at + a * (taps.row_step * taps.row_values)
            _emit_round(f, tile, taps, row, weight + a * taps.weight_step, sums, taps_x, range(1))


def _emit_round(
    f: Any,
    tile: Tile,
    taps: Taps,
    at: Any,
    weight: Any,
    sums: list[Any],
    taps_x: int,
    taps_y: range,
    reading: Reading | None = None,
) -> None:
    """Unrolled taps: load the rows they need once, then multiply each by its weight."""
    lanes = f.target.lanes
    now = [variable.get() for variable in sums]
    per_phase = tile.outs * tile.rows * tile.vectors
    loaded: dict[tuple[int, int], list[Any]] = {}
    for b in range(taps_x):
        column = taps.column(b)
        for row in sorted({taps.row(r, a) for r in range(tile.rows) for a in taps_y}):
            if (row, column) not in loaded:
                place = at + (row * taps.row_values + column)
                masks = [reading.mask(row, b, v) if reading else None for v in range(tile.vectors)]
                loaded[row, column] = [place.load(v * lanes, lanes, mask=m) for v, m in enumerate(masks)]
        for a in taps_y:
            for o in range(tile.outs):
                factor = weight.broadcast(o * taps.out_weights + a * taps.weight_step + b, lanes)
                for r in range(tile.rows):
                    values = loaded[taps.row(r, a), column]
                    for v in range(tile.vectors):
                        k = taps.phase(b) * per_phase + (o * tile.rows + r) * tile.vectors + v
                        now[k] = f.fma(values[v], factor, now[k])
    for variable, value in zip(sums, now, strict=True):
        variable.set(value)
