"""Which hand-designed filter a learned one looks like: ``filter 7 ≈ sobel_x (0.93)``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convlens.layers.filters import HAND_FILTERS, hand_filter

__all__ = ["LearnedFilter", "learned_filters", "resemblance"]

_UNSIZED = ("identity", "box", "gaussian", "laplacian_of_gaussian")


@dataclass(frozen=True, slots=True)
class LearnedFilter:
    """One filter of one layer.

    Attributes:
        layer: name of the layer.
        index: output channel.
        weights: float32 ``(in_channels / groups, *kernel_size)``.
        looks_like: name of the nearest hand-designed filter; None where nothing can be told (1-D, 3-D, 1×1).
        similarity: cosine of the angle to it, in [0, 1]; the sign of the filter is free.
        norm: Euclidean length of the weights.
    """

    layer: str
    index: int
    weights: npt.NDArray[np.float32]
    looks_like: str | None
    similarity: float
    norm: float

    def __str__(self) -> str:
        named = f" ≈ {self.looks_like} ({self.similarity:.2f})" if self.looks_like else ""
        return f"filter {self.index}{named}"


def learned_filters(model: nn.Module, layers: list[str] | None = None) -> dict[str, list[LearnedFilter]]:
    """The filters of every convolution, by layer name, each named by what it resembles."""
    found: dict[str, list[LearnedFilter]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or isinstance(weight, nn.UninitializedParameter):
            continue
        if weight.ndim < 3 or "Conv" not in type(module).__name__:
            continue
        if layers is not None and name not in layers:
            continue
        if getattr(module, "transposed", False):
            weight = weight.transpose(0, 1)
        found[name] = [_described(name, index, one) for index, one in enumerate(weight.detach().float().cpu())]
    return found


def resemblance(plane: Tensor) -> tuple[str | None, float]:
    """The nearest hand-designed filter of a 2-D kernel and the cosine of the angle to it.

    Kernels smaller than 2×2 resemble nothing (None). Blurs and edges are told apart because a mean is kept:
    a kernel whose weights sum to about zero can only resemble an edge.
    """
    if plane.ndim != 2 or min(plane.shape) < 2 or not bool(torch.isfinite(plane).all()):
        return None, 0.0
    flat = plane.double().flatten()
    length = float(flat.norm())
    if length == 0:
        return None, 0.0
    names, bank = _bank(tuple(plane.shape))
    cosines = (bank @ (flat / length)).abs()
    best = int(cosines.argmax())
    return names[best], min(1.0, float(cosines[best]))


def _described(layer: str, index: int, weights: Tensor) -> LearnedFilter:
    name, similarity = resemblance(_main_plane(weights)) if weights.ndim == 3 else (None, 0.0)
    return LearnedFilter(layer, index, weights.numpy(), name, similarity, float(weights.norm()))


def _main_plane(weights: Tensor) -> Tensor:
    """The spatial pattern that explains most of a filter over all its input channels (first singular vector)."""
    if len(weights) == 1:
        return weights[0]
    _, _, right = torch.linalg.svd(weights.flatten(1).double(), full_matrices=False)
    plane: Tensor = right[0].reshape(weights.shape[1:])
    return plane


@cache
def _bank(size: tuple[int, int]) -> tuple[tuple[str, ...], Tensor]:
    """Every hand-designed filter scaled to ``size`` (rows) as unit vectors."""
    rows: dict[str, Tensor] = {}
    for name in HAND_FILTERS:
        if name in _UNSIZED:
            side = max(size) | 1
            kernel = hand_filter(name, size=side)
            if name == "identity" and side != min(size):
                continue  # an even window has no centre
            rows[name] = _cropped(kernel, size)
        else:
            rows[name] = _scaled(hand_filter(name), size)
    down = torch.linspace(-1, 1, size[0])[:, None] + torch.linspace(-1, 1, size[1])[None, :]
    rows["diagonal_falling"], rows["diagonal_rising"] = down, down.flip(1)
    vectors = torch.stack([row.double().flatten() / row.double().norm() for row in rows.values()])
    return tuple(rows), vectors


def _cropped(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((kernel.shape[axis] - size[axis]) // 2 for axis in (0, 1))
    return kernel[top : top + size[0], left : left + size[1]]


def _scaled(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    resized: Tensor = nn.functional.interpolate(
        kernel[None, None], size=size, mode="bilinear", align_corners=True
    )[0, 0]
    # interpolation must not turn an edge (sum 0) into a blur
    return resized - resized.mean() if abs(float(kernel.sum())) < 1e-6 else resized
