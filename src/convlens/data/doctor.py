"""What is wrong with a data set, and the edit that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from convlens.data.dataset import SPLITS, Dataset, Indices
from convlens.data.likeness import near_pairs
from convlens.data.preprocessing import Array
from convlens.data.splits import content_numbers

__all__ = ["DataFinding", "examine"]

_SHOWN = 10
_UNEVEN_RATIO = 3.0
_FEW_SAMPLES = 10
_CUT_LIMIT = 0.25
_DRIFT_P = 1e-4
_DRIFT_EFFECT = 0.15


class DataFinding(BaseModel):
    """One thing found.

    Attributes:
        severity: ``error`` makes results wrong, ``warning`` makes them worse, ``note`` is good to know.
        what: a short name of the kind of finding.
        detail: one sentence with the numbers.
        fix: the edit that mends it.
        items: the samples concerned (at most 10).
        count: how many there are.
    """

    model_config = ConfigDict(frozen=True)

    severity: Literal["error", "warning", "note"]
    what: str
    detail: str
    fix: str
    items: tuple[str, ...] = ()
    count: int = 0


def examine(dataset: Dataset) -> list[DataFinding]:
    """Every finding, the gravest first."""
    checks = (
        _bad_files,
        _contradictions,
        _crossing_duplicates,
        _near_duplicates,
        _leaking_groups,
        _missing_classes,
        _few_samples,
        _imbalance,
        _blank,
        _drift,
        _cut_away,
        _repeats,
    )
    found = [finding for check in checks for finding in check(dataset)]
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: rank[finding.severity])


def _sides(dataset: Dataset) -> Indices:
    """Part of each sample: 0 train, 1 dev, 2 test."""
    side = np.full(len(dataset), -1, np.int64)
    for number, name in enumerate(SPLITS):
        side[dataset.splits[name]] = number
    return side


def _bad_files(dataset: Dataset) -> Iterator[DataFinding]:
    skipped = dataset.report.skipped
    if skipped:
        yield DataFinding(
            severity="warning",
            what="files that cannot be decoded",
            detail=f"{len(skipped)} of {dataset.report.found} files were left out; first: {skipped[0].reason}.",
            fix="copy them again from their source, or delete them",
            items=tuple(f"{item.path}: {item.reason}" for item in skipped[:_SHOWN]),
            count=len(skipped),
        )


def _same_content(dataset: Dataset) -> Iterator[Indices]:
    """Sample numbers of each content that occurs more than once."""
    numbers = content_numbers(dataset.digests)
    order = np.argsort(numbers, kind="stable")
    borders = np.flatnonzero(np.diff(numbers[order])) + 1
    for members in np.split(order, borders):
        if len(members) > 1:
            yield members


def _contradictions(dataset: Dataset) -> Iterator[DataFinding]:
    labels = dataset.labels
    groups = [members for members in _same_content(dataset) if len(np.unique(labels[members], axis=0)) > 1]
    if groups:
        items = tuple(" = ".join(dataset.names[n] for n in members[:3].tolist()) for members in groups[:_SHOWN])
        yield DataFinding(
            severity="error",
            what="one content under several labels",
            detail=f"{len(groups)} contents occur with different labels; no classifier can get all of them right.",
            fix="look at each and delete the copy in the wrong class",
            items=items,
            count=len(groups),
        )


def _crossing_duplicates(dataset: Dataset) -> Iterator[DataFinding]:
    side = _sides(dataset)
    groups = [members for members in _same_content(dataset) if len(set(side[members].tolist())) > 1]
    if groups:
        yield DataFinding(
            severity="error",
            what="exact duplicates across the split",
            detail=f"{len(groups)} contents lie in more than one part, so part of the test was trained on.",
            fix="delete the copies in train, or give one folder without parts and let convlens split by content",
            items=tuple(_joined(dataset, side, members) for members in groups[:_SHOWN]),
            count=len(groups),
        )


def _near_duplicates(dataset: Dataset) -> Iterator[DataFinding]:
    if dataset.kind != "image":
        return
    side = _sides(dataset)
    numbers = content_numbers(dataset.digests)
    pairs = [
        (first, second)
        for first, second in near_pairs(dataset.inputs, side)
        if numbers[first] != numbers[second] and side[first] != side[second]
    ]
    if pairs:
        yield DataFinding(
            severity="warning",
            what="near duplicates across the split",
            detail=f"{len(pairs)} pairs of almost equal pictures lie in different parts, which flatters the test.",
            fix="delete one of each pair, or put both in one group of a manifest (columns path,label,group)",
            items=tuple(_joined(dataset, side, np.array(pair)) for pair in pairs[:_SHOWN]),
            count=len(pairs),
        )


def _joined(dataset: Dataset, side: Indices, members: Indices) -> str:
    return " = ".join(f"{SPLITS[side[n]]}:{dataset.names[n]}" for n in members[:3].tolist())


def _leaking_groups(dataset: Dataset) -> Iterator[DataFinding]:
    if dataset.groups is None:
        return
    side = _sides(dataset)
    leaking = [
        group for group in np.unique(dataset.groups) if len(set(side[dataset.groups == group].tolist())) > 1
    ]
    if leaking:
        examples = [np.flatnonzero(dataset.groups == group) for group in leaking[:_SHOWN]]
        yield DataFinding(
            severity="error",
            what="groups on both sides of the split",
            detail=f"{len(leaking)} groups have samples in more than one part, so the test measures recognition "
            "of the group as well.",
            fix="leave the column split out of the manifest, and convlens keeps groups together",
            items=tuple(_joined(dataset, side, members) for members in examples),
            count=len(leaking),
        )


def _missing_classes(dataset: Dataset) -> Iterator[DataFinding]:
    for part in SPLITS:
        counts = dataset.class_counts(part)
        absent = [dataset.class_names[n] for n in np.flatnonzero(counts == 0).tolist()]
        if absent and len(dataset.splits[part]):
            yield DataFinding(
                severity="error" if part == "train" else "warning",
                what=f"classes without {part} samples",
                detail=f"{len(absent)} of {dataset.num_classes} classes have no sample in {part}.",
                fix=f"add samples of them to {part}",
                items=tuple(absent[:_SHOWN]),
                count=len(absent),
            )


def _few_samples(dataset: Dataset) -> Iterator[DataFinding]:
    counts = dataset.class_counts("train")
    few = np.flatnonzero((counts > 0) & (counts < _FEW_SAMPLES)).tolist()
    if few:
        yield DataFinding(
            severity="warning",
            what="classes with few samples",
            detail=f"{len(few)} classes have fewer than {_FEW_SAMPLES} training samples.",
            fix="add samples, or start from a trained net",
            items=tuple(f"{dataset.class_names[n]}: {counts[n]}" for n in few[:_SHOWN]),
            count=len(few),
        )


def _imbalance(dataset: Dataset) -> Iterator[DataFinding]:
    counts = dataset.class_counts("train")
    present = counts[counts > 0]
    if not len(present) or present.max() / present.min() < _UNEVEN_RATIO:
        return
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    share = counts[most] / counts.sum()
    large, small = dataset.class_names[most], dataset.class_names[least]
    yield DataFinding(
        severity="warning",
        what="classes of unequal size",
        detail=f"{large!r} has {counts[most]} training samples, {small!r} {counts[least]}; always answering "
        f"{large!r} would score {share:.0%}.",
        fix="train with --balance weights or --balance sampling, and judge by the accuracy of each class",
        items=tuple(f"{name}: {count}" for name, count in zip(dataset.class_names, counts, strict=True))[:_SHOWN],
        count=len(present),
    )


def _chunks(dataset: Dataset) -> Iterator[tuple[int, Array]]:
    step = max(1, (8 << 20) // max(1, dataset.inputs[:1].nbytes))
    for start in range(0, len(dataset), step):
        yield start, dataset.inputs[start : start + step].reshape(min(step, len(dataset) - start), -1)


def _blank(dataset: Dataset) -> Iterator[DataFinding]:
    blank = [
        start + number
        for start, rows in _chunks(dataset)
        for number in np.flatnonzero(rows.max(axis=1) == rows.min(axis=1)).tolist()
    ]
    if blank and int(np.prod(dataset.preprocessing.shape)) > 1:
        yield DataFinding(
            severity="warning",
            what="blank samples",
            detail=f"{len(blank)} samples have one value everywhere.",
            fix="delete them",
            items=tuple(dataset.names[n] for n in blank[:_SHOWN]),
            count=len(blank),
        )


def _drift(dataset: Dataset) -> Iterator[DataFinding]:
    """Two-sample Kolmogorov–Smirnov test on the mean and the contrast of every sample."""
    if not len(dataset.splits["test"]) or dataset.kind == "sequence":
        return
    from scipy.stats import ks_2samp

    brightness = np.concatenate([rows.mean(axis=1, dtype=np.float64) for _, rows in _chunks(dataset)])
    contrast = np.concatenate([rows.std(axis=1, dtype=np.float64) for _, rows in _chunks(dataset)])
    for name, values in (("mean", brightness), ("contrast", contrast)):
        test = ks_2samp(values[dataset.splits["train"]], values[dataset.splits["test"]])
        if test.pvalue < _DRIFT_P and test.statistic > _DRIFT_EFFECT:
            yield DataFinding(
                severity="warning",
                what="train and test differ",
                detail=f"the {name} of the samples is distributed differently in train and test "
                f"(Kolmogorov–Smirnov {test.statistic:.2f}, p = {test.pvalue:.1e}).",
                fix="split anew from one pool of data, or accept that the test measures another distribution",
            )


def _cut_away(dataset: Dataset) -> Iterator[DataFinding]:
    losses = dataset.report.fit_losses
    if dataset.preprocessing.fit == "crop" and losses.get("crop", 0) > _CUT_LIMIT:
        yield DataFinding(
            severity="warning",
            what="much of each picture is cut away",
            detail=f"fitting by crop cuts {losses['crop']:.0%} off the average picture.",
            fix="use --fit pad or --fit stretch",
        )


def _repeats(dataset: Dataset) -> Iterator[DataFinding]:
    repeated = dataset.report.duplicates
    if repeated:
        groups = list(_same_content(dataset))
        yield DataFinding(
            severity="note",
            what="exact duplicates",
            detail=f"{repeated} samples repeat an earlier one ({repeated / len(dataset):.1%}); they count double.",
            fix="delete the copies",
            items=tuple(" = ".join(dataset.names[n] for n in members[:3].tolist()) for members in groups[:_SHOWN]),
            count=repeated,
        )
