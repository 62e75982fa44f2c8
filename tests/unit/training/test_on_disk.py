"""Samples that are too many for memory give the same batches, read ahead from disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convlens import data
from convlens.data.augment import Augmentation, Augmenter
from convlens.training import batches
from convlens.training.batches import BatchSource

CHOICES = [None, Augmentation(shift=0.1), Augmentation(rotate=10, mixup=0.4)]


@pytest.mark.parametrize("choice", CHOICES, ids=["plain", "shift", "mixed"])
def test_batches_from_disk_are_those_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: Augmentation | None
) -> None:
    dataset = data.open("digits")
    np.asarray(dataset.inputs).tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", np.uint8, "r", shape=dataset.inputs.shape)
    dataset = replace(dataset, inputs=mapped)
    augmenter = None if choice is None else Augmenter(choice, dataset.preprocessing, 10, seed=1)
    device = torch.device("cpu")
    resident = BatchSource(dataset, ("train",), device, augmenter=augmenter)
    monkeypatch.setattr(batches, "fits_in_memory", lambda nbytes: False)
    on_disk = BatchSource(dataset, ("train",), device, augmenter=augmenter)
    assert not hasattr(on_disk, "inputs")
    for one, other in zip(resident.shuffled(32, 5, 2, first=3), on_disk.shuffled(32, 5, 2, first=3), strict=True):
        torch.testing.assert_close(other[0], one[0], rtol=0, atol=0)
        torch.testing.assert_close(other[1], one[1], rtol=0, atol=0)
    for one, other in zip(resident.ordered(100), on_disk.ordered(100), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
