"""Filters designed by hand (part G of the lectures): the bank of kernels, and a layer made of them.

Kernels are applied as networks apply theirs, by cross-correlation. Blurs sum to 1 and edges to 0, so a flat
picture keeps its grey or becomes black.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convlens import ops
from convlens.errors import ArgumentError, ShapeError

__all__ = ["FilterBank", "HAND_FILTERS", "hand_filter", "separated"]

_SMOOTH = (1.0, 2.0, 1.0)
_FLAT = (1.0, 1.0, 1.0)
_SLOPE = (-1.0, 0.0, 1.0)


def _outer(column: Sequence[float], row: Sequence[float], scale: float = 1.0) -> Tensor:
    return torch.outer(torch.tensor(column), torch.tensor(row)) * scale


def _identity(size: int, sigma: float) -> Tensor:
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1.0
    return kernel


def _box(size: int, sigma: float) -> Tensor:
    return torch.full((size, size), 1.0 / size**2)


def _gaussian(size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights /= weights.sum()
    return torch.outer(weights, weights).float()


def _laplacian_of_gaussian(size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    square = places[:, None] ** 2 + places[None, :] ** 2
    kernel = (square - 2 * sigma**2) * torch.exp(-square / (2 * sigma**2))
    return ((kernel - kernel.mean()) / kernel.abs().sum()).float()


def _fixed(kernel: Tensor) -> Callable[[int, float], Tensor]:
    return lambda size, sigma: kernel


HAND_FILTERS: dict[str, Callable[[int, float], Tensor]] = {
    "identity": _identity,
    "sobel_x": _fixed(_outer(_SMOOTH, _SLOPE)),
    "sobel_y": _fixed(_outer(_SLOPE, _SMOOTH)),
    "prewitt_x": _fixed(_outer(_FLAT, _SLOPE)),
    "prewitt_y": _fixed(_outer(_SLOPE, _FLAT)),
    "laplacian": _fixed(torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])),
    "laplacian_8": _fixed(torch.tensor([[1.0, 1, 1], [1, -8, 1], [1, 1, 1]])),
    "edge_x": _fixed(torch.tensor([[-1.0, 1.0]])),
    "edge_y": _fixed(torch.tensor([[-1.0], [1.0]])),
    "sharpen": _fixed(torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]])),
    "emboss": _fixed(torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])),
    "box": _box,
    "gaussian": _gaussian,
    "laplacian_of_gaussian": _laplacian_of_gaussian,
}
"""Name → kernel of a size (pixels) and sigma (pixels); the fixed ones ignore both."""


def hand_filter(name: str, size: int | None = None, sigma: float | None = None) -> Tensor:
    """The kernel called ``name``, float32 ``(height, width)``.

    Args:
        name: one of `HAND_FILTERS`.
        size: side in pixels of identity, box, gaussian and laplacian_of_gaussian; odd. Default 3, or wide
            enough for ``sigma`` (four deviations to each side, as scipy.ndimage cuts it).
        sigma: deviation in pixels of the Gaussian ones; default OpenCV's rule,
            ``0.3 ((size - 1) / 2 - 1) + 0.8``.

    Raises:
        ArgumentError: an unknown name, an even size or a sigma that isn't positive.
    """
    if name not in HAND_FILTERS:
        raise ArgumentError("name", f"one of {', '.join(HAND_FILTERS)}", repr(name))
    if sigma is not None and not sigma > 0:
        raise ArgumentError("sigma", "a positive number of pixels", sigma)
    if size is None:
        size = 3 if sigma is None else 2 * int(4 * sigma + 0.5) + 1
    if size < 1 or size % 2 == 0:
        raise ArgumentError("size", "an odd number of pixels", size)
    if sigma is None:
        sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    return HAND_FILTERS[name](size, sigma).clone()


def separated(kernel: Tensor, tolerance: float = 1e-6) -> tuple[Tensor, Tensor] | None:
    """``(column, row)`` whose outer product is ``kernel``, or None where there are none.

    A separable k×k kernel costs 2k multiplications a pixel instead of k². Found by singular values: the
    kernel has rank 1 where the second is below ``tolerance`` times the first.
    """
    if min(kernel.shape) == 1:
        return None
    left, values, right = torch.linalg.svd(kernel.double())
    if values[0] == 0 or values[1] > tolerance * values[0]:
        return None
    root = math.sqrt(float(values[0]))
    return (left[:, 0] * root).to(kernel.dtype), (right[0] * root).to(kernel.dtype)


class FilterBank(nn.Module):
    """A first layer of hand-designed filters: every kernel on every input channel.

    Args:
        filters: names of `HAND_FILTERS`.
        in_channels: channels of the input.
        size: side in pixels; smaller kernels are centred in it with zeros. Default the largest one's.
        trainable: let training change the weights; frozen otherwise.

    Shape: ``(batch, in_channels, h, w)`` → ``(batch, in_channels * len(filters), h, w)``, channel-major
    (all filters of channel 0 first), padded by repeating the edge.
    """

    def __init__(
        self, filters: Sequence[str], in_channels: int = 1, size: int | None = None, trainable: bool = False
    ) -> None:
        super().__init__()
        kernels = [hand_filter(name) for name in filters]
        if not kernels:
            raise ArgumentError("filters", "at least one name", "none")
        needed = max(max(kernel.shape) for kernel in kernels) | 1
        self.filters = tuple(filters)
        self.in_channels = in_channels
        self.size = size or needed
        if self.size < needed or self.size % 2 == 0:
            raise ArgumentError("size", f"an odd number of at least {needed}", size)
        stacked = torch.stack([_centred(kernel, self.size) for kernel in kernels])
        weight = stacked.repeat(in_channels, 1, 1).unsqueeze(1)
        self.weight = nn.Parameter(weight, requires_grad=trainable)

    def forward(self, input: Tensor) -> Tensor:
        """Apply every filter to every channel."""
        if input.ndim != 4 or input.shape[1] != self.in_channels:
            raise ShapeError("input", f"(batch, {self.in_channels}, height, width)", tuple(input.shape))
        half = self.size // 2
        filtered: Tensor = ops.conv2d(
            input, self.weight, padding=half, groups=self.in_channels, padding_mode="replicate"
        )
        return filtered

    def extra_repr(self) -> str:
        """What the printed module says between the brackets."""
        return f"{', '.join(self.filters)}, in_channels={self.in_channels}, size={self.size}"


def _centred(kernel: Tensor, size: int) -> Tensor:
    height, width = kernel.shape
    framed = torch.zeros(size, size)
    # an even kernel's centre is the pixel after its middle, as in scipy.ndimage
    top, left = size // 2 - height // 2, size // 2 - width // 2
    framed[top : top + height, left : left + width] = kernel
    return framed
