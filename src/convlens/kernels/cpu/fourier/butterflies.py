"""Discrete Fourier transforms of vectors in registers, written out: lengths whose factors are 2, 3 and 5.

Decimation in time by mixed radices. Zeros (None) are never computed with, and of a real input only half of the
outputs are: the others are their conjugates.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from typing import NamedTuple

from convlens.kernels.cpu.codegen import Function, Value

__all__ = ["Complex", "dft", "difference", "inverse_dft", "inverse_real", "negative", "total"]


class Complex(NamedTuple):
    """A complex vector; None stands for zero."""

    re: Value | None
    im: Value | None = None


def dft(f: Function, values: Sequence[Complex], *, real: bool = False) -> list[Complex]:
    """``X[k] = Σ x[n] exp(-2πi nk/N)``.

    Args:
        f: function that is emitted.
        values: ``x``.
        real: whether every ``x`` is real.
    """
    length = len(values)
    if length == 1:
        return list(values)
    radix = next(r for r in (4, 5, 3, 2) if length % r == 0)
    part = length // radix
    parts = [dft(f, values[r::radix], real=real) for r in range(radix)]
    results = [Complex(None)] * length
    for k in range(part // 2 + 1 if real else part):
        turned = [_turned(f, parts[r][k], r * k, length) for r in range(radix)]
        for m, value in enumerate(_RADICES[radix](f, turned)):
            results[k + m * part] = value
            if real:
                results[(length - k - m * part) % length] = Complex(value.re, negative(value.im))
    if real:
        results[0] = Complex(results[0].re)
        if length % 2 == 0:
            results[length // 2] = Complex(results[length // 2].re)
    return results


def inverse_dft(f: Function, values: Sequence[Complex]) -> list[Complex]:
    """``Σ X[k] exp(2πi nk/N)``, not divided by N: the transform with real and imaginary parts exchanged."""
    return [Complex(y.im, y.re) for y in dft(f, [Complex(x.im, x.re) for x in values])]


def inverse_real(f: Function, half: Sequence[Complex]) -> list[Value | None]:
    """As `inverse_dft` for a spectrum of a real signal of even length, from its first half and middle.

    Through Hartley's transform, which is its own inverse: one transform of a real signal.
    """
    length = 2 * (len(half) - 1)
    hartley = [Complex(None)] * length
    for k, value in enumerate(half):
        hartley[k] = Complex(difference(value.re, value.im if 0 < k < length // 2 else None))
        if 0 < k < length // 2:
            hartley[length - k] = Complex(total(value.re, value.im))
    return [difference(value.re, value.im) for value in dft(f, hartley, real=True)]


# --- small arithmetic with zeros --------------------------------------------------------------------------------


def negative(a: Value | None) -> Value | None:
    """``-a``."""
    return None if a is None else -a


def total(a: Value | None, b: Value | None) -> Value | None:
    """``a + b``."""
    if a is None or b is None:
        return a if b is None else b
    return a + b


def difference(a: Value | None, b: Value | None) -> Value | None:
    """``a - b``."""
    if b is None:
        return a
    return -b if a is None else a - b


def _scaled(a: Value | None, factor: float) -> Value | None:
    return None if a is None else a * factor


def _plus_scaled(f: Function, a: Value | None, b: Value | None, factor: float) -> Value | None:
    """``a + factor · b``."""
    if a is None or b is None:
        return a if b is None else b * factor
    return f.fma(b, f.splat(factor, b.lanes), a)


def _add(a: Complex, b: Complex) -> Complex:
    return Complex(total(a.re, b.re), total(a.im, b.im))


def _subtract(a: Complex, b: Complex) -> Complex:
    return Complex(difference(a.re, b.re), difference(a.im, b.im))


def _add_scaled(f: Function, a: Complex, b: Complex, factor: float) -> Complex:
    return Complex(_plus_scaled(f, a.re, b.re, factor), _plus_scaled(f, a.im, b.im, factor))


def _down(a: Complex) -> Complex:
    """``-i · a``."""
    return Complex(a.im, negative(a.re))


def _turned(f: Function, a: Complex, step: int, length: int) -> Complex:
    """``a · exp(-2πi step/length)``; quarter turns cost nothing."""
    step %= length
    quarters, rest = divmod(4 * step, length)
    if rest:
        factor = cmath.exp(-2j * math.pi * step / length)
        return Complex(
            _plus_scaled(f, _scaled(a.re, factor.real), a.im, -factor.imag),
            _plus_scaled(f, _scaled(a.im, factor.real), a.re, factor.imag),
        )
    for _ in range(quarters):
        a = _down(a)
    return a


# --- small transforms -------------------------------------------------------------------------------------------


def _two(f: Function, x: Sequence[Complex]) -> list[Complex]:
    return [_add(x[0], x[1]), _subtract(x[0], x[1])]


def _three(f: Function, x: Sequence[Complex]) -> list[Complex]:
    both, apart = _add(x[1], x[2]), _subtract(x[1], x[2])
    middle = _add_scaled(f, x[0], both, -0.5)
    side = _down(apart)
    height = math.sqrt(0.75)
    return [_add(x[0], both), _add_scaled(f, middle, side, height), _add_scaled(f, middle, side, -height)]


def _four(f: Function, x: Sequence[Complex]) -> list[Complex]:
    even, odd = _add(x[0], x[2]), _add(x[1], x[3])
    other, side = _subtract(x[0], x[2]), _down(_subtract(x[1], x[3]))
    return [_add(even, odd), _add(other, side), _subtract(even, odd), _subtract(other, side)]


def _five(f: Function, x: Sequence[Complex]) -> list[Complex]:
    cosines = [math.cos(2 * math.pi * k / 5) for k in (1, 2)]
    sines = [math.sin(2 * math.pi * k / 5) for k in (1, 2)]
    near, far = _add(x[1], x[4]), _add(x[2], x[3])
    near_apart, far_apart = _down(_subtract(x[1], x[4])), _down(_subtract(x[2], x[3]))
    first = _add_scaled(f, _add_scaled(f, x[0], near, cosines[0]), far, cosines[1])
    second = _add_scaled(f, _add_scaled(f, x[0], near, cosines[1]), far, cosines[0])
    nothing = Complex(None)
    one = _add_scaled(f, _add_scaled(f, nothing, near_apart, sines[0]), far_apart, sines[1])
    two = _add_scaled(f, _add_scaled(f, nothing, near_apart, sines[1]), far_apart, -sines[0])
    return [
        _add(_add(x[0], near), far), _add(first, one), _add(second, two), _subtract(second, two),
        _subtract(first, one),
    ]  # fmt: skip


_RADICES = {2: _two, 3: _three, 4: _four, 5: _five}
