"""What the plain algorithms share: the border of zeros, the places that one weight touches, types, layouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import torch
from torch.nn import functional as F

from convlens.window import ConvProblem

__all__ = [
    "along",
    "at",
    "bordered",
    "bordered_size",
    "compute_itemsize",
    "cropped",
    "laid_out",
    "grouped",
    "has_border",
    "taps",
    "touched",
    "widened",
]

Tap = tuple[int, ...]
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_NARROW = {"float16", "bfloat16"}


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """16-bit floats as float32, so that sums over weights and channels keep their digits; others unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def compute_itemsize(problem: ConvProblem) -> int:
    """Bytes of one element of what `widened` gives."""
    return 4 if problem.dtype in _NARROW else problem.itemsize


def has_border(problem: ConvProblem) -> bool:
    """Whether any side is padded."""
    return any(before or after for before, after in problem.padding)


def bordered_size(problem: ConvProblem) -> tuple[int, ...]:
    """Spatial size of the input with its border."""
    return tuple(n + sum(pair) for n, pair in zip(problem.input_size, problem.padding, strict=True))


def bordered(problem: ConvProblem, input: torch.Tensor) -> torch.Tensor:
    """``input`` with its border of zeros written out (itself where there is none)."""
    if not has_border(problem):
        return input
    return F.pad(input, [amount for pair in reversed(problem.padding) for amount in pair])


def cropped(problem: ConvProblem, tensor: torch.Tensor) -> torch.Tensor:
    """The part of a bordered tensor that is the input: a view."""
    first = tensor.dim() - problem.ndim
    for axis, (size, (before, _)) in enumerate(zip(problem.input_size, problem.padding, strict=True), start=first):
        tensor = tensor.narrow(axis, before, size)
    return tensor


def taps(problem: ConvProblem) -> Iterator[Tap]:
    """Every place of the kernel."""
    return product(*(range(k) for k in problem.kernel_size))


def touched(problem: ConvProblem, tap: Tap) -> tuple[slice, ...]:
    """The places of the bordered input that the weight at ``tap`` is multiplied with, as slices."""
    return tuple(
        slice(d * u, d * u + (m - 1) * s + 1, s)
        for d, u, m, s in zip(problem.dilation, tap, problem.output_size, problem.stride, strict=True)
    )


def along(slices: Iterable[slice]) -> tuple[Any, ...]:
    """Index of the last axes: everything before them, then one slice each."""
    return (..., *slices)


def at(tap: Tap) -> tuple[Any, ...]:
    """Index of ``tap`` in ``(groups, channels, *kernel, ...)``."""
    return (slice(None), slice(None), *tap)


def grouped(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """``(N, C, ...)`` as ``(groups, C/groups, N, ...)``: a view."""
    split: torch.Tensor = tensor.unflatten(1, (groups, -1))
    return split.movedim(0, 2)


def laid_out(problem: ConvProblem, result: torch.Tensor) -> torch.Tensor:
    """``(groups, channels/groups, N, *spatial)`` as ``(N, channels, *spatial)``, dense, in the problem's type."""
    out = result.movedim(2, 0).flatten(1, 2)
    out = out.to(getattr(torch, problem.dtype))
    if problem.layout == "channels_last" and problem.ndim > 1:
        return out.contiguous(memory_format=_CHANNELS_LAST[problem.ndim])
    return out.contiguous()
