"""Hand-designed filters on whole pictures, and hybrid images (part G).

Oliva, Torralba, Schyns: Hybrid images, SIGGRAPH 2006.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convlens import ops
from convlens.errors import ArgumentError, ShapeError
from convlens.explain.sliding import MOST_TAPS, slide
from convlens.layers.filters import hand_filter, separated

__all__ = ["BORDERS", "filter_image", "hybrid", "parse_kernel"]

BORDERS = ("symmetric", "reflect", "replicate", "circular", "zeros")
"""What lies beyond the edge; scipy.ndimage calls them reflect, mirror, nearest, wrap and constant."""


_SECOND_PASS = 6


def filter_image(
    image: npt.NDArray[Any], kernel: Tensor, border: str = "symmetric", *, separable: bool | None = None
) -> npt.NDArray[np.float32]:
    """Apply one kernel to every channel of a picture, by cross-correlation, keeping its size.

    Args:
        image: ``(height, width)`` or ``(height, width, channels)``, any real type.
        kernel: ``(kernel_height, kernel_width)``; an even one is centred as scipy.ndimage centres it.
        border: one of `BORDERS`.
        separable: run a rank-1 kernel as a column and a row; default: where that saves multiplications.

    Returns:
        float32 of the picture's shape, not clipped.

    Raises:
        ArgumentError: another border, or ``separable=True`` for a kernel that isn't.
        ShapeError: not a picture and a 2-D kernel.
    """
    if border not in BORDERS:
        raise ArgumentError("border", f"one of {', '.join(BORDERS)}", repr(border))
    if kernel.ndim != 2:
        raise ShapeError("kernel", "(height, width)", tuple(kernel.shape))
    picture = _picture(image)
    parts = separated(kernel) if separable is not False else None
    if separable and parts is None:
        raise ArgumentError("separable", "False, since this kernel is no outer product", True)
    whole = int(kernel.count_nonzero())
    apart = whole if parts is None else sum(int(part.count_nonzero()) for part in parts)
    # a second pass costs about as much as six numbers of the kernel
    if parts is not None and (separable or apart + _SECOND_PASS < whole):
        result = slide(picture, *parts, border)
    elif whole <= MOST_TAPS:
        result = slide(picture, torch.empty(0), kernel, border)
    else:
        result = _correlate(picture, kernel, border)
    return result[..., 0].numpy() if image.ndim == 2 else result.numpy()


def hybrid(
    far: npt.NDArray[Any], near: npt.NDArray[Any], sigma: float = 6.0, sigma_near: float | None = None
) -> npt.NDArray[np.float32]:
    """Low frequencies of ``far`` plus high frequencies of ``near``: seen from afar it is one, close by the other.

    Args:
        far: picture seen from far away, ``(height, width[, channels])``.
        near: picture of the same shape seen close by.
        sigma: deviation in pixels of the blur that ``far`` passes through.
        sigma_near: deviation of the blur that is taken away from ``near``; default ``sigma``.

    Returns:
        float32, clipped to the range 0–255.

    Raises:
        ShapeError: two different shapes.
    """
    if far.shape != near.shape:
        raise ShapeError("near", f"the shape of far, {far.shape}", near.shape)
    low = filter_image(far, hand_filter("gaussian", sigma=sigma))
    detail = near.astype(np.float32) - filter_image(near, hand_filter("gaussian", sigma=sigma_near or sigma))
    return np.clip(low + detail, 0, 255)


def parse_kernel(text: str) -> Tensor:
    """A kernel from numbers: rows between semicolons, ``"0,1,0; 1,-4,1; 0,1,0"``.

    Raises:
        ArgumentError: something that isn't a rectangle of numbers.
    """
    try:
        rows = [[float(part) for part in row.replace(",", " ").split()] for row in text.split(";")]
    except ValueError as error:
        raise ArgumentError(
            "kernel", "numbers, rows between semicolons: '0,1,0; 1,-4,1; 0,1,0'", repr(text)
        ) from error
    if not rows[0] or len({len(row) for row in rows}) != 1:
        raise ArgumentError("kernel", "rows of equal length", repr(text))
    return torch.tensor(rows)


def _picture(image: npt.NDArray[Any]) -> Tensor:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ShapeError("image", "(height, width) or (height, width, channels)", image.shape)
    known = image if image.dtype in (np.uint8, np.float32) else image.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a read-only picture is only read
        picture = torch.from_numpy(np.ascontiguousarray(known))
    return picture.unsqueeze(-1) if image.ndim == 2 else picture


def _correlate(picture: Tensor, kernel: Tensor, border: str) -> Tensor:
    padding = [(size // 2, (size - 1) // 2) for size in kernel.shape]
    # channels become a batch, so that one kernel serves them all
    planes = picture.movedim(-1, 0).unsqueeze(1).float().contiguous()
    filtered: Tensor = ops.conv2d(planes, kernel[None, None], padding=padding, padding_mode=border)
    return filtered[:, 0].movedim(0, -1).contiguous()
