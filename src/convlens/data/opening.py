"""From a name or a path to a `Dataset`: the reader that knows the format, then the split and the statistics."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convlens.data.dataset import Dataset, Indices
from convlens.data.formats import Found, Reader, readers
from convlens.data.options import DataOptions, options_from
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.splits import content_digests, content_numbers, numbered, split_samples
from convlens.data.statistics import channel_statistics
from convlens.errors import DataError, PathError

__all__ = ["open_dataset"]


def open_dataset(source: str | Path, options: DataOptions | None = None, **values: Any) -> Dataset:
    """Open a data set.

    Args:
        source: ``digits`` or a path: a folder of IDX files, class folders of pictures …
        options: choices as a record, or
        **values: the same by name: ``size``, ``channels``, ``fit``, ``split``, ``split_seed``, ``on_bad_file`` …

    Raises:
        PathError: no such path, or it may not be read.
        DataError: it is not a data set: empty, one class only, nothing that can be decoded.
        RecipeError: an unknown or impossible option.
        StorageError: no space or no permission for the cache.
    """
    options = options or options_from(values)
    text = str(source)
    reader = _reader_of(text)
    return _finish(text, reader.read(text, options), options)


def _reader_of(source: str) -> Reader:
    known = readers()
    for reader in known:
        if reader.matches(source):
            return reader
    path = Path(source)
    names = ", ".join(reader.name for reader in known)
    if not path.exists():
        raise PathError(f"{source}: no such file or folder, and not the name of a known data set (digits).")
    if path.is_dir() and not any(path.iterdir()):
        raise DataError(f"{source}: the folder is empty. Expected one folder of pictures per class, or IDX files.")
    raise DataError(f"{source}: not in a format that can be read here ({names}).")


def _finish(source: str, found: Found, options: DataOptions) -> Dataset:
    """Split, measure and check what a reader found."""
    labels = np.ascontiguousarray(found.labels)
    _check_classes(source, found)
    digests = found.digests if found.digests is not None else content_digests(found.inputs)
    splits, rule = split_samples(
        labels,
        digests,
        group_names=found.groups,
        given=found.given,
        fractions=options.split,
        seed=options.split_seed,
    )
    mean, std = channel_statistics(found.inputs, splits["train"], found.preprocessing.scale)
    preprocessing = found.preprocessing.model_copy(update={"mean": mean, "std": std})
    repeated, crossing = _duplicates(digests, splits)
    report = found.report.model_copy(
        update={"duplicates": repeated, "crossing_duplicates": crossing, "split_rule": rule}
    )
    groups = None
    if found.groups is not None:
        groups = numbered(found.groups)
    dataset = Dataset(
        inputs=found.inputs,
        labels=labels,
        class_names=found.class_names,
        splits=splits,
        names=found.names,
        preprocessing=preprocessing,
        fingerprint="",
        source=source,
        digests=digests,
        groups=groups,
        report=report,
    )
    return dataclasses.replace(dataset, fingerprint=_fingerprint(dataset))


def _check_classes(source: str, found: Found) -> None:
    if not len(found.labels):
        raise DataError(f"{source}: no sample could be used.")
    present = int(found.labels.any(axis=0).sum()) if found.labels.ndim == 2 else len(np.unique(found.labels))
    if found.labels.ndim == 1 and present < 2:
        only = found.class_names[int(found.labels[0])]
        raise DataError(
            f"{source}: all {len(found.labels)} samples are of one class ({only!r}); a classifier needs "
            "at least two. Fix: point to the folder that holds one folder per class."
        )


def _duplicates(digests: Array, splits: Mapping[str, Indices]) -> tuple[int, int]:
    """``(repeated, crossing)``: samples equal to an earlier one, and contents that lie in more than one part."""
    number = content_numbers(digests)
    distinct = int(number.max(initial=-1)) + 1
    parts = np.zeros(distinct, np.int64)
    for chosen in splits.values():
        parts[np.unique(number[chosen])] += 1
    return len(number) - distinct, int((parts > 1).sum())


def _fingerprint(dataset: Dataset) -> str:
    """32 hexadecimal digits over contents, labels, split and preprocessing."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (dataset.digests, dataset.labels, *dataset.splits.values()):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update("\0".join(dataset.class_names).encode())
    digest.update(_decoding_key(dataset.preprocessing).encode())
    return digest.hexdigest()


def _decoding_key(preprocessing: Preprocessing) -> str:
    return preprocessing.model_dump_json(exclude={"mean", "std"})
