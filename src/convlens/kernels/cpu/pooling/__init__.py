"""`cpu.pool`: compiled max and average pooling."""

from __future__ import annotations

from convlens.kernels.cpu.pooling.kernel import Pool

__all__ = ["Pool"]
