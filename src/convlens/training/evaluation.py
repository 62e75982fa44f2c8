"""Loss and accuracy of a network on one part of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from convlens.training.batches import BatchSource
from convlens.training.team import ALONE, Team

__all__ = ["EVALUATION_BATCH", "Scores", "count_correct", "loss_of", "score"]

EVALUATION_BATCH = 256
"""Samples computed at a time; large enough for full speed, small enough for the cache."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Result of one evaluation.

    Attributes:
        samples: how many were evaluated.
        loss: mean cross-entropy in nats, without label smoothing.
        accuracy: 0–1; for multi-label data the part of samples with every label right.
    """

    samples: int
    loss: float
    accuracy: float


def loss_of(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    reduction: str = "mean",
    multilabel: bool = False,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of ``[N, classes]`` logits, in nats.

    Args:
        logits: scores.
        labels: int64 ``[N]``; for mixed samples shares of the classes, float ``[N, classes]``; for multi-label
            data 0 and 1 (or shares) ``[N, classes]``, each class on its own.
        smoothing: part of the target spread evenly over all classes.
        reduction: ``"mean"`` or ``"sum"`` over samples.
        multilabel: whether each class stands on its own.
        class_weights: float32 ``[classes]``, or None where all count alike.
    """
    if not multilabel:
        return functional.cross_entropy(
            logits, labels, class_weights, reduction=reduction, label_smoothing=smoothing
        )
    targets = labels.to(logits.dtype) * (1 - smoothing) + 0.5 * smoothing
    per_class = functional.binary_cross_entropy_with_logits(logits, targets, class_weights, reduction="none")
    per_class = per_class.mean(dim=1)
    return per_class.mean() if reduction == "mean" else per_class.sum()


def count_correct(logits: Tensor, labels: Tensor, multilabel: bool = False) -> Tensor:
    """Number of samples whose label (every label, for multi-label data) is right; a tensor, so nothing waits.

    A mixed sample counts as right where its larger part is recognised.
    """
    if multilabel:
        return ((logits > 0) == (labels > 0.5)).all(dim=1).sum()
    return (logits.argmax(dim=1) == (labels if labels.dim() == 1 else labels.argmax(dim=1))).sum()


@torch.inference_mode()
def score(
    network: nn.Module, source: BatchSource, batch_size: int = EVALUATION_BATCH, team: Team = ALONE
) -> Scores:
    """Evaluate ``network`` (put into evaluation mode, and back) on every sample of ``source``.

    The processes of a team take turns with the batches; each gets the scores of all.
    """
    was_training = network.training
    network.eval()
    loss = torch.zeros((), dtype=torch.float64, device=source.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=source.labels.device)
    for number, (inputs, labels) in enumerate(source.ordered(batch_size)):
        if number % team.world != team.rank:
            continue
        logits = network(inputs).float()
        loss += loss_of(logits, labels, reduction="sum", multilabel=source.multilabel)
        correct += count_correct(logits, labels, source.multilabel)
    network.train(was_training)
    team.total(loss)
    team.total(correct)
    samples = len(source)
    if not samples:
        return Scores(0, float("nan"), float("nan"))
    return Scores(samples, float(loss) / samples, int(correct) / samples)
