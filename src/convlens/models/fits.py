"""Which input sizes a chain of layers can take, from window arithmetic alone: nothing is run.

A structure is walked, not a forward pass: ``nn.Sequential`` is a chain, a module with ``branches()`` is
several chains side by side on one input, a module with ``kernel_size`` is a window, an adaptive pooling
gives a fixed size whatever comes in, and everything else leaves the size alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from convlens.errors import ShapeError
from convlens.window import windows_that_fit

__all__ = ["feature_size", "smallest_input"]

_ADAPTIVE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


@runtime_checkable
class SideBySide(Protocol):
    """A module that runs several chains on one input and joins their outputs (residual, inception)."""

    def branches(self) -> list[nn.Module]:
        """The chains; all give the same spatial size."""
        ...


@dataclass(frozen=True, slots=True)
class _Axis:
    """One window along one axis."""

    window: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    ceil: bool
    same: bool = False

    def output(self, size: int) -> int:
        if self.same:
            return -(-size // self.stride)
        if not self.ceil:
            return windows_that_fit(size, self.window, self.stride, self.dilation, self.padding)
        count = windows_that_fit(size + self.stride - 1, self.window, self.stride, self.dilation, self.padding)
        # A last window that would start beyond the input and its leading padding is dropped, as torch does.
        return count - 1 if (count - 1) * self.stride >= size + self.padding[0] else count

    def smallest_for(self, wanted: int) -> int:
        """The smallest input with at least ``wanted`` outputs."""
        if self.same:
            return (wanted - 1) * self.stride + 1
        reach = (wanted - 1) * self.stride + self.dilation * (self.window - 1) + 1 - sum(self.padding)
        size = max(reach - (self.stride - 1 if self.ceil else 0), 1)
        return next(n for n in range(size, size + self.stride + 1) if self.output(n) >= wanted)


def _per_axis(value: Any, ndim: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim


def _windows(module: nn.Module, ndim: int) -> list[tuple[_Axis, ...]]:
    """The windows of one module, in the order they are applied; one `_Axis` per spatial axis."""
    kernel, stride = _per_axis(module.kernel_size, ndim), _per_axis(module.stride, ndim)
    dilation = _per_axis(getattr(module, "dilation", 1), ndim)
    padding: Any = getattr(module, "padding", 0)
    same = padding in ("same", "same_lower")
    if padding == "full":
        padding = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    padding = _per_axis(0 if isinstance(padding, str) else padding, ndim)
    sides = [tuple(p) if isinstance(p, (tuple, list)) else (p, p) for p in padding]
    ceil = bool(getattr(module, "ceil_mode", False))
    windows = [tuple(_Axis(*one, ceil, same) for one in zip(kernel, stride, dilation, sides, strict=True))]
    if pool := getattr(module, "pool", 0):  # a fused block: the pooling comes after
        windows.append((_Axis(pool, pool, 1, (0, 0), False),) * ndim)
    return windows


def feature_size(module: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial size that comes out of ``module`` for an input of spatial ``size``.

    Raises:
        ShapeError: the input is too small; the text gives the smallest legal size.
    """
    smallest = smallest_input(module, len(size))
    if any(n < least for n, least in zip(size, smallest, strict=True)):
        raise too_small("input_size", size, smallest)
    return _forward(module, size)


def smallest_input(module: nn.Module, ndim: int) -> tuple[int, ...]:
    """The smallest spatial size from which every window in ``module`` still has at least one place."""
    return _backward(module, (1,) * ndim)


def too_small(argument: str, size: tuple[int, ...], smallest: tuple[int, ...]) -> ShapeError:
    """The error for an input that some window does not fit into."""
    written = "×".join(map(str, smallest))
    return ShapeError(
        argument,
        f"a spatial size of {written} or more",
        "×".join(map(str, size)),
        f"enlarge the input to at least {written}, or choose a net with fewer strides",
    )


def _forward(module: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(module, nn.Sequential):
        for part in module:
            size = _forward(part, size)
        return size
    if isinstance(module, _ADAPTIVE):
        wanted = _per_axis(module.output_size, len(size))
        return tuple(n if w is None else w for n, w in zip(size, wanted, strict=True))
    if isinstance(module, SideBySide):
        return _forward(module.branches()[0], size)
    if hasattr(module, "kernel_size"):
        for axes in _windows(module, len(size)):
            size = tuple(axis.output(n) for axis, n in zip(axes, size, strict=True))
    return size


def _backward(module: nn.Module, wanted: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(module, nn.Sequential):
        for part in reversed(list(module)):
            wanted = _backward(part, wanted)
        return wanted
    if isinstance(module, _ADAPTIVE):
        return (1,) * len(wanted)
    if isinstance(module, SideBySide):
        return tuple(map(max, zip(*(_backward(branch, wanted) for branch in module.branches()), strict=True)))
    if hasattr(module, "kernel_size"):
        for axes in reversed(_windows(module, len(wanted))):
            wanted = tuple(axis.smallest_for(n) for axis, n in zip(axes, wanted, strict=True))
    return wanted
