"""The lectures' algorithms (rows C1-C4) as plain tensor code, on any device."""

from __future__ import annotations

from convlens.kernels.contract import Kernel
from convlens.kernels.plain.definition import Definition
from convlens.kernels.plain.fourier import Fourier
from convlens.kernels.plain.im2col import Im2col
from convlens.kernels.plain.toeplitz import Toeplitz

__all__ = ["plain_kernels"]


def plain_kernels() -> tuple[Kernel, ...]:
    """Every kernel of this room."""
    return (Im2col(), Fourier(), Definition(), Toeplitz())
