"""Augmentation on whole batches inside the training step: no worker processes, no per-sample Python.

::

    augmenter = Augmenter(augmentation, dataset.preprocessing, classes=dataset.num_classes, seed=recipe.seed)
    x, y = augmenter.batch(inputs, labels, chosen, epoch)   # resident tensors, int64 [N] sample numbers, epoch
    x = augmenter.change(stored, chosen, epoch)             # the same without mixing, for samples cut elsewhere

`x` is normalised float32; `y` is int64 labels, or float32 ``[N, classes]`` shares when `Augmentation.mixes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convlens.data.augment.draws import Draws
from convlens.data.augment.mixing import as_targets, mixed, partners
from convlens.data.augment.space import moved, sampled
from convlens.data.augment.values import erased, mutated, recoloured, with_noise
from convlens.data.augmentation import Augmentation, default_augmentation
from convlens.data.preprocessing import Preprocessing

__all__ = ["Augmentation", "Augmenter", "Draws", "default_augmentation"]


class Augmenter:
    """Applies an `Augmentation`; the same sample in the same epoch always becomes the same.

    Args:
        augmentation: what to change.
        preprocessing: with the statistics of the training part.
        classes: number of classes, for mixed targets.
        seed: of the run.
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing, classes: int, seed: int) -> None:
        self.augmentation = augmentation
        self.preprocessing = preprocessing
        self.classes = classes
        self.seed = seed

    def batch(self, inputs: Tensor, labels: Tensor, chosen: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Cut, change, normalise and mix one batch.

        Args:
            inputs: the whole training part in storage form ``[samples, C, *size]``, resident.
            labels: int64 ``[samples]`` or multi-label ``[samples, classes]``.
            chosen: int64 ``[N]`` sample numbers.
            epoch: number of the epoch.
        """
        values = self.change(inputs.index_select(0, chosen), chosen, epoch)
        own = labels.index_select(0, chosen)
        if not self.augmentation.mixes:
            return values, own
        others = self.partners(chosen, epoch, len(inputs))
        other = inputs.index_select(0, others)
        return self.mix(values, own, other, labels.index_select(0, others), chosen, others, epoch)

    def partners(self, chosen: Tensor, epoch: int, samples: int) -> Tensor:
        """Which of all `samples` each chosen one is mixed with, int64 ``[N]``; they need not be in the batch."""
        draws = Draws(self.seed, epoch, chosen.cpu().numpy())
        return torch.from_numpy(partners(draws, samples)).to(chosen.device)

    def mix(
        self,
        values: Tensor,
        labels: Tensor,
        other_stored: Tensor,
        other_labels: Tensor,
        chosen: Tensor,
        others: Tensor,
        epoch: int,
    ) -> tuple[Tensor, Tensor]:
        """Changed samples mixed with their partners; mixtures, and their targets float32 ``[N, classes]``.

        Args:
            values: changed and normalised samples, from `change`.
            labels: of the samples.
            other_stored: the partners in storage form.
            other_labels: of the partners.
            chosen: int64 ``[N]`` sample numbers.
            others: int64 ``[N]`` sample numbers of the partners, from `partners`.
            epoch: number of the epoch.
        """
        draws = Draws(self.seed, epoch, chosen.cpu().numpy())
        other = self.change(other_stored, others, epoch)
        targets, other_targets = as_targets(labels, self.classes), as_targets(other_labels, self.classes)
        return mixed(values, other, targets, other_targets, self.augmentation, draws)

    def change(self, stored: Tensor, numbers: Tensor, epoch: int) -> Tensor:
        """Samples in storage form ``[N, C, *size]`` changed and normalised, float32; mixing left out.

        Args:
            stored: the samples.
            numbers: int64 ``[N]``, which samples they are.
            epoch: number of the epoch.
        """
        choice, kind = self.augmentation, self.preprocessing.kind
        if choice.changes_nothing or not len(stored):
            return self.preprocessing.normalise(stored)
        draws = Draws(self.seed, epoch, numbers.cpu().numpy())
        if kind == "sequence":
            stored = self._other_strand(stored, draws)
            choice = choice.model_copy(update={"mirror": False})
        if choice.mutate and kind == "sequence":
            stored = mutated(stored, choice, draws)
        stored = (sampled if choice.resamples else moved)(stored, choice, draws)
        if choice.brightness or choice.contrast or choice.saturation or choice.hue:
            values = recoloured(stored, self.preprocessing, choice, draws)
        else:
            values = self.preprocessing.normalise(stored)
        if choice.noise:
            values = with_noise(values, choice, draws)
        return erased(values, choice, draws) if choice.erase else values

    def _other_strand(self, stored: Tensor, draws: Draws) -> Tensor:
        """DNA read on its other strand: order reversed, letters complemented (A–T, C–G mirror in ACGT)."""
        if not self.augmentation.mirror:
            return stored
        which = torch.from_numpy(draws.chance("mirror", 0.5)).to(stored.device)
        return torch.where(which[:, None, None], stored.flip(1, 2), stored)
