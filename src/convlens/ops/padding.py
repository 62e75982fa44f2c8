"""The input written out with its border, for every padding mode."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from convlens.errors import ArgumentError, ShapeError
from convlens.ops.arguments import PADDING_MODES, Pairs

__all__ = ["pad", "require_mode"]

_NATIVE = {"reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def require_mode(mode: str) -> None:
    """Refuse an unknown ``padding_mode``."""
    if mode not in PADDING_MODES:
        names = ", ".join(repr(name) for name in PADDING_MODES)
        raise ArgumentError("padding_mode", f"one of {names}", repr(mode))


def pad(input: torch.Tensor, pairs: Pairs, mode: str = "zeros") -> torch.Tensor:
    """``input`` with a border on its last ``len(pairs)`` axes.

    Args:
        input: ``(..., *spatial)``, any dtype.
        pairs: ``(before, after)`` per spatial axis, never negative.
        mode: ``"zeros"``; ``"reflect"`` (mirror without repeating the edge), ``"symmetric"`` (mirror that
            repeats it), ``"replicate"`` (the edge), ``"circular"`` (the other side). Any amount is allowed: a
            border wider than the input goes on mirroring or wrapping.

    Raises:
        ShapeError: a border taken from an axis that has nothing to give.
    """
    if not any(before or after for before, after in pairs):
        return input
    flat = [amount for pair in reversed(pairs) for amount in pair]
    if mode == "zeros":
        return F.pad(input, flat)
    first = input.dim() - len(pairs)
    if mode in _NATIVE and _torch_can(input, pairs, mode, first):
        return F.pad(input, flat, mode=_NATIVE[mode])
    for axis, (before, after) in enumerate(pairs, start=first):
        if before or after:
            input = input.index_select(axis, _source(input, axis, before, after, mode))
    return input


def _torch_can(input: torch.Tensor, pairs: Pairs, mode: str, first: int) -> bool:
    if first not in (1, 2) or not (input.is_floating_point() or input.is_complex()) or input.numel() == 0:
        return False
    room = {"reflect": 1, "circular": 0}.get(mode)
    return room is None or all(
        max(pair) <= input.shape[axis] - room for axis, pair in enumerate(pairs, start=first)
    )


def _source(input: torch.Tensor, axis: int, before: int, after: int, mode: str) -> torch.Tensor:
    """Which place along ``axis`` each place of the bordered input is taken from."""
    size = input.shape[axis]
    if size == 0:
        fix = "use padding_mode='zeros', or give an input with at least one element there"
        raise ShapeError("input", f"at least 1 element on axis {axis} to take a border from", 0, fix=fix)
    place = torch.arange(-before, size + after, device=input.device)
    if mode == "replicate":
        return place.clamp(0, size - 1)
    if mode == "circular":
        return place.remainder(size)
    if mode == "symmetric":
        place = place.remainder(2 * size)
        return torch.minimum(place, 2 * size - 1 - place)
    period = max(2 * (size - 1), 1)
    place = place.remainder(period)
    return torch.minimum(place, period - place)
