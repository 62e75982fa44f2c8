"""What a net gets wrong: confusion, the pairs confused most, the worst examples, and how sure it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convlens.errors import ShapeError

__all__ = ["CalibrationBin", "ConfusedPair", "Mistake", "Mistakes", "mistakes"]


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """``count`` samples of class ``truth`` were called ``answer``: ``share`` of that class."""

    truth: int
    answer: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """One sample the net got wrong: how sure it was of its answer, and how probable it held the truth."""

    sample: int
    truth: int
    answer: int
    confidence: float
    truth_probability: float


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Samples whose confidence lay in ``[low, high)``: their mean confidence and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Everything about the answers on one labelled set.

    Attributes:
        count, accuracy: samples, and the share answered right.
        confusion: int64 ``(classes, classes)``, row = truth, column = answer.
        per_class: recall of each class; NaN for classes without samples.
        pairs: confused pairs, most frequent first.
        worst: mistakes, most confident first.
        calibration: bins of confidence; empty bins are left out.
        calibration_error: mean gap between confidence and accuracy, weighted by bin (Guo et al., ICML 2017).
    """

    count: int
    accuracy: float
    confusion: npt.NDArray[np.int64]
    per_class: npt.NDArray[np.float64]
    pairs: tuple[ConfusedPair, ...]
    worst: tuple[Mistake, ...]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float


def mistakes(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, worst: int = 24, bins: int = 10
) -> Mistakes:
    """Judge ``probabilities`` ``(N, classes)`` against ``labels`` ``(N,)``.

    Raises:
        ShapeError: the two do not fit.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ShapeError("labels", f"one label for each of {len(probabilities)} rows", labels.shape)
    classes = probabilities.shape[1]
    answers = probabilities.argmax(1)
    confidence = probabilities.max(1)
    right = answers == labels
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, answers), 1)
    totals = confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_class = np.where(totals > 0, np.diag(confusion) / totals, np.nan)
    calibration = _calibration(confidence, right, bins)
    wrong = np.flatnonzero(~right)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:worst]
    return Mistakes(
        count=len(labels),
        accuracy=float(right.mean()) if len(labels) else float("nan"),
        confusion=confusion,
        per_class=per_class,
        pairs=_pairs(confusion, totals),
        worst=tuple(
            Mistake(
                int(i), int(labels[i]), int(answers[i]), float(confidence[i]), float(probabilities[i, labels[i]])
            )
            for i in wrong
        ),
        calibration=calibration,
        calibration_error=sum(b.count * abs(b.confidence - b.accuracy) for b in calibration) / max(1, len(labels)),
    )


def _pairs(confusion: npt.NDArray[np.int64], totals: npt.NDArray[np.int64]) -> tuple[ConfusedPair, ...]:
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    truths, answers = np.nonzero(off)
    found = [
        ConfusedPair(int(t), int(a), int(off[t, a]), float(off[t, a] / totals[t]))
        for t, a in zip(truths, answers, strict=True)
    ]
    return tuple(sorted(found, key=lambda pair: (-pair.count, pair.truth, pair.answer)))


def _calibration(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int
) -> tuple[CalibrationBin, ...]:
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        members = number == place
        if members.any():
            mean, share = float(confidence[members].mean()), float(right[members].mean())
            found.append(CalibrationBin(place / bins, (place + 1) / bins, int(members.sum()), mean, share))
    return tuple(found)
