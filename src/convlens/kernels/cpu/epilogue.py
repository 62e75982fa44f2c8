"""What follows a sum before it is stored: activations in vectors, as torch computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Function, Value

__all__ = ["ACTIVATIONS", "activated"]

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu")
"""Those that `activated` knows."""

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the first has so few bits that its multiples are exact
_EXPONENTIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
"""Cephes' polynomial: ``exp(r) ≈ 1 + r + r² p(r)`` for |r| ≤ ln 2 / 2, to 2e-7."""


def activated(f: Function, value: Value, activation: str) -> Value:
    """``activation(value)`` for a vector of float32; NaN stays NaN."""
    if activation == "none":
        return value
    if activation == "relu":
        return f.max(value, 0.0)
    if activation == "relu6":
        return f.min(f.max(value, 0.0), 6.0)
    if activation in ("hardswish", "hardsigmoid"):
        gate = f.min(f.max(value + 3.0, 0.0), 6.0) * (1 / 6)
        return value * gate if activation == "hardswish" else gate
    if activation in ("sigmoid", "silu"):
        below = _exponential(f, 0.0 - value) + 1.0
        return value / below if activation == "silu" else 1.0 / below
    raise ValueError(f"no code for {activation}")


def _exponential(f: Function, value: Value) -> Value:
    """``exp(value)``: a power of two and a polynomial of what is left; infinite from 88.4 on."""
    value = f.min(f.max(value, -87.0), 89.0)
    whole = f.round(value * _LOG2_E)
    rest = f.fma(whole, f.like(-_LN2_HIGH, value), value)
    rest = f.fma(whole, f.like(-_LN2_LOW, value), rest)
    sums = f.like(_EXPONENTIAL[0], value)
    for factor in _EXPONENTIAL[1:]:
        sums = f.fma(sums, rest, f.like(factor, value))
    sums = f.fma(sums, rest * rest, rest) + 1.0
    return sums * f.power_of_two(whole)
