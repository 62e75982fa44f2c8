"""Maps of any number of axes as planes that a page can draw."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convlens.explain import OutputPixel
from convlens.explorer.payload import quantised

__all__ = ["planes_of", "under_window"]

_MOST = 6  # input channels whose planes travel with a number taken apart
_LARGEST = 512  # places along a side


def planes_of(maps: Tensor, chosen: int) -> Tensor:
    """Maps ``(channels, *size)`` as planes ``(channels, height, width)``."""
    if maps.ndim == 4:
        return maps[:, chosen]
    if maps.ndim == 2:
        return maps[:, None, :]
    return maps[None, None, :] if maps.ndim == 1 else maps


def under_window(input: Tensor, taken: OutputPixel) -> dict[str, Any]:
    """The planes of the layer's input that a window lies on, for drawing it there."""
    chosen = input[list(taken.inputs[:_MOST])]
    middle = taken.start[0] + taken.kernel.shape[1] // 2 if input.ndim == 4 else 0
    plane = min(max(middle, 0), input.shape[1] - 1) if input.ndim == 4 else 0
    drawn = planes_of(chosen, plane)
    if max(drawn.shape[1:]) > _LARGEST:
        return {}
    return {"planes": quantised(drawn.float().numpy()), "slice": plane if input.ndim == 4 else None}
