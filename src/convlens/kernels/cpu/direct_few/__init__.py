"""Direct convolution for few input channels: alone, fused with ReLU and pooling, and in chains of such blocks."""

from __future__ import annotations

from convlens.kernels.cpu.direct_few.block_kernel import DirectBlock
from convlens.kernels.cpu.direct_few.chain_kernel import DirectChain
from convlens.kernels.cpu.direct_few.geometry import Dense
from convlens.kernels.cpu.direct_few.kernel import DirectFew

__all__ = ["Dense", "DirectBlock", "DirectChain", "DirectFew"]
