"""Classes of unequal size: sampling meets them equally, weights make them count alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from convlens import data
from convlens.errors import RecipeError
from convlens.training.batches import BatchSource
from convlens.training.evaluation import loss_of


def uneven() -> data.Dataset:
    dataset = data.open("digits")
    train = dataset.splits["train"]
    kept = train[(dataset.labels[train] == 1) | (np.arange(len(train)) % 20 == 0)]
    return replace(dataset, splits={**dataset.splits, "train": kept})


def test_sampling_meets_every_class_equally() -> None:
    source = BatchSource(uneven(), ("train",), torch.device("cpu"), balance="sampling")
    labels = torch.cat([labels for _, labels in source.shuffled(16, 0, 0)])
    counts = torch.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 2
    again = torch.cat([labels for _, labels in source.shuffled(16, 0, 0, first=2)])
    assert torch.equal(labels[32:], again)


def test_weights_make_classes_count_alike() -> None:
    dataset = uneven()
    source = BatchSource(dataset, ("train",), torch.device("cpu"), balance="weights")
    assert source.class_weights is not None
    shares = source.class_weights * torch.from_numpy(dataset.class_counts("train"))
    torch.testing.assert_close(shares, shares.mean().expand(10))
    logits, labels = torch.randn(6, 10), torch.tensor([0, 1, 2, 1, 1, 5])
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = source.class_weights[labels]
    torch.testing.assert_close(
        loss_of(logits, labels, class_weights=source.class_weights), (each * weights).sum() / weights.sum()
    )


def test_sampling_of_several_labels_is_refused() -> None:
    dataset = uneven()
    several = replace(dataset, labels=np.eye(10, dtype=np.uint8)[dataset.labels])
    with pytest.raises(RecipeError, match="needs one label per sample"):
        BatchSource(several, ("train",), torch.device("cpu"), balance="sampling")
