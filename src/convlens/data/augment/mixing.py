"""Two samples in one, with targets in the same shares: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from convlens.data.augment.draws import Draws
from convlens.data.augment.values import box_masks, boxes
from convlens.data.augmentation import Augmentation
from convlens.data.preprocessing import Array

__all__ = ["mixed", "partners"]


def partners(draws: Draws, samples: int) -> Array:
    """The sample that each one is mixed with, from the whole training part (not the batch), int64 ``[N]``."""
    return draws.whole("partner", 0, samples - 1)


def mixed(
    values: Tensor, other: Tensor, targets: Tensor, other_targets: Tensor, choice: Augmentation, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Mixtures ``[N, C, *size]`` and their targets float32 ``[N, classes]``.

    Args:
        values: normalised samples.
        other: normalised partners.
        targets: float32 ``[N, classes]``, one-hot or multi-label.
        other_targets: of the partners.
        choice: the two alphas; with both above 0 each is used for half of the samples.
        draws: random numbers.
    """
    paste = np.full(len(values), bool(choice.cutmix))
    if choice.mixup and choice.cutmix:
        paste = draws.chance("which mixing", 0.5)
    alpha = np.where(paste, choice.cutmix or 1.0, choice.mixup or 1.0)
    share = _beta(alpha, draws.uniform("share"))
    sides = tuple(values.shape[2:])
    first, last = boxes(draws, "paste", np.where(paste, 1 - share, 0.0), sides)
    pasted = np.prod(last - first, axis=1) / np.prod(sides)
    share = np.where(paste, 1 - pasted, share)
    own = torch.from_numpy(share.astype(np.float32)).to(values.device)
    weight = torch.from_numpy(np.where(paste, 1.0, share).astype(np.float32)).to(values.device)
    blended = torch.lerp(other, values, weight.view(-1, *[1] * len(sides), 1))
    inside = box_masks(first, last, sides, values.device) & torch.from_numpy(paste).to(values.device).view(
        -1, *[1] * (len(sides) + 1)
    )
    return torch.where(inside, other, blended), torch.lerp(other_targets, targets, own[:, None])


def as_targets(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 ``[N]`` or multi-label ``[N, classes]`` as float32 ``[N, classes]``."""
    return (functional.one_hot(labels, classes) if labels.dim() == 1 else labels).to(torch.float32)


def _beta(alpha: Array, unit: Array) -> Array:
    """Beta(alpha, alpha) from even numbers, by its inverse distribution function."""
    if (alpha == 1).all():
        return unit
    from scipy.special import betaincinv

    values: Array = betaincinv(alpha, alpha, unit)
    return values
