"""Batches cut inside the process from resident samples: no worker processes, no per-sample Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from convlens.data import Dataset
from convlens.data.augment import Augmenter

__all__ = ["BatchSource", "epoch_order"]

_CHUNK_BYTES = 2 * 2**20
"""Float bytes gathered and normalised at once: few calls, and the result stays in the L2 cache until used."""


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of the samples in an epoch, int64 ``[samples]``; a function of seed and epoch only."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(mixed[0]) << 32 | int(mixed[1]))
    return torch.randperm(samples, generator=generator)


class BatchSource:
    """Parts of a data set as batches ready for the network.

    Args:
        dataset: where the samples come from.
        splits: which parts, such as ``("train",)``; several are joined.
        device: where the batches are wanted; samples that fit stay there as uint8.
        channels_last: give pictures in the layout that the network computes in.
        augmenter: changes the samples of training batches; None leaves them as they are.
    """

    def __init__(
        self,
        dataset: Dataset,
        splits: Sequence[str],
        device: torch.device,
        channels_last: bool = False,
        augmenter: Augmenter | None = None,
    ) -> None:
        parts = [dataset.tensors(split) for split in splits]
        self.inputs = _joined([inputs for inputs, _ in parts]).to(device)
        self.labels = _joined([labels for _, labels in parts]).to(device)
        self.classes = dataset.num_classes
        self.multilabel = dataset.multilabel
        self._augmenter = augmenter
        gain, offset = dataset.preprocessing.coefficients()
        per_channel = (1, -1) + (1,) * (self.inputs.dim() - 2)
        self._gain = torch.from_numpy(gain).to(device).view(per_channel)
        self._offset = torch.from_numpy(offset).to(device).view(per_channel)
        self._layout = torch.channels_last if channels_last else None

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Number of batches in an epoch. A last batch of one sample is left out: batch-norm cannot use it."""
        full, rest = divmod(len(self), batch_size)
        return full + (rest > 1 or not full)

    def shuffled(self, batch_size: int, seed: int, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a training epoch, from batch number ``first`` on."""
        order = epoch_order(len(self), seed, epoch).to(self.labels.device)
        end = min(len(self), self.steps(batch_size) * batch_size)
        for begin, stop in self._chunks(first * batch_size, end, batch_size):
            chosen = order[begin:stop]
            inputs, labels = self._cut(chosen, epoch)
            yield from zip(inputs.split(batch_size), labels.split(batch_size), strict=True)

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in their own order, for evaluation."""
        for begin in range(0, len(self), batch_size):
            yield (
                self._normalised(self.inputs[begin : begin + batch_size]),
                self.labels[begin : begin + batch_size],
            )

    def _chunks(self, begin: int, end: int, batch_size: int) -> Iterator[tuple[int, int]]:
        batch_bytes = 4 * batch_size * max(1, self.inputs[0].numel() if len(self) else 1)
        length = batch_size * max(1, _CHUNK_BYTES // batch_bytes)
        for start in range(begin, end, length):
            yield start, min(start + length, end)

    def _cut(self, chosen: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        if self._augmenter is None:
            return self._normalised(self.inputs.index_select(0, chosen)), self.labels.index_select(0, chosen)
        inputs, labels = self._augmenter.batch(self.inputs, self.labels, chosen, epoch)
        return inputs if self._layout is None else inputs.contiguous(memory_format=self._layout), labels

    def _normalised(self, stored: Tensor) -> Tensor:
        values = torch.addcmul(self._offset, stored.to(torch.float32), self._gain)
        return values if self._layout is None else values.contiguous(memory_format=self._layout)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
