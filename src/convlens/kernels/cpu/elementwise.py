"""What stands between the convolutions of a net, ready for many calls: scales, means of images, strided copies.

Each is a pass over memory; what is gained is that it takes no step of Python's, see `replay`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from convlens.kernels.contract import NativeCall
from convlens.kernels.cpu.epilogue import activated

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Function, Module, Pointer, Value

__all__ = ["MOST_AXES", "copied", "mean", "scaled", "zeroed"]

MOST_AXES = 4
"""Of tensors that are copied."""

_CHUNK = 4096
"""Values of an item of work at least: fewer are done sooner than another thread has begun."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Images of ``places`` places and ``channels`` channels, which vary fastest where ``last``."""

    channels: int
    places: int
    last: bool

    @classmethod
    def of(cls, like: torch.Tensor) -> _Shape:
        batch, channels, *size = like.shape
        places = math.prod(size)
        return cls(channels, places, places > 1 and not like.is_contiguous())


def scaled(like: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, activation: str) -> NativeCall:
    """``activation(input * scale + shift)``, with a number for each channel.

    Args:
        like: an input ``(N, C, *size)``, dense in either layout; inputs and results are as it is.
        scale: contiguous, ``C`` numbers, or ``N · C`` where each image has its own.
        shift: ``C`` numbers or None.
        activation: one of `epilogue.ACTIVATIONS`.
    """
    from convlens.kernels.cpu.codegen import compiled, threads

    shape, each = _Shape.of(like), scale.numel() > like.shape[1]
    code = compiled(
        "cpu.scaled", build_scaled, shape=shape, each=each, shift=shift is not None, activation=activation
    )
    arguments = (
        0, scale.data_ptr(), 0 if shift is None else shift.data_ptr(), 0, like.shape[0], _team(like, threads()),
    )  # fmt: skip
    return NativeCall(code.scaled, arguments, 0, 3, (scale, shift))


def mean(like: torch.Tensor) -> NativeCall:
    """The mean of each plane of an input like ``like``, dense in either layout; results are ``(N, C)``."""
    from convlens.kernels.cpu.codegen import compiled, threads

    code = compiled("cpu.mean", build_mean, shape=_Shape.of(like))
    return NativeCall(code.mean, (0, 0, like.shape[0], _team(like, threads())), 0, 1)


def copied(source: torch.Tensor, dest: torch.Tensor) -> NativeCall:
    """``dest.copy_(source)`` for two tensors of one shape with at most four axes, of any strides."""
    from convlens.kernels.cpu.codegen import compiled

    axes = [(n, s, d) for n, s, d in zip(dest.shape, source.stride(), dest.stride(), strict=True) if n != 1]
    axes.sort(key=lambda axis: -axis[2])
    axes = [(1, 0, 0)] * (4 - len(axes)) + axes
    *outer, (count, step, to) = axes
    code = compiled("cpu.copied", build_copied, dense=step == to == 1)
    numbers = [number for which in range(3) for number in [axis[which] for axis in outer]]
    return NativeCall(code.copied, (0, 0, *numbers, count, step, to, 1), 0, 1)


def zeroed(dest: torch.Tensor) -> NativeCall:
    """Zeros in dense memory like ``dest``."""
    from convlens.kernels.cpu.codegen import compiled

    code = compiled("cpu.zeroed", build_zeroed)
    return NativeCall(code.zeroed, (0, 0, dest.numel(), 1), 0, 1)


def _team(like: torch.Tensor, most: int) -> int:
    return max(1, min(most, like.numel() // (4 * _CHUNK)))


def build_scaled(m: Module, shape: _Shape, each: bool, shift: bool, activation: str) -> None:
    """Export ``scaled(source, scale, shift, dest, batch, threads)``."""
    lanes, channels = m.target.lanes, shape.channels
    lines = -(-_CHUNK // channels) if shape.last else 1  # of an item: places, or planes
    total = shape.places if shape.last else channels
    parts = -(-total // lines)
    length = channels if shape.last else shape.places
    with m.body("items", source="f32*", scale="f32*", shift="f32*", dest="f32*") as f:

        def vector(at: Value, line: Value, own: Value, mask: Value | None) -> None:
            source, dest = f.source + line * length, f.dest + line * length
            if shape.last:
                factor = f.scale.load(own + at, lanes, mask=mask)
                offset = f.shift.load(at, lanes, mask=mask) if shift else None
            else:
                factor = f.scale.broadcast(own + line % channels, lanes)
                offset = f.shift.broadcast(line % channels, lanes) if shift else None
            value = source.load(at, lanes, mask=mask)
            value = value * factor if offset is None else f.fma(value, factor, offset)
            dest.store(activated(f, value, activation), at, mask=mask)

        with f.loop(f.begin, f.end) as item:
            image, part = item // parts, item % parts
            first = part * lines
            own = image * channels if each else f.index(0)
            with f.loop(first, f.minimum(first + lines, total)) as at:
                line = image * total + at
                _over(f, length, lambda i, mask, line=line, own=own: vector(i, line, own, mask))  # type: ignore[misc]
    with m.function("scaled", source="f32*", scale="f32*", shift="f32*", dest="f32*", batch="int") as g:
        g.parallel(f, g.batch * parts, g.source, g.scale, g.shift, g.dest)


def _over(f: Function, length: int, vector: Callable[[Value, Value | None], None]) -> None:
    """``vector(at, mask)`` over ``length`` values."""
    lanes = f.target.lanes
    with f.loop(0, length // lanes * lanes, lanes) as i:
        vector(i, None)
    if rest := length % lanes:
        vector(f.index(length - rest), f.mask_below(rest, lanes))


def build_mean(m: Module, shape: _Shape) -> None:
    """Export ``mean(source, dest, batch, threads)``."""
    lanes, channels, places = m.target.lanes, shape.channels, shape.places
    vectors = -(-channels // lanes) if shape.last else channels
    with m.body("items", source="f32*", dest="f32*") as f:
        with f.loop(f.begin, f.end) as item:
            if shape.last:
                image, at = item // vectors, item % vectors * lanes
                mask = None if channels % lanes == 0 else f.mask_below(channels - at, lanes)
                start = f.source + (image * (places * channels) + at)
                f.dest.store(
                    _sum(f, start, places, 1, channels, mask) / float(places), image * channels + at, mask=mask
                )
            else:
                total = _sum(f, f.source + item * places, places, lanes, 1, None)
                f.dest.store(f.sum(total) / float(places), item)
    with m.function("mean", source="f32*", dest="f32*", batch="int") as g:
        g.parallel(f, g.batch * vectors, g.source, g.dest)


def _sum(f: Function, source: Pointer, count: int, step: int, stride: int, mask: Value | None) -> Value:
    """Sum of vectors from every ``step``-th of ``count`` places, ``stride`` values apart, in four sums."""
    lanes = f.target.lanes
    sums = [f.variable(f.zeros(lanes)) for _ in range(4)]
    whole = count // (4 * step) * 4 * step
    with f.loop(0, whole, 4 * step) as i:
        for k, part in enumerate(sums):
            part.set(part.get() + source.load((i + k * step) * stride, lanes, mask=mask))
    for k, start in enumerate(range(whole, count, step)):
        some = mask if start + step <= count else f.mask_below(count - start, lanes)
        sums[k].set(sums[k].get() + source.load(start * stride, lanes, mask=some))
    found: Value = (sums[0].get() + sums[1].get()) + (sums[2].get() + sums[3].get())
    return found


def build_copied(m: Module, dense: bool) -> None:
    """Export ``copied(source, dest, n0, n1, n2, s0, s1, s2, d0, d1, d2, count, step, to, threads)``."""
    lanes = m.target.lanes
    names = [f"{kind}{axis}" for kind in "nsd" for axis in range(3)]
    integers = dict.fromkeys([*names, "count", "step", "to"], "int")
    with m.function("copied", source="f32*", dest="f32*", **integers) as f:
        with f.loop(0, f.n0) as i, f.loop(0, f.n1) as j, f.loop(0, f.n2) as k:
            source: Pointer = f.source + (i * f.s0 + j * f.s1 + k * f.s2)
            dest: Pointer = f.dest + (i * f.d0 + j * f.d1 + k * f.d2)
            if not dense:
                with f.loop(0, f.count) as at:
                    dest.store(source.load(at * f.step), at * f.to)
            else:
                with f.loop(0, f.count // lanes * lanes, lanes) as at:
                    dest.store(source.load(at, lanes), at)
                rest = f.count % lanes
                with f.when(rest > 0):
                    mask = f.mask_below(rest, lanes)
                    dest.store(source.load(f.count - rest, lanes, mask=mask), f.count - rest, mask=mask)


def build_zeroed(m: Module) -> None:
    """Export ``zeroed(nothing, dest, count, threads)``."""
    lanes = m.target.lanes
    with m.function("zeroed", nothing="f32*", dest="f32*", count="int") as f:
        with f.loop(0, f.count // lanes * lanes, lanes) as at:
            f.dest.store(f.zeros(lanes), at)
        rest = f.count % lanes
        with f.when(rest > 0):
            f.dest.store(f.zeros(lanes), f.count - rest, mask=f.mask_below(rest, lanes))
