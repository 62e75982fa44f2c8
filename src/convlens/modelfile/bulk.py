"""Predictions of many files as one table: resumable after a kill, shared among processes, bad files apart.

The inputs are cut into units in a fixed order: one shard, or so many loose files. What a unit gives is written
in parts, each by a rename, into ``FILE.parts``; a part that is there is never computed again. Whoever finishes the
last unit joins the parts in their order into the table, so nothing is lost or doubled whatever was killed when,
and the table does not show how often it was continued or how many processes wrote it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convlens.data import Preprocessing
from convlens.data.contents import inputs_in
from convlens.data.pictures import quiet_pillow
from convlens.data.progress import Track, silent
from convlens.errors import ArgumentError, BadFileError, DataError, MissingExtraError, PathError
from convlens.modelfile.atomic import replace_atomically, storage_errors, write_text
from convlens.modelfile.predictor import Predictor

__all__ = ["ENDINGS", "BulkResult", "predict_into"]

ENDINGS = (".csv", ".parquet")
"""What a table may end in."""
_PART = 512  # samples of a part, and loose files of a unit
_AT_ONCE = 64
_LARGEST_MEMBER = 256 << 20  # bytes of a file in a shard: larger ones are bad, not read
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")

Row = tuple[Any, ...]
Raw = tuple[str, Any]
"""Name of a sample, and its path, bytes, or why it cannot be had."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What one process did.

    Attributes:
        out: the table.
        finished: whether the table is whole now; False where other processes still work.
        rows: rows of the table (0 unless finished).
        bad: inputs that could not be decoded (0 unless finished).
        bad_files: where those are listed; None without any.
        parts_found: parts that an earlier run or another process had written already.
    """

    out: Path
    finished: bool
    rows: int = 0
    bad: int = 0
    bad_files: Path | None = None
    parts_found: int = 0


def predict_into(
    predictor: Predictor,
    sources: Sequence[str],
    out: str | Path,
    top: int = 3,
    share: tuple[int, int] = (0, 1),
    track: Track = silent,
) -> BulkResult:
    """Classify ``sources`` into a table; run again after a kill, it continues.

    Columns: ``path``, ``label``, ``probability``, then ``label_2``, ``probability_2`` … up to ``top``. A sample of
    a shard is called ``shard.tar/its name``.

    Args:
        predictor: the model.
        sources: files; a ``.tar`` is a WebDataset shard, whose pictures are classified one by one.
        out: ``.csv``, or ``.parquet`` (needs pyarrow).
        top: classes to name for each input.
        share: ``(number, count)`` of this process among several that share the work and the disk.
        track: told the progress.

    Raises:
        ArgumentError: another ending.
        MissingExtraError: Parquet without pyarrow.
        DataError: an unfinished table of other inputs or another model lies there.
        StorageError: no space, or no permission.
    """
    out = Path(out)
    if out.suffix.lower() not in ENDINGS:
        raise ArgumentError("out", f"a file that ends in {' or '.join(ENDINGS)}", str(out))
    job = _Job(predictor, out, min(top, len(predictor.class_names)))
    # a table that is written into a folder of inputs is none of them when it is continued
    units = _units([source for source in sources if not job.owns(Path(source))])
    mine = range(share[0], len(units), share[1])
    if not mine:
        return BulkResult(out, finished=False)
    with storage_errors(out):
        job.begin(units)
        with quiet_pillow(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            with track(len(mine), "classifying") as step:
                for number in mine:
                    job.work(number, units[number], pool)
                    step(1)
        return job.join(len(units))


def _units(sources: Sequence[str]) -> list[list[str]]:
    """Loose files in groups, a shard by itself, all in the order given."""
    units: list[list[str]] = []
    loose: list[str] = []
    for source in sources:
        if source.lower().endswith(".tar"):
            if loose:
                units.append(loose)
            units.append([source])
            loose = []
            continue
        loose.append(source)
        if len(loose) == _PART:
            units.append(loose)
            loose = []
    return [*units, loose] if loose else units


class _Job:
    """The folder of parts of one table."""

    def __init__(self, predictor: Predictor, out: Path, top: int) -> None:
        self.predictor = predictor
        self.out = out
        self.top = top
        self.folder = out.with_name(out.name + ".parts")
        self.table = _ParquetTable() if out.suffix.lower() == ".parquet" else _CsvTable()
        self.found = 0

    @property
    def columns(self) -> list[str]:
        more = [f"{name}_{place}" for place in range(2, self.top + 1) for name in ("label", "probability")]
        return ["path", "label", "probability", *more]

    def owns(self, path: Path) -> bool:
        """Whether a file is of this table's making."""
        path = path.absolute()
        own = (self.out.absolute(), self.listed.absolute())
        return path in own or self.folder.absolute() in path.parents

    @property
    def listed(self) -> Path:
        """Where the bad files are listed."""
        return self.out.with_name(f"{self.out.stem}-bad.csv")

    def begin(self, units: Sequence[Sequence[str]]) -> None:
        """Make the folder, or see that it belongs to this very job."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        record = self.folder / "job.json"
        if (self.folder / "joined.json").exists() and not record.exists():
            for left in self.folder.iterdir():  # the table was whole, only clearing away was cut short
                left.unlink()
        described = {"model": self._model(), "inputs": _digest(units), "top": self.top, "part": _PART}
        if not record.exists():
            write_text(record, json.dumps(described))
            return
        known = json.loads(record.read_text(encoding="utf-8"))
        differing = [name for name, value in described.items() if known.get(name) != value]
        if differing:
            raise DataError(
                f"{self.folder}: holds an unfinished table of other settings ({', '.join(differing)} changed). "
                f"Remove that folder to begin anew, or choose another --out."
            )

    def _model(self) -> str:
        path = self.predictor.path
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    def work(self, number: int, unit: Sequence[str], pool: ThreadPoolExecutor) -> None:
        """Write the parts of a unit that are missing."""
        if self._done(number).exists():
            self.found += int(json.loads(self._done(number).read_text())["parts"])
            return
        samples, parts = _samples(self.predictor.preprocessing, unit), 0
        while first := list(islice(samples, 1)):
            part = _chained(first, islice(samples, _PART - 1))
            if self._part(number, parts).exists():
                self.found += 1
                for _ in part:
                    pass
            else:
                self._write(number, parts, part, pool)
            parts += 1
        write_text(self._done(number), json.dumps({"parts": parts}))

    def _write(self, number: int, part: int, samples: Iterator[Raw], pool: ThreadPoolExecutor) -> None:
        rows: list[Row] = []
        bad: list[Row] = []
        decoded = _ahead(pool, self._decoded, samples)
        while batch := list(islice(decoded, _AT_ONCE)):
            bad += [(name, found) for name, found in batch if isinstance(found, str)]
            rows += self._rows([(name, found) for name, found in batch if not isinstance(found, str)])
        if bad:  # before the part, whose rename says that both are there
            with replace_atomically(self._part(number, part, "bad")) as temporary:
                _CsvTable().write(temporary, [], bad)
        with replace_atomically(self._part(number, part)) as temporary:
            self.table.write(temporary, self.columns, rows)

    def _decoded(self, sample: Raw) -> Raw:
        """The sample in storage form, or why there is none."""
        name, raw = sample
        if isinstance(raw, str):
            return sample
        try:
            return name, self.predictor.preprocessing.decode(raw)
        except (BadFileError, PathError) as error:
            return name, str(error).removeprefix(f"{name}: ").removeprefix("input: ")

    def _rows(self, decoded: list[Raw]) -> list[Row]:
        if not decoded:
            return []
        stored = torch.from_numpy(np.stack([found for _, found in decoded]))
        rows = []
        for (name, _), answers in zip(decoded, self.predictor.probabilities(stored).numpy(), strict=True):
            best = self.predictor.top(answers, self.top)
            others = [value for one in best[1:] for value in one]
            rows.append((name, self.predictor.label_of(answers), best[0][1], *others))
        return rows

    def join(self, units: int) -> BulkResult:
        """Join the parts if all are there. Several processes may try at once: each makes the same file."""
        try:
            counts = [int(json.loads(self._done(n).read_text())["parts"]) for n in range(units)]
            parts = [(n, part) for n, count in enumerate(counts) for part in range(count)]
            bad = [row for n, part in parts for row in _csv_rows(self._part(n, part, "bad"))]
            # temporary files lie in the folder, so that a kill now leaves nothing beside the table
            if bad:
                with replace_atomically(self.listed, self.folder) as temporary:
                    _CsvTable().write(temporary, ["path", "reason"], bad, header=True)
            else:
                self.listed.unlink(missing_ok=True)
            with replace_atomically(self.out, self.folder) as temporary:
                rows = self.table.join(temporary, self.columns, (self._part(n, part) for n, part in parts))
        except FileNotFoundError:
            # units of others are missing, or another process has joined and cleared them in the meantime
            return BulkResult(self.out, finished=False, parts_found=self.found)
        with suppress(FileNotFoundError):
            (self.folder / "job.json").rename(self.folder / "joined.json")
        shutil.rmtree(self.folder, ignore_errors=True)
        return BulkResult(self.out, True, rows, len(bad), self.listed if bad else None, self.found)

    def _done(self, number: int) -> Path:
        return self.folder / f"{number:06d}.done"

    def _part(self, number: int, part: int, ending: str = "part") -> Path:
        return self.folder / f"{number:06d}-{part:06d}.{ending}"


def _digest(units: Sequence[Sequence[str]]) -> str:
    """Names and sizes of all inputs."""
    found = hashlib.sha256()
    for unit in units:
        for source in unit:
            try:
                size = os.stat(source).st_size
            except OSError:
                size = -1
            found.update(f"{source}\0{size}\0".encode("utf-8", "surrogateescape"))
        found.update(b"\n")
    return found.hexdigest()


def _samples(form: Preprocessing, unit: Sequence[str]) -> Iterator[Raw]:
    for source in unit:
        try:
            yield from _shard(Path(source)) if source.lower().endswith(".tar") else inputs_in(form, Path(source))
        except (BadFileError, PathError) as error:
            yield source, str(error)


def _shard(path: Path) -> Iterator[Raw]:
    """The pictures of a tar, one at a time; a damaged one ends with a row that says so."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would remember every one
                if not member.isfile() or not member.name.lower().endswith(_PICTURES):
                    continue
                name = f"{path}/{member.name}"
                if member.size > _LARGEST_MEMBER:
                    yield name, f"{member.size:,} bytes, over the limit of {_LARGEST_MEMBER:,}"
                    continue
                stream = tar.extractfile(member)
                yield name, stream.read() if stream is not None else "cannot be read"
            if _beyond(path, tar.offset) != bytes(tarfile.BLOCKSIZE):  # tarfile ends at a torn header in silence
                yield str(path), "is damaged from here on (its end is missing)"
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        yield str(path), f"is damaged from here on ({error})"


def _beyond(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE)


def _chained(first: Iterable[Raw], rest: Iterator[Raw]) -> Iterator[Raw]:
    yield from first
    yield from rest


def _ahead(pool: ThreadPoolExecutor, act: Callable[[Raw], Raw], samples: Iterator[Raw]) -> Iterator[Raw]:
    """``act`` on every sample in threads, in order; at most two batches are held."""
    waiting = [pool.submit(act, sample) for sample in islice(samples, 2 * _AT_ONCE)]
    while waiting:
        done, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
        for future in done:
            yield future.result()
            waiting += [pool.submit(act, sample) for sample in islice(samples, 1)]


class _CsvTable:
    """Comma-separated, UTF-8; names that are no text keep their bytes."""

    def write(self, path: Path, columns: Sequence[str], rows: Sequence[Row], header: bool = False) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(columns)
            writer.writerows(rows)

    def join(self, path: Path, columns: Sequence[str], parts: Iterable[Path]) -> int:
        count = 0
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for part in parts:
                rows = _csv_rows(part, missing_ok=False)
                writer.writerows(rows)
                count += len(rows)
        return count


class _ParquetTable:
    """One row group for each part."""

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("pyarrow", "parquet", "Writing Parquet") from None
        self.arrow = pyarrow
        self.parquet = pyarrow.parquet

    def write(self, path: Path, columns: Sequence[str], rows: Sequence[Row], header: bool = False) -> None:
        self.parquet.write_table(self._table(columns, rows), path)

    def join(self, path: Path, columns: Sequence[str], parts: Iterable[Path]) -> int:
        count = 0
        with self.parquet.ParquetWriter(path, self._schema(columns)) as writer:
            for part in parts:
                with part.open("rb") as file:  # by its name, a part in a folder "a=b" would get a column more
                    table = self.parquet.read_table(file)
                count += len(table)
                writer.write_table(table)
        return count

    def _schema(self, columns: Sequence[str]) -> Any:
        kinds = {True: self.arrow.float32(), False: self.arrow.string()}
        return self.arrow.schema([(name, kinds[name.startswith("probability")]) for name in columns])

    def _table(self, columns: Sequence[str], rows: Sequence[Row]) -> Any:
        readable = [(os.fsencode(row[0]).decode("utf-8", "replace"), *row[1:]) for row in rows]
        return self.arrow.table(
            {name: [row[place] for row in readable] for place, name in enumerate(columns)},
            schema=self._schema(columns),
        )


def _csv_rows(path: Path, missing_ok: bool = True) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [tuple(row) for row in csv.reader(file)]
    except FileNotFoundError:
        if missing_ok:
            return []
        raise
