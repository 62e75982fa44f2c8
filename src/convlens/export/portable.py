"""A trained net with its preprocessing inside, as plain torch operators that every export route takes.

From uint8 pixels of any size to probabilities: crop or pad, resample, normalise, the net, softmax. The
resampling repeats Pillow's own arithmetic (two passes, weights in 22-bit fixed point, rounding to 8 bits after
each), so the exported file answers what `convlens.load(...).predict` answers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens.data import Preprocessing

__all__ = ["Portable", "resample_weights"]

_FIXED_POINT = float(1 << 22)  # Pillow's PRECISION_BITS for 8-bit images
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


class Portable(nn.Module):
    """``(batch, height, width, channels)`` uint8 → ``(batch, classes)`` probabilities, float32.

    Args:
        net: the classifier, from normalised inputs to logits.
        preprocessing: the model file's own.
        multilabel: probabilities of each class alone (sigmoid) instead of one choice (softmax).

    Pictures come upright and in the net's own colours (grey: 1 channel, colour: 3 channels, RGB). Other kinds of
    input come in storage form, ``(batch, channels, *size)``.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, net: nn.Module, preprocessing: Preprocessing, multilabel: bool = False) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.multilabel = multilabel
        gain, offset = preprocessing.coefficients()
        shape = (1, preprocessing.channels) + (1,) * len(preprocessing.size)
        self.register_buffer("gain", torch.from_numpy(gain).view(shape), persistent=True)
        self.register_buffer("offset", torch.from_numpy(offset).view(shape), persistent=True)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of a batch."""
        stored = self.fitted(images) if self.preprocessing.kind == "image" else images.to(torch.float32)
        logits = self.net(stored * self.gain + self.offset)
        answers: Tensor = logits.sigmoid() if self.multilabel else logits.softmax(1)
        return answers

    def fitted(self, images: Tensor) -> Tensor:
        """Pixels as the net's input size, float32 ``(batch, channels, *size)`` of whole numbers 0–255."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float64)
        height, width = self.preprocessing.size
        rows, columns = pixels.shape[2], pixels.shape[3]
        if self.preprocessing.fit == "crop":
            kept_rows = torch.sym_max(1, torch.sym_min(rows, (2 * columns * height + width) // (2 * width)))
            kept_columns = torch.sym_max(1, torch.sym_min(columns, (2 * rows * width + height) // (2 * height)))
            top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
            pixels = pixels.narrow(2, top, kept_rows).narrow(3, left, kept_columns)
            pixels = self._resized(pixels, kept_rows, kept_columns, height, width)
        elif self.preprocessing.fit == "pad":
            inner_rows = torch.sym_max(1, torch.sym_min(height, (2 * rows * width + columns) // (2 * columns)))
            inner_columns = torch.sym_max(1, torch.sym_min(width, (2 * columns * height + rows) // (2 * rows)))
            pixels = self._resized(pixels, rows, columns, inner_rows, inner_columns)
            top, left = (height - inner_rows) // 2, (width - inner_columns) // 2
            around = [left, width - inner_columns - left, top, height - inner_rows - top]
            pixels = F.pad(pixels, around, value=float(int(self.preprocessing.pad_value)))
        else:
            pixels = self._resized(pixels, rows, columns, height, width)
        return pixels.to(torch.float32)

    def _resized(self, pixels: Tensor, rows: Any, columns: Any, height: Any, width: Any) -> Tensor:
        """Across first, then down, as Pillow does; each pass rounds to whole numbers 0–255."""
        kind = self.preprocessing.resample
        across = resample_weights(columns, width, kind, pixels.device)
        pixels = _rounded(pixels @ across.T)
        down = resample_weights(rows, height, kind, pixels.device)
        return _rounded(down @ pixels)


def resample_weights(size: Any, target: Any, kind: str, device: torch.device | None = None) -> Tensor:
    """Pillow's weights of one axis as a matrix, float64 ``(target, size)``, in units of 2⁻²² as Pillow holds them.

    Enlarging interpolates; reducing widens the filter by the scale, so that every pixel counts (antialiasing).

    Args:
        size: pixels there are.
        target: pixels to make.
        kind: ``"nearest"``, ``"bilinear"`` or ``"bicubic"`` (a = −0.5).
        device: where to make the matrix.
    """
    places = torch.arange(size, dtype=torch.float64, device=device)[None, :]
    targets = torch.arange(target, dtype=torch.float64, device=device)[:, None]
    # counted in float64: a ratio of sizes would become float32 in an exported graph
    scale = (places[:, -1:] + 1.0) / (targets[-1:] + 1.0)
    if kind == "nearest":
        # Pillow steps from place to place, and its rounding adds up
        steps = torch.cat([scale * 0.5, scale.expand(target, 1)[1:]])
        chosen = torch.cumsum(steps, 0).floor().clamp(max=size - 1)
        nearest: Tensor = (places == chosen).to(torch.float64)
        return nearest
    centres = (targets + 0.5) * scale
    stretch = scale.clamp(min=1.0)
    support = _SUPPORT[kind] * stretch
    # Pillow's int() cuts towards zero, which for what is clipped at 0 is the floor
    first = (centres - support + 0.5).floor().clamp(min=0)
    last = (centres + support + 0.5).floor()
    weights = _filter((places - centres + 0.5) / stretch, kind)
    weights = torch.where((places >= first) & (places < last), weights, torch.zeros_like(weights))
    weights = weights / weights.sum(1, keepdim=True)
    # rounded half away from zero
    fixed: Tensor = torch.sign(weights) * (weights.abs() * _FIXED_POINT + 0.5).floor() / _FIXED_POINT
    return fixed


def _filter(distance: Tensor, kind: str) -> Tensor:
    d = distance.abs()
    if kind == "bilinear":
        return (1.0 - d).clamp(min=0.0)
    near = ((1.5 * d - 2.5) * d) * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return torch.where(d < 1.0, near, torch.where(d < 2.0, far, torch.zeros_like(d)))


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0.0, 255.0)
