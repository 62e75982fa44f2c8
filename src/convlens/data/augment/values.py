"""What values become: colour as one matrix per sample within the normalisation, noise, letters, blank boxes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convlens.data.augment.draws import Draws
from convlens.data.augmentation import Augmentation
from convlens.data.preprocessing import Array, Preprocessing

__all__ = ["boxes", "erased", "mutated", "recoloured", "with_noise"]

_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
_TO_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def recoloured(stored: Tensor, preprocessing: Preprocessing, choice: Augmentation, draws: Draws) -> Tensor:
    """Normalised float32 ``[N, C, *size]`` with brightness, contrast, saturation and hue changed on the way.

    Contrast pivots on the mean of the training data. With x the stored value scaled to 0–1, the change is
    ``M x + b`` per sample; the normalisation's gain and offset are multiplied into M and b, so that the pixels are
    touched once.
    """
    mean = np.asarray(preprocessing.mean or (0.0,) * preprocessing.channels)
    gain, offset = (values.astype(np.float64) for values in preprocessing.coefficients())
    contrast = 1 + draws.uniform("contrast", -choice.contrast, choice.contrast)
    brightness = draws.uniform("brightness", -choice.brightness, choice.brightness)
    shift = mean[None, :] * (1 - contrast)[:, None] + brightness[:, None]
    values = stored.to(torch.float32)
    if preprocessing.channels == 3 and preprocessing.kind == "image" and (choice.saturation or choice.hue):
        matrix = contrast[:, None, None] * _colour_matrices(choice, draws)
        matrix = gain[None, :, None] * matrix  # gain holds the scale to 0–1 divided by the deviation
        shift = shift * (gain / preprocessing.scale)[None, :] + offset[None, :]
        left, right = _on(matrix, values), _on(shift[:, :, None], values)
        return torch.baddbmm(right, left, values.flatten(2)).view_as(values)
    per_sample = contrast[:, None] * gain[None, :]
    shift = shift * (gain / preprocessing.scale)[None, :] + offset[None, :]
    wide = (*per_sample.shape, *[1] * (values.dim() - 2))
    return torch.addcmul(_on(shift, values).view(wide), values, _on(per_sample, values).view(wide))


def _on(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device)


def _colour_matrices(choice: Augmentation, draws: Draws) -> Array:
    """``[N, 3, 3]`` on RGB: colour against grey, then turned in the plane of equal luma."""
    amount = 1 + draws.uniform("saturation", -choice.saturation, choice.saturation)
    matrix: Array = amount[:, None, None] * np.eye(3) + (1 - amount)[:, None, None] * np.tile(_GREY, (3, 1))
    if choice.hue:
        angle = np.radians(draws.uniform("hue", -choice.hue, choice.hue))
        turn = np.zeros((len(angle), 3, 3))
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
        turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
        matrix = np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ @ matrix
    return matrix


def with_noise(values: Tensor, choice: Augmentation, draws: Draws) -> Tensor:
    """Normalised values with Gaussian noise of `noise` deviations."""
    noise = draws.normals("noise", values[0].numel()) if len(values) else np.zeros((0, 1), np.float32)
    return values.add_(torch.from_numpy(noise).to(values.device).view_as(values), alpha=choice.noise)


def mutated(stored: Tensor, choice: Augmentation, draws: Draws) -> Tensor:
    """One-hot ``[N, letters, length]`` with a share of the letters replaced by one of the others.

    Places without a letter (padding, unknown) stay empty.
    """
    letters, length = stored.shape[1:]
    replaced = torch.from_numpy(draws.uniforms("mutate", length) < choice.mutate).to(stored.device)
    turns = 1 + (draws.uniforms("letter", length) * (letters - 1)).astype(np.int64)
    order = (torch.arange(letters)[None, :, None] + torch.from_numpy(turns)[:, None, :]) % letters
    return torch.where(replaced[:, None, :], stored.gather(1, order.to(stored.device)), stored)


def boxes(draws: Draws, purpose: str, area: Array, sides: tuple[int, ...]) -> tuple[Array, Array]:
    """First and last+1 pixel ``[N, axes]`` of boxes that cover `area` ``[N]`` of the input (less at its edges)."""
    axes = len(sides)
    lengths = np.repeat(area[:, None] ** (1 / axes), axes, axis=1)
    if axes > 1:
        aspect = np.exp(draws.uniform(f"{purpose} shape", -0.5, 0.5))
        lengths[:, 0] *= aspect
        lengths[:, 1] /= aspect
    size = np.asarray(sides, np.float64)
    middle = np.stack([draws.uniform(f"{purpose} {axis}", 0, sides[axis]) for axis in range(axes)], axis=1)
    first = np.clip(np.round(middle - lengths * size / 2), 0, size).astype(np.int64)
    last = np.clip(np.round(middle + lengths * size / 2), 0, size).astype(np.int64)
    return first, last


def box_masks(first: Array, last: Array, sides: tuple[int, ...], device: torch.device) -> Tensor:
    """Bool ``[N, 1, *size]``: inside the box."""
    inside = torch.ones(1, dtype=torch.bool, device=device)
    for axis, side in enumerate(sides):
        places = np.arange(side)[None, :]
        along = (places >= first[:, axis : axis + 1]) & (places < last[:, axis : axis + 1])
        shape = [len(first), 1] + [1] * len(sides)
        shape[2 + axis] = side
        inside = inside & torch.from_numpy(along).to(device).view(shape)
    return inside


def erased(values: Tensor, choice: Augmentation, draws: Draws) -> Tensor:
    """Normalised values with a random box set to 0, the mean of the data (Zhong et al. 2017)."""
    sides = tuple(values.shape[2:])
    area = draws.uniform("erase area", 0.02, max(0.02, choice.erase_area))
    first, last = boxes(draws, "erase", area, sides)
    last = np.where(draws.chance("erase", choice.erase)[:, None], last, first)
    return values.masked_fill_(box_masks(first, last, sides, values.device), 0.0)
