"""`cpu.pointwise`: 1×1 convolution as the matrix product that it is (LECTURES B8), without copies."""

from __future__ import annotations

from convlens.kernels.cpu.pointwise.kernel import Pointwise

__all__ = ["Pointwise"]
