"""A table that names picture files: CSV or Parquet with path, label (or several), split and group."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convlens.data.dataset import Indices
from convlens.data.formats.contract import Found, Work
from convlens.data.options import DataOptions
from convlens.data.picture_files import decode_listed
from convlens.data.preprocessing import Array
from convlens.data.tables import Table, class_numbers, read_table, sides_from_words
from convlens.errors import BadFileError, ConvlensError, DataError

__all__ = ["LABEL_NAMES", "ManifestReader", "label_arrays"]

PATH_NAMES = ("path", "file", "filename", "image", "image_path")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "y")
_MARKS = ";|"


class ManifestReader:
    """Paths are taken from the manifest's own folder; several labels are joined by ``;`` or ``|``."""

    name = "CSV/Parquet manifest of pictures"
    pictures = True

    def matches(self, source: str) -> bool:
        """A table with a column of paths."""
        path = Path(source)
        if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq"):
            return False
        try:
            return read_table(path, start_only=True).column(*PATH_NAMES) is not None
        except ConvlensError:
            return path.suffix.lower() in (".parquet", ".pq")

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """The manifest and every picture that it names."""
        return [Path(source), *_paths(read_table(Path(source)))]

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Decode every named picture once."""
        table = read_table(Path(source))
        column = table.column(options.labels) if options.labels else table.column(*LABEL_NAMES)
        if column is None:
            wanted = options.labels or "label"
            raise DataError(f"{source}: has no column {wanted!r}; its columns are {', '.join(table.header)}.")
        decoded = decode_listed(_paths(table), options, work)
        words = table.cells(column)
        labels, class_names = label_arrays(words, several=table.header[column].lower() == "labels")
        split, group = table.column("split", "set", "subset"), table.column("group", "patient", "subject", "video")
        kept = decoded.kept
        return Found(
            preprocessing=decoded.form,
            inputs=decoded.inputs,
            labels=labels[kept],
            class_names=class_names,
            names=[table.cells(_path_column(table))[number] for number in kept],
            given=None if split is None else sides_from_words(table.cells(split), table.path)[kept],
            groups=None if group is None else [table.cells(group)[number] for number in kept],
            digests=decoded.digests,
            report=decoded.report,
        )


def _path_column(table: Table) -> int:
    column = table.column(*PATH_NAMES)
    if column is None:
        raise BadFileError(f"{table.path}: has no column path; its columns are {', '.join(table.header)}.")
    return column


def _paths(table: Table) -> list[Path]:
    return [table.path.parent / cell for cell in table.cells(_path_column(table))]


def label_arrays(words: list[str], *, several: bool) -> tuple[Array, tuple[str, ...]]:
    """Labels int64 ``[N]``; or, where a cell holds several or the column is named so, uint8 ``[N, classes]``."""
    mark = next((mark for mark in _MARKS if any(mark in word for word in words)), None)
    if mark is None and not several:
        return class_numbers(words)
    lists = [[part.strip() for part in word.split(mark or ";") if part.strip()] for word in words]
    flat = [part for parts in lists for part in parts]
    if not flat:
        raise DataError("no row has a label.")
    numbers, names = class_numbers(flat)
    marks = np.zeros((len(words), len(names)), np.uint8)
    rows: Indices = np.repeat(np.arange(len(words)), [len(parts) for parts in lists])
    marks[rows, numbers] = 1
    return marks, names
