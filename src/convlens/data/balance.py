"""Classes of unequal size: weights for the loss, or an order that meets every class equally often."""

from __future__ import annotations

import numpy as np

from convlens.data.augment.draws import Draws
from convlens.data.dataset import Dataset, Indices
from convlens.data.preprocessing import Array

__all__ = ["balanced_order", "class_weights"]


def class_weights(dataset: Dataset, strength: float = 1.0) -> Array:
    """Weight of each class in the loss, float32 ``[classes]``, with mean 1 over the training samples.

    Args:
        dataset: its training part is counted.
        strength: 1 makes all classes count alike, 0 all samples; 0.5 lies between (inverse square root).
    """
    counts = dataset.class_counts("train").astype(np.float64)
    raw = np.where(counts > 0, np.maximum(counts, 1) ** -strength, 0.0)
    total = (raw * counts).sum()
    weights: Array = (raw * counts.sum() / total if total else np.ones_like(raw)).astype(np.float32)
    return weights


def balanced_order(labels: Array, seed: int, epoch: int) -> Indices:
    """Sample numbers of one epoch, int64 ``[N]``, in which every class comes equally often.

    Small classes are gone through several times, large ones in part; over the epochs every sample is met. The
    numbers are a function of seed and epoch alone.

    Args:
        labels: int64 ``[N]`` of the training part.
        seed: of the run.
        epoch: number of the epoch.
    """
    present, codes = np.unique(labels, return_inverse=True)
    members = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[members], np.arange(len(present)))
    sizes = np.bincount(codes)
    places = np.arange(len(labels))
    turn, of_class = np.divmod(places, len(present))
    turn = turn + epoch * -(-len(labels) // len(present))  # go on where the last epoch ended
    lap, step = np.divmod(turn, sizes[of_class])
    chosen = np.empty(len(labels), np.int64)
    for number in range(len(present)):
        here = of_class == number
        for current in np.unique(lap[here]).tolist():
            in_lap = here & (lap == current)
            shuffled = np.argsort(Draws(seed, current, starts[number] + np.arange(sizes[number])).uniform("lap"))
            chosen[in_lap] = members[starts[number] + shuffled[step[in_lap]]]
    return chosen[np.argsort(Draws(seed, epoch, places).uniform("order"), kind="stable")]
