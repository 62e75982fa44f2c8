"""How one problem is computed. `all_kernels` lists every kernel; importing this compiles nothing."""

from __future__ import annotations

from functools import cache

from convlens.kernels.contract import Kernel

__all__ = ["Kernel", "all_kernels"]


@cache
def all_kernels() -> tuple[Kernel, ...]:
    """Every kernel, in the order in which equal ones are preferred."""
    from convlens.kernels.cpu import cpu_kernels
    from convlens.kernels.plain import plain_kernels
    from convlens.kernels.vendor import Vendor

    return (*cpu_kernels(), Vendor(), *plain_kernels())
