"""`cpu.winograd…`: convolution with fewer multiplications, through evaluation and interpolation of polynomials."""

from __future__ import annotations

from convlens.kernels.cpu.winograd.kernel import Winograd, WinogradExact, WinogradFast

__all__ = ["Winograd", "WinogradExact", "WinogradFast"]
