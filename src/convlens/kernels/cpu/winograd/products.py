"""The products at one point: tiles × input channels by input channels × output channels, in registers."""

from __future__ import annotations

import math

from convlens.kernels.cpu.codegen import Function, Module, Pointer, Value, Variable
from convlens.kernels.cpu.winograd.geometry import Cut, Shape

__all__ = ["products_body"]

_LONGEST_SUM = 128
"""Channels added one after the other; then sums of so many are added, for the rounding errors of long ones."""


def products_body(m: Module, shape: Shape, cut: Cut, vectors: int, rows: int) -> Function:
    """Body over blocks of ``rows`` tiles: ``sums[tile][lane] = pieces[tile][channel] @ panel[channel][lane]``."""
    lanes, channels = cut.lanes, shape.source_channels
    stride = cut.source_vectors(shape) * lanes
    unrolled = math.gcd(channels, 4)
    parts = -(-channels // _LONGEST_SUM)
    part = -(-channels // (parts * unrolled)) * unrolled
    with m.body(f"products{vectors}", pieces="f32*", panel="f32*", sums="f32*") as f:
        with f.loop(f.begin, f.end) as block, f.loop(0, channels, part) as first:
            pieces = f.pieces + block * (rows * stride)
            sums = [[f.variable(f.zeros(lanes)) for _ in range(vectors)] for _ in range(rows)]
            with f.loop(first, f.minimum(first + part, channels), unrolled) as channel:
                for k in range(unrolled):
                    at = (channel + k) * (vectors * lanes)
                    weights = [f.panel.load(at + v * lanes, lanes, align=4 * lanes) for v in range(vectors)]
                    for row in range(rows):
                        value = pieces.broadcast(channel + (row * stride + k), lanes)
                        for v in range(vectors):
                            sums[row][v].set(f.fma(value, weights[v], sums[row][v].get()))
            _store(f, f.sums + block * (rows * vectors * lanes), sums, first if parts > 1 else None)
    f.ir.attributes.add("noinline")
    return f


def _store(f: Function, to: Pointer, sums: list[list[Variable]], first: Value | None) -> None:
    """Store a block, added to what is there unless ``first`` is 0 (or None)."""
    values = [value for row in sums for value in row]
    lanes = f.target.lanes
    if first is not None:
        with f.when(first > 0):
            for i, value in enumerate(values):
                value.set(value.get() + to.load(i * lanes, lanes, align=4 * lanes))
    for i, value in enumerate(values):
        to.store(value.get(), i * lanes, align=4 * lanes)
