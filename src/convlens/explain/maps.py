"""Feature maps (part H): what each channel of each layer answers to one input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convlens.explain.capture import capture, quiet

__all__ = ["FeatureMaps", "feature_maps"]

_BUDGET_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The maps of one layer for one input.

    Attributes:
        layer: its name.
        kind: its class.
        maps: float32 ``(channels, *size)``; ``(features, )`` for dense layers.
        shape: the full shape, also where ``maps`` had to be left out (None) to bound the memory.
        silent: channels whose map is the same everywhere (nothing detected, or everything).
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    maps: npt.NDArray[np.float32] | None
    silent: tuple[int, ...]


def feature_maps(
    model: nn.Module, input: Tensor, layers: list[str] | None = None, budget_bytes: int = _BUDGET_BYTES
) -> list[FeatureMaps]:
    """The maps of every layer for one input ``(1, channels, *size)``, first layer first.

    Memory is bounded: layers are kept in the order of computation until ``budget_bytes`` are used.
    """
    spent = 0

    def affordable(name: str, module: nn.Module, output: Tensor) -> bool:
        nonlocal spent
        spent += output.numel() * 4
        return spent <= budget_bytes or output.ndim <= 2

    with torch.no_grad(), quiet(model):
        _, caught = capture(model, input, layers, keep=affordable)
    found = []
    for name, layer in caught.items():
        maps = layer.output[0].float().cpu().numpy()
        flat = maps.reshape(len(maps), -1) if maps.ndim > 1 else maps[:, None]
        silent = np.flatnonzero(np.ptp(flat, axis=1) == 0) if maps.ndim > 1 else np.flatnonzero(maps == 0)
        found.append(FeatureMaps(name, layer.kind, maps.shape, maps, tuple(int(i) for i in silent)))
    return found
