"""Direct convolution for few input channels, alone and fused with ReLU and pooling."""

from __future__ import annotations

from convlens.kernels.cpu.direct_few.block_kernel import DirectBlock
from convlens.kernels.cpu.direct_few.kernel import DirectFew

__all__ = ["DirectBlock", "DirectFew"]
