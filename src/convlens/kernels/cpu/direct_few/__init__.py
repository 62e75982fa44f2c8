"""Direct convolution for few input channels."""

from __future__ import annotations

from convlens.kernels.cpu.direct_few.kernel import DirectFew

__all__ = ["DirectFew"]
