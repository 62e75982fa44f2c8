"""What a file holds for a model that is already trained: one input, or one in each row, record, pixel or path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convlens.data.arrays import load_npy
from convlens.data.formats.manifest import LABEL_NAMES
from convlens.data.formats.scenes import cube_of, patches
from convlens.data.formats.sequences import fasta_records, is_fasta, letters_column
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.series import as_float32
from convlens.data.tables import Table, is_number, read_table
from convlens.errors import BadFileError, ConvlensError

__all__ = ["inputs_in"]

_TABLES = (".tsv", ".csv", ".parquet", ".pq")
_PATH_NAMES = ("path", "file", "filename", "image")


def inputs_in(preprocessing: Preprocessing, path: Path) -> Iterator[tuple[str, Any]]:
    """Name and raw input (as `Preprocessing.decode` takes it) of everything in ``path``, in its order.

    A table of signals or sequences gives its rows, with or without a class; a FASTA file its records; a
    hyperspectral scene every pixel; a table of pictures the files that it names; any other file itself.

    Raises:
        BadFileError: a file of several inputs that is damaged. A damaged single input is told by ``decode``.
    """
    several = {"image": _listed, "signal": _signals, "sequence": _sequences, "spectral": _pixels}
    find = several.get(preprocessing.kind)
    found = find(preprocessing, path) if find else None
    if found is None:
        yield str(path), path
        return
    for part, raw in found:
        yield (f"{path}[{part}]" if part else str(raw)), raw


def _listed(preprocessing: Preprocessing, path: Path) -> Iterator[tuple[str, Any]] | None:
    """Pictures that a table names, as in a manifest; paths are relative to the table."""
    if path.suffix.lower() not in _TABLES:
        return None
    table = _table(path)
    column = table.column(*_PATH_NAMES)
    if column is None:
        raise BadFileError(f"{path}: expected a column {', '.join(_PATH_NAMES)} that names pictures.")
    return (("", path.parent / cell) for cell in table.cells(column))


def _signals(preprocessing: Preprocessing, path: Path) -> Iterator[tuple[str, Any]] | None:
    if path.suffix.lower() == ".npy":
        values = load_npy(path)
        batch = values.ndim == 3 or (values.ndim == 2 and len(values) != preprocessing.channels)
        return ((str(row), one) for row, one in enumerate(values)) if batch else None
    if path.suffix.lower() not in _TABLES or preprocessing.channels != 1:
        return None
    table = _table(path)
    if len(table.rows[0]) < 2:
        return None  # one number a line: a single signal
    kept = _value_columns(table, preprocessing.size[0])
    return ((str(row), _numbers(path, row, cells, kept)) for row, cells in enumerate(table.rows))


def _value_columns(table: Table, length: int) -> list[int]:
    """Columns of values: without class, split and group, named or told by their cells as training data's are."""
    others = {table.column(*LABEL_NAMES), table.column("split"), table.column("group")}
    first = table.rows[0]
    kept = [n for n, cell in enumerate(first) if n not in others and (is_number(cell) or not cell.strip())]
    unnamed = len(kept) == len(first) and not table.header
    return kept[1:] if unnamed and len(kept) == length + 1 else kept


def _numbers(path: Path, row: int, cells: list[str], kept: list[int]) -> Array:
    try:
        return as_float32([float(cells[n]) if cells[n].strip() else float("nan") for n in kept])
    except ValueError as error:
        raise BadFileError(f"{path}: row {row} holds what is no number ({error}).") from None


def _sequences(preprocessing: Preprocessing, path: Path) -> Iterator[tuple[str, Any]] | None:
    if is_fasta(path):
        records = fasta_records(path)
        if len(records) == 1:
            return None
        return (
            (header.split()[0] if header else str(n), text.encode()) for n, (header, text) in enumerate(records)
        )
    if path.suffix.lower() not in (*_TABLES, ".data"):
        return None
    table = _table(path)
    column = letters_column(table)
    if column is None:
        return None
    return ((str(row), cell.encode()) for row, cell in enumerate(table.cells(column)))


def _pixels(preprocessing: Preprocessing, path: Path) -> Iterator[tuple[str, Any]] | None:
    """Every pixel of a scene ``[rows, columns, bands]`` that is larger than one patch."""
    if path.suffix.lower() == ".npy":
        shape = load_npy(path, mapped=True).shape
        if len(shape) != 3 or shape == preprocessing.shape or shape[:2] == preprocessing.size:
            return None
    elif path.suffix.lower() != ".mat":
        return None
    cube = cube_of(path)
    if cube.shape[2] != preprocessing.channels:
        raise BadFileError(f"{path}: expected {preprocessing.channels} bands, received {cube.shape[2]}.")
    places = [(row, column) for row in range(cube.shape[0]) for column in range(cube.shape[1])]
    found = patches(cube, preprocessing.size[0], places)
    return ((f"{row},{column}", patch) for (row, column), patch in zip(places, found, strict=True))


def _table(path: Path) -> Table:
    try:
        return read_table(path)
    except BadFileError:
        raise
    except ConvlensError as error:
        raise BadFileError(str(error)) from None
