"""From a name or a path to a `Dataset`: the reader that knows the format, then the split and the statistics."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy as np

from convlens.data import progress as progress_bars
from convlens.data.cache import FORMAT, RowWriter, cached
from convlens.data.dataset import SPLITS, Dataset, Indices
from convlens.data.formats import Found, Reader, Work, readers
from convlens.data.formats.known import known_names
from convlens.data.options import DataOptions, options_from, parse_fold
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.splits import content_digests, content_numbers, numbered, split_samples
from convlens.data.statistics import channel_statistics
from convlens.data.survey import FileFacts, survey_files
from convlens.errors import DataError, PathError

__all__ = ["open_dataset"]

_AFTER_DECODING = {"split", "split_seed", "fold"}


def open_dataset(
    source: str | Path, options: DataOptions | None = None, *, progress: bool = False, **values: Any
) -> Dataset:
    """Open a data set; decoded samples are kept in the cache and mapped from there the next time.

    Args:
        source: a known name (``digits``, ``mnist`` …) or a path: class folders, IDX, tables, arrays …
        options: choices as a record, or
        progress: show bars on the error stream.
        **values: the choices by name: ``size``, ``channels``, ``fit``, ``split``, ``on_bad_file`` …

    Raises:
        PathError: no such path, or it may not be read.
        DataError: it is not a data set: empty, one class only, nothing that can be decoded.
        RecipeError: an unknown or impossible option.
        StorageError: no space or no permission for the cache.
    """
    options = options or options_from(values)
    text = str(source)
    known = readers()
    text, reader = _with_reader(known, text) or _with_reader(known, _only_file_in(text)) or _nothing(known, text)
    track = progress_bars.visible if progress else progress_bars.silent
    files = reader.files(text, options)
    facts = survey_files(Path(text), files, pictures=reader.pictures, track=track)

    def build(writer: RowWriter) -> Found:
        found = reader.read(text, options, Work(dict(zip(files, facts, strict=True)), writer, track))
        _check_classes(text, found)
        if found.digests is None:
            found = found.with_digests(content_digests(found.inputs))
        return found

    found, folder = cached(_key(text, reader, options, files, facts), build, text)
    return _dressed(text, found, options, folder)


def _with_reader(known: Sequence[Reader], source: str | None) -> tuple[str, Reader] | None:
    """The source with the first reader that knows its format."""
    if source is None:
        return None
    return next(((source, reader) for reader in known if reader.matches(source)), None)


def _only_file_in(source: str) -> str | None:
    """The one file in a folder, which then stands for it, such as a table beside its readme."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    files = [path for path in found if not path.name.lower().startswith(("readme", "license"))]
    return str(files[0]) if len(files) == 1 and files[0].is_file() else None


def _nothing(known: Sequence[Reader], source: str) -> NoReturn:
    path = Path(source)
    if not path.exists():
        names = ", ".join(known_names())
        raise PathError(f"{source}: no such file or folder, and not a known name (digits, {names}).")
    if path.is_dir() and not any(path.iterdir()):
        raise DataError(f"{source}: the folder is empty. Expected one folder of pictures per class, or IDX files.")
    names = ", ".join(reader.name for reader in known)
    raise DataError(f"{source}: holds nothing that can be read here ({names}).")


def _key(
    source: str, reader: Reader, options: DataOptions, files: Sequence[Path], facts: Sequence[FileFacts]
) -> str:
    """Hash of every content and every choice that changes the samples (not of where the files lie)."""
    digest = hashlib.blake2b(digest_size=16)
    choices = options.model_dump_json(exclude=_AFTER_DECODING)
    digest.update(f"{FORMAT}\0{reader.name}\0{choices}\0{source if not files else ''}".encode())
    root = Path(source) if Path(source).exists() or not files else files[0].parent
    start = f"{root}{os.sep}"
    for path, fact in zip(files, facts, strict=True):
        name = str(path)  # relpath would take as long as everything else in a warm opening
        name = name[len(start) :] if name.startswith(start) else os.path.relpath(name, root)
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + fact.digest)
    return digest.hexdigest()


def _dressed(source: str, found: Found, options: DataOptions, folder: Path | None) -> Dataset:
    """Add the split, the statistics and the fingerprint; remembered beside the samples."""
    digests = found.digests if found.digests is not None else content_digests(found.inputs)
    choices = options.model_dump_json(include=_AFTER_DECODING)
    memory = None
    if folder is not None:
        memory = folder / f"split-{hashlib.blake2b(choices.encode(), digest_size=8).hexdigest()}.npz"
    splits, facts = _recall(memory) or _remember(memory, *_measure(found, digests, options))
    preprocessing = found.preprocessing.model_copy(
        update={"mean": tuple(facts["mean"]), "std": tuple(facts["std"])}
    )
    return Dataset(
        inputs=found.inputs,
        labels=found.labels,
        class_names=found.class_names,
        splits=splits,
        names=found.names,
        preprocessing=preprocessing,
        fingerprint=facts["fingerprint"],
        source=source,
        digests=digests,
        groups=None if found.groups is None else numbered(found.groups),
        report=found.report.model_copy(update=facts["report"]),
    )


def _measure(found: Found, digests: Array, options: DataOptions) -> tuple[dict[str, Indices], dict[str, Any]]:
    """Split, statistics of its training part, repeated contents, fingerprint."""
    splits, rule = split_samples(
        found.labels,
        digests,
        group_names=found.groups,
        given=found.given,
        fractions=options.split,
        seed=options.split_seed,
        fold=parse_fold(options.fold) if options.fold else None,
    )
    mean, std = channel_statistics(found.inputs, splits["train"], found.preprocessing.scale)
    repeated, crossing = _duplicates(digests, splits)
    report = {"duplicates": repeated, "crossing_duplicates": crossing, "split_rule": rule}
    fingerprint = _fingerprint(found, digests, splits)
    return splits, {"mean": mean, "std": std, "report": report, "fingerprint": fingerprint}


def _remember(
    memory: Path | None, splits: dict[str, Indices], facts: dict[str, Any]
) -> tuple[dict[str, Indices], dict[str, Any]]:
    """Write beside the samples, if that is possible; always returns what it was given."""
    if memory is not None:
        partial = memory.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **splits)  # type: ignore[arg-type]
            partial.replace(memory)
        except OSError:
            partial.unlink(missing_ok=True)
    return splits, facts


def _recall(memory: Path | None) -> tuple[dict[str, Indices], dict[str, Any]] | None:
    if memory is None:
        return None
    try:
        with memory.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            return {name: arrays[name] for name in SPLITS}, facts
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _check_classes(source: str, found: Found) -> None:
    if not len(found.labels):
        raise DataError(f"{source}: no sample could be used.")
    if found.labels.ndim == 1 and len(np.unique(found.labels)) < 2:
        only = found.class_names[int(found.labels[0])]
        raise DataError(
            f"{source}: all {len(found.labels)} samples are of one class ({only!r}); a classifier needs at least "
            "two. Fix: point to the folder that holds one folder per class."
        )


def _duplicates(digests: Array, splits: Mapping[str, Indices]) -> tuple[int, int]:
    """``(repeated, crossing)``: samples equal to an earlier one, and contents that lie in more than one part."""
    number = content_numbers(digests)
    distinct = int(number.max(initial=-1)) + 1
    parts = np.zeros(distinct, np.int64)
    for chosen in splits.values():
        parts[np.unique(number[chosen])] += 1
    return len(number) - distinct, int((parts > 1).sum())


def _fingerprint(found: Found, digests: Array, splits: Mapping[str, Indices]) -> str:
    """32 hexadecimal digits over contents, labels, class names, split and the form of the samples."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (digests, found.labels, *splits.values()):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update("\0".join(found.class_names).encode())
    digest.update(_form(found.preprocessing).encode())
    return digest.hexdigest()


def _form(preprocessing: Preprocessing) -> str:
    return preprocessing.model_dump_json(exclude={"mean", "std"})
