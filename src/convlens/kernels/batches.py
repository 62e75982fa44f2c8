"""Batches that share code: kernels are laid out for the next power of two, so that few batches compile."""

from __future__ import annotations

__all__ = ["rounded_batch"]


def rounded_batch(batch: int) -> int:
    """The power of two from ``batch`` on; 0 and 1 stay."""
    return batch if batch < 2 else 1 << (batch - 1).bit_length()
