"""Delimited text, Parquet, and labels of any type as class numbers: shared by the readers of tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convlens.data.dataset import Indices
from convlens.data.pictures import read_bytes
from convlens.errors import BadFileError, DataError, MissingExtraError, PathError

__all__ = ["Table", "class_numbers", "read_table", "sides_from_words"]

_START_BYTES = 1 << 16
_SIDES = {
    "train": 0,
    "training": 0,
    "dev": 1,
    "val": 1,
    "valid": 1,
    "validation": 1,
    "test": 2,
    "testing": 2,
    "": -1,
}


@dataclass(frozen=True)
class Table:
    """Rows of text cells; `header` is empty where the file has none."""

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]

    def column(self, *names: str) -> int | None:
        """Number of the first column with one of the names (any case), or None."""
        lowered = [name.lower() for name in self.header]
        return next((lowered.index(name) for name in names if name in lowered), None)

    def cells(self, column: int) -> list[str]:
        """One column."""
        return [row[column].strip() for row in self.rows]


def read_table(path: Path, *, start_only: bool = False) -> Table:
    """A CSV, TSV or Parquet file; the delimiter is the one the first line holds most of.

    The first line is a header when it holds no number and the second line does, or when it names a path, a label,
    a class or a sequence.

    Args:
        path: the file.
        start_only: look at the first lines alone (64 KiB), to tell what it holds; faults are not told yet.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        text = (_first_lines(path) if start_only else read_bytes(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path}: is not a text in UTF-8 ({error}).") from None
    first = text.split("\n", 1)[0]
    delimiter = max("\t,; ", key=lambda mark: (first.count(mark), mark == ","))
    if "\t" in first and "," in first:  # aligned with tabs after the commas, as UCI files are
        delimiter = ","
    try:
        lines = csv.reader(io.StringIO(text), delimiter=delimiter)
        rows = [row for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise BadFileError(f"{path}: is not a table ({error}).") from None
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    header: tuple[str, ...] = ()
    if _is_header(rows):
        header, rows = tuple(cell.strip() for cell in rows[0]), rows[1:]
    width = len(header) or len(rows[0]) if rows else 0
    if start_only:
        rows = [row for row in rows if len(row) == width]
    for number, row in enumerate(rows, start=1 + bool(header)):
        if len(row) != width:
            raise BadFileError(f"{path}: line {number} has {len(row)} cells where {width} were expected.")
    if not rows and not start_only:
        raise DataError(f"{path}: holds a header but no rows.")
    return Table(path, header, rows)


def _first_lines(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
            return start if len(start) < _START_BYTES else start + file.readline()
    except OSError as error:
        raise PathError(f"{path}: cannot be read ({error.strerror}).") from None


def _is_header(rows: list[list[str]]) -> bool:
    names = {cell.strip().lower() for cell in rows[0]}
    if names & {"path", "file", "filename", "image", "label", "labels", "class", "target", "sequence", "split"}:
        return True
    if len(rows) < 2 or any(is_number(cell) for cell in rows[0]):
        return False
    return any(is_number(cell) for cell in rows[1])


def is_number(cell: str) -> bool:
    """True where a cell can be read as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", "Reading Parquet files") from None
    try:
        found = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadFileError(f"{path}: is not a whole Parquet file ({error}).") from None
    columns = [["" if cell is None else _text(cell) for cell in column.to_pylist()] for column in found.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    if not rows:
        raise DataError(f"{path}: holds no rows.")
    return Table(path, tuple(found.column_names), rows)


def _text(cell: object) -> str:
    return ";".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def class_numbers(words: Sequence[str]) -> tuple[Indices, tuple[str, ...]]:
    """Class of each word int64 ``[N]``, and the class names: in the order of numbers when all are numbers."""
    distinct = set(words)
    if all(is_number(word) for word in distinct):
        values = {word: float(word) for word in distinct}
        ordered = sorted(set(values.values()))
        names = tuple(f"{value:g}" for value in ordered)
        number_of = {word: ordered.index(value) for word, value in values.items()}
    else:
        names = tuple(sorted(distinct))
        number_of = {word: number for number, word in enumerate(names)}
    return np.array([number_of[word] for word in words], np.int64), names


def sides_from_words(words: Sequence[str], path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """int8 ``[N]`` of 0 train, 1 dev, 2 test, -1 free, from a column of words."""
    unknown = sorted({word for word in words if word.lower() not in _SIDES})
    if unknown:
        raise DataError(f"{path}: column split: expected train, dev (val) or test, received {unknown[0]!r}.")
    return np.array([_SIDES[word.lower()] for word in words], np.int8)
