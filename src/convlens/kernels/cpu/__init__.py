"""Kernels compiled for the host through llvmlite. Importing this compiles nothing and loads no llvmlite."""

from __future__ import annotations

from functools import cache

from convlens.kernels.contract import Kernel

__all__ = ["cpu_kernels"]


@cache
def cpu_kernels() -> tuple[Kernel, ...]:
    """Every compiled CPU kernel, in the order in which equal ones are preferred.

    A kernel's module may be imported here; it imports ``codegen`` (and so llvmlite) inside ``run`` or below.
    """
    from convlens.kernels.cpu.amx.kernel import Amx, AmxExact, AmxFast
    from convlens.kernels.cpu.amx_few import AmxFew, AmxFewExact
    from convlens.kernels.cpu.depthwise import Depthwise
    from convlens.kernels.cpu.depthwise_fourier import DepthwiseFourier
    from convlens.kernels.cpu.direct import Direct
    from convlens.kernels.cpu.direct_few import DirectFew
    from convlens.kernels.cpu.fourier import Fourier
    from convlens.kernels.cpu.pointwise import Pointwise
    from convlens.kernels.cpu.winograd import Winograd, WinogradExact, WinogradFast

    winograd = (WinogradExact(), Winograd(), WinogradFast())
    fourier = (Fourier(), DepthwiseFourier())
    tiles = (AmxExact(), Amx(), AmxFast(), AmxFewExact(), AmxFew())
    return (Depthwise(), DirectFew(), Pointwise(), Direct(), *fourier, *tiles, *winograd)
