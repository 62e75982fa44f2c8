"""Arrays fenced by unreadable pages: an access one element outside ends the process instead of passing."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable
from typing import Literal

import torch

from convlens.window import ConvProblem

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform != "win32" else None


class _Fenced:
    """Keeps one mapping alive: unreadable page, data, unreadable page."""

    def __init__(self, size: int) -> None:
        self.pages = max(1, math.ceil(size / _PAGE))
        self.map = mmap.mmap(-1, (self.pages + 2) * _PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for page in (self.address, self.address + (self.pages + 1) * _PAGE):
            if _libc.mprotect(ctypes.c_void_p(page), _PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect failed")


_alive: list[_Fenced] = []  # never unmapped: a late stray access must still fault


def guarded(
    source: torch.Tensor | tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    against: Literal["end", "start"] = "end",
    fill: float = float("nan"),
) -> torch.Tensor:
    """A contiguous tensor whose last (or first) byte touches an unreadable page.

    Args:
        source: values to copy, or a shape filled with ``fill``.
        dtype: of a shape; a tensor keeps its own.
        against: which side touches the fence. Run a kernel once with each.
        fill: poison for outputs, so that an element never written is seen.
    """
    shape = tuple(source.shape) if isinstance(source, torch.Tensor) else source
    dtype = source.dtype if isinstance(source, torch.Tensor) else dtype
    size = math.prod(shape) * dtype.itemsize
    fenced = _Fenced(size)
    _alive.append(fenced)
    offset = _PAGE if against == "start" else (fenced.pages + 1) * _PAGE - size
    whole = torch.frombuffer(fenced.map, dtype=torch.uint8)
    tensor = whole[offset : offset + size].view(dtype).view(shape)
    if isinstance(source, torch.Tensor):
        tensor.copy_(source)
    else:
        tensor.fill_(fill)
    return tensor


def guarded_operand(operand: torch.Tensor, problem: ConvProblem, against: Literal["end", "start"]) -> torch.Tensor:
    """A copy of an operand, dense in the problem's layout, fenced as by `guarded`."""
    if operand.shape in (problem.input_shape, problem.output_shape) and problem.layout == "channels_last":
        return guarded(operand.movedim(1, -1).contiguous(), against=against).movedim(-1, 1)
    return guarded(operand.contiguous(), against=against)


def guarded_results(against: Literal["end", "start"]) -> Callable[..., torch.Tensor]:
    """What stands in for ``memory.empty`` in a kernel, so that its results are fenced too."""

    def empty(shape: tuple[int, ...], channels_last: bool = False) -> torch.Tensor:
        if not channels_last:
            return guarded(tuple(shape), against=against)
        batch, channels, *spatial = shape
        return guarded((batch, *spatial, channels), against=against).movedim(-1, 1)

    return empty
