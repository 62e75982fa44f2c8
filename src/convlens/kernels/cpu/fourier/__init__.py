"""`cpu.fourier`: convolution in tiles through the real Fourier transform (row C4)."""

from __future__ import annotations

from convlens.kernels.cpu.fourier.kernel import Fourier

__all__ = ["Fourier"]
