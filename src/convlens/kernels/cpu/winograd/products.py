"""The products at one point: tiles × input channels by input channels × output channels, in registers."""

from __future__ import annotations

from convlens.kernels.cpu.codegen import Function, Module, Pointer, Value
from convlens.kernels.cpu.winograd.geometry import Cut, Shape

__all__ = ["products_body"]

_UNROLLED = 4


def products_body(m: Module, shape: Shape, cut: Cut, vectors: int, rows: int) -> Function:
    """Body over blocks of ``rows`` tiles: ``sums[tile][lane] = pieces[tile][channel] @ panel[channel][lane]``."""
    lanes, channels = cut.lanes, shape.source_channels
    stride = cut.source_vectors(shape) * lanes
    with m.body(f"products{vectors}", pieces="f32*", panel="f32*", sums="f32*") as f:
        with f.loop(f.begin, f.end) as block:
            pieces = f.pieces + block * (rows * stride)
            sums = [[f.variable(f.zeros(lanes)) for _ in range(vectors)] for _ in range(rows)]

            def step(channel: Value, count: int, sums: list = sums, pieces: Pointer = pieces) -> None:  # type: ignore[type-arg]
                for k in range(count):
                    at = (channel + k) * (vectors * lanes)
                    weights = [f.panel.load(at + v * lanes, lanes, align=4 * lanes) for v in range(vectors)]
                    for row in range(rows):
                        value = pieces.broadcast(channel + (row * stride + k), lanes)
                        for v in range(vectors):
                            sums[row][v].set(f.fma(value, weights[v], sums[row][v].get()))

            whole = channels - channels % _UNROLLED
            with f.loop(0, whole, _UNROLLED) as channel:
                step(channel, _UNROLLED)
            step(f.index(whole), channels % _UNROLLED)
            to = f.sums + block * (rows * vectors * lanes)
            for row in range(rows):
                for v in range(vectors):
                    to.store(sums[row][v].get(), (row * vectors + v) * lanes, align=4 * lanes)
    f.ir.attributes.add("noinline")
    return f
