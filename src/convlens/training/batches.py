"""Batches cut inside the process from resident samples: no worker processes, no per-sample Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from convlens.data import Dataset
from convlens.data.augment import Augmenter
from convlens.data.balance import balanced_order, class_weights
from convlens.data.reading import RowFile, fits_in_memory, read_ahead
from convlens.errors import RecipeError

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
        device: where the batches are wanted; samples that fit stay there as stored, others are read ahead
            from the cache on disk.
        channels_last: give pictures in the layout that the network computes in.
        augmenter: changes the samples of training batches; None leaves them as they are.
        balance: ``sampling`` meets every class equally often, ``weights`` sets `class_weights` for the loss.

    Raises:
        RecipeError: balanced sampling of samples with several labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        splits: Sequence[str],
        device: torch.device,
        channels_last: bool = False,
        augmenter: Augmenter | None = None,
        balance: str = "none",
    ) -> None:
        self._numbers = np.concatenate([dataset.indices(split) for split in splits])
        self.labels = torch.from_numpy(dataset.labels[self._numbers]).to(device)
        self._device = device
        self._sample_shape = dataset.inputs.shape[1:]
        wanted = len(self._numbers) * math.prod(self._sample_shape) * dataset.inputs.itemsize
        self._on_disk = None if fits_in_memory(wanted) else dataset.inputs
        if self._on_disk is None:
            self.inputs = _joined([dataset.tensors(split)[0] for split in splits]).to(device)
        self.least = 2  # batch norm cannot use a single sample
        self.classes = dataset.num_classes
        self.multilabel = dataset.multilabel
        self._augmenter = augmenter
        self._balanced = balance == "sampling"
        if self._balanced and dataset.multilabel:
            raise RecipeError(
                "balance: sampling needs one label per sample, these have several. Fix: use weights."
            )
        self.class_weights: Tensor | None = None
        if balance == "weights":
            self.class_weights = torch.from_numpy(class_weights(dataset)).to(device)
        gain, offset = dataset.preprocessing.coefficients()
        per_channel = (1, -1) + (1,) * (len(self._sample_shape) - 1)
        self._gain = torch.from_numpy(gain).to(device).view(per_channel)
        self._offset = torch.from_numpy(offset).to(device).view(per_channel)
        self._layout = torch.channels_last if channels_last else None

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Number of batches in an epoch; a last one of fewer than `least` samples is left out."""
        full, rest = divmod(len(self), batch_size)
        return full + (rest >= self.least or not full)

    def shuffled(
        self, batch_size: int, seed: int, epoch: int, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a training epoch, from batch number ``first`` on.

        Args:
            batch_size: samples in a batch, over all processes.
            seed: of the run.
            epoch: number of the epoch.
            first: batches that are left out at the start.
            share: ``(number, count)``: give only this of so many nearly equal parts of each batch.
        """
        if self._balanced:
            order = torch.from_numpy(balanced_order(self.labels.cpu().numpy(), seed, epoch)).to(self.labels.device)
        else:
            order = epoch_order(len(self), seed, epoch).to(self.labels.device)
        end = min(len(self), self.steps(batch_size) * batch_size)
        number, count = share
        chunks, sizes = [], []
        for begin, stop in self._chunks(first * batch_size, end, batch_size):
            batches = [batch.tensor_split(count)[number] for batch in order[begin:stop].split(batch_size)]
            chunks.append(torch.cat(batches))
            sizes.append([len(batch) for batch in batches])
        cut = (self._cut(chosen, epoch) for chosen in chunks)
        found = cut if self._on_disk is None else self._cut_from_disk(chunks, epoch)
        for (inputs, labels), lengths in zip(found, sizes, strict=True):
            yield from zip(inputs.split(lengths), labels.split(lengths), strict=True)

    def ordered(self, at_most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in their own order, for evaluation, in nearly equal batches of ``at_most`` samples.

        A short last batch would be a problem of its own to the planner.
        """
        batch_size = -(-len(self) // max(1, -(-len(self) // at_most)))
        if self._on_disk is not None:
            for begin, (_, rows) in enumerate(read_ahead(self._on_disk, self._numbers, batch_size)):
                stored = torch.from_numpy(rows).to(self._device)
                yield self._normalised(stored), self.labels[begin * batch_size : (begin + 1) * batch_size]
            return
        for begin in range(0, len(self), max(1, batch_size)):
            yield (
                self._normalised(self.inputs[begin : begin + batch_size]),
                self.labels[begin : begin + batch_size],
            )

    def _chunks(self, begin: int, end: int, batch_size: int) -> Iterator[tuple[int, int]]:
        batch_bytes = 4 * batch_size * max(1, math.prod(self._sample_shape))
        length = batch_size * max(1, _CHUNK_BYTES // batch_bytes)
        for start in range(begin, end, length):
            yield start, min(start + length, end)

    def _cut(self, chosen: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        if self._augmenter is None:
            return self._normalised(self.inputs.index_select(0, chosen)), self.labels.index_select(0, chosen)
        inputs, labels = self._augmenter.batch(self.inputs, self.labels, chosen, epoch)
        return inputs if self._layout is None else inputs.contiguous(memory_format=self._layout), labels

    def _cut_from_disk(self, chunks: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same as `_cut` from samples that are too many for memory, read before they are wanted."""
        if self._on_disk is None or not chunks:
            return
        order = self._numbers[torch.cat(chunks).cpu().numpy()]
        with RowFile(self._on_disk) as file:
            for chosen, (_, rows) in zip(chunks, read_ahead(self._on_disk, order, len(chunks[0])), strict=True):
                stored, labels = torch.from_numpy(rows).to(self._device), self.labels.index_select(0, chosen)
                if self._augmenter is None:
                    yield self._normalised(stored), labels
                    continue
                inputs = self._augmenter.change(stored, chosen, epoch)
                if self._augmenter.augmentation.mixes:
                    others = self._augmenter.partners(chosen, epoch, len(self))
                    other = torch.from_numpy(file.rows(self._numbers[others.cpu().numpy()])).to(self._device)
                    other_labels = self.labels.index_select(0, others)
                    inputs, labels = self._augmenter.mix(
                        inputs, labels, other, other_labels, chosen, others, epoch
                    )
                yield inputs if self._layout is None else inputs.contiguous(memory_format=self._layout), labels

    def _normalised(self, stored: Tensor) -> Tensor:
        values = stored.to(
            torch.float32, copy=True
        )  # and changed in place: fresh memory takes longer than the sums
        torch.addcmul(self._offset, values, self._gain, out=values)
        return values if self._layout is None else values.contiguous(memory_format=self._layout)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
