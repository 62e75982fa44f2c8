"""Depthwise convolution, each channel by itself: direct sums in registers, every activation touched once."""

from __future__ import annotations

from convlens.kernels.cpu.depthwise.kernel import Depthwise

__all__ = ["Depthwise"]
