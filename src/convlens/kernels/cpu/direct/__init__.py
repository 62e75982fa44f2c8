"""`cpu.direct`: direct convolution with output channels as lanes."""

from __future__ import annotations

from convlens.kernels.cpu.direct.kernel import Direct

__all__ = ["Direct"]
