"""The receptive field of a unit: what it could see by its windows, and what it does see by its gradient.

Luo et al.: Understanding the effective receptive field in deep convolutional networks, NeurIPS 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError
from convlens.explain.capture import capture_one, quiet

__all__ = ["EffectiveField", "effective_field"]


@dataclass(frozen=True, slots=True)
class EffectiveField:
    """What one unit sees of one input.

    Attributes:
        layer: its layer.
        channel: its channel, None for the sum over all.
        position: its place in the layer's map.
        heat: float32, the input's spatial size: absolute gradient summed over channels, largest value 1.
        reach: box ``(low, high)`` per axis, high exclusive, that holds every pixel with a gradient: the
            theoretical field cut at the border (smaller where the activations let nothing through).
        core: the box, centred on the heat's middle, that holds 95 % of the gradient.
    """

    layer: str
    channel: int | None
    position: tuple[int, ...]
    heat: npt.NDArray[np.float32]
    reach: tuple[tuple[int, int], ...]
    core: tuple[tuple[int, int], ...]


def effective_field(
    model: nn.Module,
    input: Tensor,
    layer: str,
    channel: int | None = None,
    position: tuple[int, ...] | None = None,
) -> EffectiveField:
    """Measure the field of one unit on one input ``(1, channels, *size)``; the middle unit by default.

    Raises:
        ArgumentError: no such layer, channel or position.
    """
    probe = input.detach().clone().requires_grad_(True)
    with torch.enable_grad(), quiet(model):
        maps = capture_one(model, probe, layer).output[0]
        size = tuple(maps.shape[1:])
        place = position if position is not None else tuple(n // 2 for n in size)
        if len(place) != len(size) or not all(0 <= p < n for p, n in zip(place, size, strict=True)):
            raise ArgumentError("position", f"coordinates within {size}", place)
        if channel is not None and not 0 <= channel < len(maps):
            raise ArgumentError("channel", f"0 to {len(maps) - 1}", channel)
        unit = maps.flatten(1)[:, int(np.ravel_multi_index(place, size))]
        scalar = unit.sum() if channel is None else unit[channel]
        (gradient,) = torch.autograd.grad(scalar, probe)
    heat = gradient[0].abs().sum(0).float().cpu().numpy()
    largest = float(heat.max())
    if largest > 0:
        heat = heat / largest
    reach = _reach(heat)
    core = tuple(
        (max(low, inner[0]), min(high, inner[1])) for (low, high), inner in zip(reach, _core(heat), strict=True)
    )
    return EffectiveField(layer, channel, tuple(place), heat, reach, core)


def _reach(heat: npt.NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    boxes = []
    for axis in range(heat.ndim):
        others = tuple(a for a in range(heat.ndim) if a != axis)
        seen = np.flatnonzero(heat.sum(axis=others) if others else heat)
        boxes.append((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0))
    return tuple(boxes)


def _core(heat: npt.NDArray[np.float32], share: float = 0.95) -> tuple[tuple[int, int], ...]:
    total = float(heat.sum())
    if total == 0:
        return tuple((0, 0) for _ in heat.shape)
    middle = []
    for axis, size in enumerate(heat.shape):
        others = tuple(a for a in range(heat.ndim) if a != axis)
        profile = heat.sum(axis=others) if others else heat
        middle.append(int(round(float((profile * np.arange(size)).sum()) / total)))
    box: tuple[tuple[int, int], ...] = ()
    for radius in range(max(heat.shape) + 1):
        box = tuple((max(0, m - radius), min(n, m + radius + 1)) for m, n in zip(middle, heat.shape, strict=True))
        if float(heat[tuple(slice(low, high) for low, high in box)].sum()) >= share * total:
            break
    return box
