"""The inside of a picture filter, sums of shifted rows: ``y[r, i] = Σ w[k] · x[r + down[k], i + along[k]]``.

Every tap is a constant of the code, weights and sizes vary between calls. Four vectors of sums stay in registers,
so a value is loaded once per tap and stored once; what is left is the speed of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convlens.kernels.cpu.codegen import Module, Pointer, Value, compiled, threads

__all__ = ["sum_shifted"]

_AT_ONCE = 4
_LINE = 64  # bytes of a cache line
_SHORT = 16  # up to so many weights are kept in registers


def sum_shifted(
    x: Tensor, y: Tensor, taps: Sequence[tuple[int, int]], weights: Tensor, *, once: bool = False
) -> None:
    """Fill ``y`` with the sum; rows are split over torch's threads.

    Args:
        x: float32 ``(rows, columns)``, values of a row next to each other.
        y: float32 ``(out_rows, out_columns)``, likewise.
        taps: ``(down, along)`` of each weight; ``down + out_rows ≤ rows`` and ``along + out_columns ≤ columns``.
        weights: float32, one for each tap.
        once: ``y`` is not read again soon, so it need not pass through the cache.
    """
    aligned = y.data_ptr() % _LINE == 0 and y.stride(0) * 4 % _LINE == 0
    kernel = compiled("cpu.sliding", _build, taps=tuple(taps), stream=once and aligned)
    kernel.slide(
        x.data_ptr(), weights.data_ptr(), y.data_ptr(), x.stride(0), y.stride(0), y.shape[1], y.shape[0], threads()
    )


def _build(m: Module, taps: tuple[tuple[int, int], ...], stream: bool) -> None:
    lanes = m.target.lanes
    arguments = {"x": "f32*", "w": "f32*", "y": "f32*", "pitch": "int", "out_pitch": "int", "length": "int"}
    with m.body("rows", **arguments) as f:
        kept = [f.broadcast(f.w.load(k), lanes) for k in range(len(taps))] if len(taps) <= _SHORT else None

        def block(source: Pointer, target: Pointer, at: Value, vectors: int, mask: Value | None) -> None:
            sums: list[Value | None] = [None] * vectors
            for k, (down, along) in enumerate(taps):
                weight = kept[k] if kept else f.broadcast(f.w.load(k), lanes)
                line = source + f.pitch * down
                for v in range(vectors):
                    value = line.load(at + (along + v * lanes), lanes, mask=mask)
                    old = sums[v]
                    sums[v] = value * weight if old is None else f.fma(value, weight, old)
            for v, total in enumerate(sums):
                if total is not None and stream and mask is None:
                    target.stream(total, at + v * lanes)
                elif total is not None:
                    target.store(total, at + v * lanes, mask=mask)

        with f.loop(f.begin, f.end) as row:
            source, target = f.x + row * f.pitch, f.y + row * f.out_pitch
            wide = f.length // (_AT_ONCE * lanes)
            with f.loop(0, wide) as step:
                block(source, target, step * (_AT_ONCE * lanes), _AT_ONCE, None)
            with f.loop(wide * _AT_ONCE, f.length // lanes) as step:
                block(source, target, step * lanes, 1, None)
            rest = f.length % lanes
            with f.when(rest > 0):
                block(source, target, f.length - rest, 1, f.mask_below(rest, lanes))
    with m.function("slide", **arguments, count="int") as g:
        g.parallel(f, g.count, g.x, g.w, g.y, g.pitch, g.out_pitch, g.length)
