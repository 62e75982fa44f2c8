"""Dense layers for `chain`: images as lanes forwards and back, inputs as lanes for the weight gradient."""

from __future__ import annotations

from typing import Any

from convlens.kernels.cpu.codegen.values import F32, F64
from convlens.kernels.cpu.direct_few.forward import initial_sums
from convlens.kernels.cpu.direct_few.geometry import Dense, Tile, ceil_div
from convlens.kernels.cpu.direct_few.packing import lane_mask
from convlens.kernels.cpu.direct_few.tiles import Taps, emit_sums, starts

__all__ = ["emit_dense", "emit_dense_back", "emit_dense_grad", "grad_items"]

_UNROLLED = 4  # terms that one round of a sum's loop holds
_GRAD_OUTS, _GRAD_VECTORS = 6, 4
_RUN = 128  # images added up in a row: sums of sums keep rounding errors those of a blocked product


def emit_dense(f: Any, dense: Dense, source: Any, weight: Any, bias: Any, result: Any) -> None:
    """``result[output][image]`` of ``source[input][image]``."""
    lanes, tile = f.target.lanes, _tile(dense.outputs, f.target)
    taps = _taps(dense.inputs, 1, dense.inputs, lanes)
    with starts(f, dense.outputs, tile.outs) as o:
        initial = initial_sums(f, tile, bias + o if dense.bias else None)
        sums = emit_sums(f, tile, taps, 1, source, weight + f.index(o) * dense.inputs, initial)
        target = result + f.index(o) * lanes
        for k, value in enumerate(sums):
            target.store(f.max(value, 0.0) if dense.relu else value, k * lanes)


def emit_dense_back(f: Any, dense: Dense, gradient: Any, weight: Any, masked: Any | None, result: Any) -> None:
    """``result[input][image]`` of ``gradient[output][image]``; zero where ``masked``, the input, is ≤ 0."""
    lanes, tile = f.target.lanes, _tile(dense.inputs, f.target)
    taps = _taps(dense.outputs, dense.inputs, 1, lanes)
    with starts(f, dense.inputs, tile.outs) as o:
        zeros = [f.zeros(lanes)] * tile.outs
        sums = emit_sums(f, tile, taps, 1, gradient, weight + o, zeros)
        place = f.index(o) * lanes
        for k, value in enumerate(sums):
            if masked is not None:
                value = f.select((masked + place).load(k * lanes, lanes) <= 0.0, f.zeros(lanes), value)
            (result + place).store(value, k * lanes)


def _tile(results: int, target: Any) -> Tile:
    """As many results at a time as there are registers, in blocks of nearly one size."""
    most = target.registers - 8
    return Tile(ceil_div(results, ceil_div(results, most)), 1, 1, True)


def _taps(terms: int, step: int, out_step: int, lanes: int) -> Taps:
    """Sums over ``terms`` values; weights lie ``step`` apart, those of another result ``out_step``."""
    unrolled = next(n for n in range(_UNROLLED, 0, -1) if terms % n == 0)
    return Taps(
        channels=terms // unrolled, count_y=unrolled, row_stride=1, row_step=1, weight_step=step, first_weight=0,
        count_x=1, unrolled=1, column=lambda b: 0, phase=lambda b: 0, row_values=lanes,
        channel_values=unrolled * lanes, channel_weights=unrolled * step, out_weights=out_step,
    )  # fmt: skip


def grad_items(dense: Dense) -> int:
    """Pieces that a layer's weight gradient is cut into, by outputs."""
    return ceil_div(dense.outputs, _GRAD_OUTS)


def emit_dense_grad(
    f: Any, dense: Dense, gradient: Any, source: Any, grad_weight: Any, grad_bias: Any, item: Any, batch: Any
) -> None:
    """One piece of the weight gradient, of ``gradient[image][output]`` and ``source[image][input]``."""
    lanes = f.target.lanes
    outs = min(_GRAD_OUTS, dense.outputs)
    vectors = min(_GRAD_VECTORS if f.target.registers >= 32 else 1, ceil_div(dense.inputs, lanes))
    first = f.minimum(item * outs, dense.outputs - outs)
    gradient = gradient + first
    totals = f.scratch(F32, outs * vectors * lanes)
    masks = [lane_mask(f, 0, dense.inputs - v * lanes, lanes) for v in range(vectors)]
    with starts(f, dense.inputs, vectors * lanes) as k:
        x = source + k
        sums = [f.variable(f.zeros(lanes)) for _ in range(outs * vectors)]
        for place in range(outs * vectors):
            totals.store(f.zeros(lanes), place * lanes)
        with f.loop(0, batch, _RUN) as begin:
            for sum_ in sums:
                sum_.set(f.zeros(lanes))
            with f.loop(begin, f.minimum(begin + _RUN, batch)) as image:
                values = [(x + image * dense.inputs).load(v * lanes, lanes, mask=masks[v]) for v in range(vectors)]
                for o in range(outs):
                    factor = (gradient + image * dense.outputs).broadcast(o, lanes)
                    for v, value in enumerate(values):
                        sum_ = sums[o * vectors + v]
                        sum_.set(f.fma(value, factor, sum_.get()))
            for place, sum_ in enumerate(sums):
                totals.store(totals.load(place * lanes, lanes) + sum_.get(), place * lanes)
        for o in range(outs):
            target = grad_weight + (first + o) * dense.inputs + k
            for v in range(vectors):
                target.store(totals.load((o * vectors + v) * lanes, lanes), v * lanes, mask=masks[v])
    if dense.bias:
        for start in range(0, outs, lanes):
            mask = lane_mask(f, 0, outs - start, lanes)
            total = f.variable(f.zeros(lanes, F64))
            with f.loop(0, batch) as image:
                row = (gradient + image * dense.outputs).load(start, lanes, mask=mask)
                total.set(total.get() + f.to_f64(row))
            (grad_bias + first).store(f.to_f32(total.get()), start, mask=mask)
