"""Sequences of letters, one-hot: FASTA, and tables with a class and a column of letters."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from convlens.data.formats.contract import Found, Report, Work
from convlens.data.formats.manifest import LABEL_NAMES, label_arrays
from convlens.data.options import DataOptions
from convlens.data.pictures import read_bytes
from convlens.data.preprocessing import Preprocessing
from convlens.data.series import DNA, PROTEIN, one_hot
from convlens.data.tables import Table, read_table, sides_from_words
from convlens.errors import BadFileError, ConvlensError, DataError

__all__ = ["FastaReader", "SequenceTableReader", "fasta_records", "is_fasta", "letters_column"]

_FASTA_ENDINGS = (".fa", ".fasta", ".fna", ".faa")
_DNA_LETTERS = frozenset("ACGTUNRYKMSWBDHV-")
_PROTEIN_LETTERS = frozenset(PROTEIN + "BJOUXZ*-")
_LEAST_LETTERS = 8


class FastaReader:
    """A folder with one FASTA file per class, or one file whose headers say the class.

    In one file the class is ``label=…`` or ``class=…`` in the header, else the last word after ``|``.
    """

    name = "FASTA"
    pictures = False

    def matches(self, source: str) -> bool:
        """A FASTA file, or a folder of them."""
        return bool(_fasta_files(Path(source)))

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Every FASTA file."""
        return _fasta_files(Path(source))

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Every record."""
        files = _fasta_files(Path(source))
        names: list[str] = []
        letters: list[str] = []
        classes: list[str] = []
        for path in files:
            for header, text in fasta_records(path):
                names.append(header.split()[0] if header.split() else f"record {len(names)}")
                letters.append(text)
                classes.append(path.name.split(".")[0] if len(files) > 1 else _class_of(header, path))
        return _encoded(source, names, letters, classes, None, None, options)


class SequenceTableReader:
    """A table with a column of letters: named ``sequence``, or the one whose every cell is 8 letters or more."""

    name = "table of sequences"
    pictures = False

    def matches(self, source: str) -> bool:
        """A CSV, TSV or UCI ``.data`` file with such a column."""
        path = Path(source)
        if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".data", ".txt"):
            return False
        try:
            return letters_column(read_table(path, start_only=True)) is not None
        except ConvlensError:
            return False

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """The table."""
        return [Path(source)]

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Every row; the class is the column named so, else the first other column."""
        table = read_table(Path(source))
        letters = letters_column(table)
        others = [number for number in range(len(table.rows[0])) if number != letters]
        if letters is None or not others:
            raise DataError(f"{source}: needs a column of letters and one of classes.")
        label = table.column(options.labels) if options.labels else table.column(*LABEL_NAMES)
        label = others[0] if label is None else label
        identity = next((number for number in others if number != label), None)
        name_column = table.column("name", "id", "identifier")
        name_column = identity if name_column is None else name_column
        numbered = [f"row {number}" for number in range(len(table.rows))]
        split, group = table.column("split"), table.column("group")
        return _encoded(
            source,
            numbered if name_column is None else table.cells(name_column),
            table.cells(letters),
            table.cells(label),
            None if split is None else sides_from_words(table.cells(split), table.path),
            None if group is None else table.cells(group),
            options,
        )


def _encoded(
    source: str,
    names: list[str],
    letters: list[str],
    classes: list[str],
    given: np.ndarray[tuple[int, ...], np.dtype[np.int8]] | None,
    groups: list[str] | None,
    options: DataOptions,
) -> Found:
    if not letters:
        raise DataError(f"{source}: holds no sequences.")
    used = set("".join(letters).upper())
    alphabet = DNA if used <= _DNA_LETTERS else PROTEIN
    odd = sorted(used - (_DNA_LETTERS if alphabet == DNA else _PROTEIN_LETTERS))
    lengths = [len(text) for text in letters]
    length = options.size[0] if options.size else max(lengths)
    preprocessing = Preprocessing(
        kind="sequence", channels=len(alphabet), size=(length,), fit=options.fit or "pad", alphabet=alphabet
    )
    notes = [f"alphabet {alphabet}, length {length}"]
    if odd:
        notes.append(f"letters outside the alphabet become empty columns: {' '.join(odd)}")
    if min(lengths) < max(lengths):
        notes.append(f"lengths from {min(lengths)} to {max(lengths)}; shorter ones end in empty columns")
    labels, class_names = label_arrays(classes, several=False)
    return Found(
        preprocessing=preprocessing,
        inputs=np.stack([one_hot(text, preprocessing) for text in letters]),
        labels=labels,
        class_names=class_names,
        names=names,
        given=given,
        groups=groups,
        report=Report(found=len(letters), used=len(letters), notes=tuple(notes)),
    )


def letters_column(table: Table) -> int | None:
    """The column of letters: named ``sequence``, or the first whose every cell is 8 letters or more."""
    named = table.column("sequence", "seq")
    if named is not None or not table.rows:
        return named
    for number in range(len(table.rows[0])):
        cells = table.cells(number)
        if all(len(cell) >= _LEAST_LETTERS and set(cell.upper()) <= _PROTEIN_LETTERS for cell in cells):
            return number
    return None


def _fasta_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if is_fasta(source) else []
    if not source.is_dir():
        return []
    return sorted(path for path in source.iterdir() if is_fasta(path))


def is_fasta(path: Path) -> bool:
    """True where the name ends as FASTA files' do."""
    return path.suffix.lower() in _FASTA_ENDINGS


def fasta_records(path: Path) -> list[tuple[str, str]]:
    """Header and letters of every record.

    Raises:
        BadFileError: not a text, no record, or a record without letters.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path}: is not a text ({error}).") from None
    records = []
    for block in re.split(r"^>", text, flags=re.MULTILINE)[1:]:
        header, _, body = block.partition("\n")
        letters = "".join(body.split())
        if not letters:
            raise BadFileError(f"{path}: the record {header.strip()!r} has no letters.")
        records.append((header.strip(), letters))
    if not records:
        raise BadFileError(f"{path}: holds no FASTA record (a line that begins with >).")
    return records


def _class_of(header: str, path: Path) -> str:
    if found := re.search(r"\b(?:label|class)=(\S+)", header):
        return found.group(1)
    if "|" in header:
        return header.rsplit("|", 1)[1].strip()
    raise DataError(
        f"{path}: the header {header!r} does not say its class. Fix: write label=NAME in every header, or make "
        "one FASTA file per class in one folder."
    )
