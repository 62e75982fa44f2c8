"""`cpu.depthwise_fourier`: large depthwise windows through the Fourier transform of whole planes (row C4)."""

from __future__ import annotations

from convlens.kernels.cpu.depthwise_fourier.kernel import DepthwiseFourier

__all__ = ["DepthwiseFourier"]
