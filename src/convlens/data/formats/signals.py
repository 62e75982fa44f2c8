"""Signals in tables: one per row with its class, as in the UCR archive's ``NAME_TRAIN.tsv``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convlens.data.formats.contract import Found, Report, Work
from convlens.data.formats.manifest import LABEL_NAMES
from convlens.data.options import DataOptions
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.series import as_float32, filled, fitted_signal
from convlens.data.tables import Table, class_numbers, is_number, read_table, sides_from_words
from convlens.errors import BadFileError, ConvlensError, DataError

__all__ = ["SignalTableReader", "signals_found"]

_LEAST_LENGTH = 4
_SIDE_WORDS = {"train": 0, "dev": 1, "val": 1, "valid": 1, "validation": 1, "test": 2}


@dataclass(frozen=True)
class _Rows:
    """Signals of one table: values float32 ``[N, length]`` with NaN for gaps."""

    values: Array
    classes: list[str]
    sides: Array | None
    groups: list[str] | None


class SignalTableReader:
    """A table of numbers, or a folder of such tables with ``train`` and ``test`` in their names."""

    name = "table of signals (UCR .tsv, CSV)"
    pictures = False

    def matches(self, source: str) -> bool:
        """Tables that hold a class and at least four numbers a row."""
        files = _files(Path(source))
        try:
            starts = [read_table(path, start_only=True) for path in files]
            return bool(files) and all(_numbers_in(table) >= _LEAST_LENGTH for table in starts)
        except ConvlensError:
            return False

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Every table."""
        return _files(Path(source))

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Every row; a folder's or a ``_TRAIN`` file's partner makes the test part."""
        files = _files(Path(source))
        parts = [_rows(read_table(path), options) for path in files]
        classes = [word for part in parts for word in part.classes]
        labels, class_names = class_numbers(classes)
        sides = [_side(path) for path in files]
        given = np.concatenate(
            [
                part.sides if part.sides is not None else np.full(len(part.classes), side, np.int8)
                for part, side in zip(parts, sides, strict=True)
            ]
        )
        names = [
            f"{path.name}[{row}]"
            for path, part in zip(files, parts, strict=True)
            for row in range(len(part.classes))
        ]
        groups = [group for part in parts for group in part.groups or []]
        found = signals_found([part.values[:, None] for part in parts], labels, class_names, names, options)
        return Found(
            preprocessing=found.preprocessing,
            inputs=found.inputs,
            labels=labels,
            class_names=class_names,
            names=names,
            given=given if (given >= 0).any() and len(set(given.tolist())) > 1 else None,
            groups=groups if len(groups) == len(names) else None,
            report=found.report,
        )


def signals_found(
    parts: list[Array], labels: Array, class_names: tuple[str, ...], names: list[str], options: DataOptions
) -> Found:
    """Signals ``[N, channels, length]`` of perhaps several lengths in one form, gaps bridged."""
    lengths = {part.shape[2] for part in parts}
    length = options.size[0] if options.size else max(lengths)
    preprocessing = Preprocessing(
        kind="signal",
        channels=int(parts[0].shape[1]),
        size=(length,),
        fit=options.fit or ("pad" if len(lengths) > 1 else "crop"),
        dtype="float32",
    )
    gaps = sum(int((~np.isfinite(part)).any(axis=(1, 2)).sum()) for part in parts)
    ready = []
    for part in parts:
        whole = filled(as_float32(part))
        if whole.shape[2] != length:
            whole = np.stack([fitted_signal(signal, preprocessing) for signal in whole])
        ready.append(whole)
    inputs = np.concatenate(ready)
    notes = [f"{gaps} signals have gaps, bridged by straight lines"] if gaps else []
    return Found(
        preprocessing=preprocessing,
        inputs=inputs,
        labels=labels,
        class_names=class_names,
        names=names,
        report=Report(found=len(inputs), used=len(inputs), notes=tuple(notes)),
    )


def _files(source: Path) -> list[Path]:
    endings = (".tsv", ".csv")
    if source.is_dir():
        tables = sorted(path for path in source.iterdir() if path.suffix.lower() in endings)
        return [path for path in tables if _side(path) >= 0]
    if not source.is_file() or source.suffix.lower() not in endings:
        return []
    partner = re.sub("_TRAIN(?=\\.)", "_TEST", source.name)
    if partner != source.name and (other := source.with_name(partner)).is_file():
        return [source, other]
    return [source]


def _side(path: Path) -> int:
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((_SIDE_WORDS[word] for word in reversed(words) if word in _SIDE_WORDS), -1)


def _label_column(table: Table) -> int:
    """The column named so; else the one that holds no numbers; else the first, as the UCR archive has it."""
    named = table.column(*LABEL_NAMES)
    if named is not None:
        return named
    return next((n for n, cell in enumerate(table.rows[0]) if cell.strip() and not is_number(cell)), 0)


def _numbers_in(table: Table) -> int:
    """Numbers in the first row beside its label."""
    if not table.rows:
        return 0
    label = _label_column(table)
    return sum(is_number(cell) for number, cell in enumerate(table.rows[0]) if number != label)


def _rows(table: Table, options: DataOptions) -> _Rows:
    label = table.column(options.labels) if options.labels else _label_column(table)
    if label is None:
        raise DataError(f"{table.path}: has no column {options.labels!r}; it has {', '.join(table.header)}.")
    split, group = table.column("split"), table.column("group")
    kept = [n for n in range(len(table.rows[0])) if n not in (label, split, group)]
    values = np.empty((len(table.rows), len(kept)), np.float32)
    for number, row in enumerate(table.rows):
        try:
            values[number] = [float(row[n]) if row[n].strip() else np.nan for n in kept]
        except ValueError as error:
            line = number + 1 + bool(table.header)
            raise BadFileError(f"{table.path}: line {line} holds what is no number ({error}).") from None
    return _Rows(
        values,
        table.cells(label),
        None if split is None else sides_from_words(table.cells(split), table.path),
        None if group is None else table.cells(group),
    )
