"""Decoded samples on disk, memory-mapped: made once, whole or not at all, whoever is killed while making them.

An entry is a folder named by the hash of the source's contents and of every choice that changes the samples. It is
written under another name, synced, and renamed; a lock that the system frees when its holder dies keeps a second
process from doing the work twice. What a killed process left is removed by the next one that makes the entry.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from convlens.data.dataset import Report
from convlens.data.formats.contract import Found
from convlens.data.preprocessing import Array, Preprocessing
from convlens.environment import cache_dir
from convlens.errors import StorageError

__all__ = ["FORMAT", "RowWriter", "cached", "entry_folder"]

FORMAT = 1
_IN_MEMORY_LIMIT = 2 << 30
_UNUSED_DAYS = 30
_BLOCK_BYTES = 16 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_LEAVE = (errno.EACCES, errno.EPERM, errno.EROFS)


def entry_folder(key: str) -> Path:
    """Where the entry of a key lies or will lie."""
    return cache_dir() / "data" / key


def cached(key: str, build: Callable[[RowWriter], Found], source: str | None = None) -> tuple[Found, Path | None]:
    """The samples of a key, mapped from disk, and their folder; built first where they are not there.

    Where the cache may not be written, the samples stay in memory (up to 2 GiB) and the folder is None. Entries
    that nobody opened for 30 days are removed when a new one is made.

    Args:
        key: hash of contents and choices.
        build: makes the samples.
        source: what they come from; the entry made last for it is given to `build` as ``RowWriter.previous``, so
            that a few added files do not mean decoding everything again.

    Raises:
        StorageError: no space left, or not writable and too large for memory.
    """
    folder = entry_folder(key)
    if (found := _load(folder)) is not None:
        with suppress(OSError):
            os.utime(folder)
        return found, folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LEAVE:
            raise _storage_error(error, folder.parent) from None
        return build(RowWriter(None)), None
    try:
        if (found := _load(folder)) is None:
            with _disk_errors(folder.parent):
                _make(folder, build, _last_entry(source))
                _note(source, key)
                _remove_unused(folder.parent)
            found = _load(folder)
            if found is None:
                raise StorageError(f"{folder}: what was just written cannot be read back; is the disk sound?")
        return found, folder
    finally:
        lock.release()


class RowWriter:
    """Takes samples one after the other into a file (or into memory), so that only one is held at a time."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.previous: Found | None = None
        self._file: BinaryIO | None = None
        self._blocks: list[Array] = []
        self._bytes = 0
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)
        self._count = 0
        self.finished: Array | None = None

    def __enter__(self) -> RowWriter:
        if self.path is not None:
            self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def expect(self, count: int, sample_bytes: int) -> None:
        """Refuse now what would run out of space after an hour."""
        needed = count * sample_bytes
        if self.path is None:
            if needed > _IN_MEMORY_LIMIT:
                raise StorageError(
                    f"{cache_dir()}: may not be written, and {needed / 1e9:.1f} GB of samples are too many "
                    "to hold in memory. Fix: set CONVLENS_CACHE to a folder that may be written."
                )
            return
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise _no_room(self.path.parent, needed, free)

    def append(self, sample: Array) -> None:
        """One more sample; all have one shape and dtype."""
        self._shape, self._dtype = sample.shape, sample.dtype
        self._count += 1
        if self._file is None:
            self._blocks.append(sample)
        else:
            self._file.write(np.ascontiguousarray(sample).data)

    def extend(self, samples: Array) -> None:
        """Many more samples ``[N, *shape]`` that are in memory anyway."""
        step = max(1, _BLOCK_BYTES // max(1, samples[:1].nbytes))
        for start in range(0, len(samples), step):
            block = np.ascontiguousarray(samples[start : start + step])
            self._shape, self._dtype = block.shape[1:], block.dtype
            self._count += len(block)
            if self._file is None:
                self._blocks += list(block)
            else:
                self._file.write(block.reshape(-1).view(np.uint8).data)

    def finish(self) -> Array:
        """All samples ``[N, *shape]``; mapped when they lie on disk."""
        shape = (self._count, *self._shape)
        if not self._count:
            self.finished = np.zeros(shape, self._dtype)
        elif self._file is None or self.path is None:
            self.finished = np.stack(self._blocks)
        else:
            self._file.flush()
            self.finished = np.memmap(self.path, self._dtype, "r", shape=shape)
        return self.finished


def _make(folder: Path, build: Callable[[RowWriter], Found], previous: Found | None) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # there, but not whole: `_load` refused it
    partial.mkdir()
    try:
        with RowWriter(partial / "inputs.bin") as writer:
            writer.previous = previous
            found = build(writer)
            if found.inputs is not writer.finished:
                writer.expect(1, found.inputs.nbytes)
                writer.extend(found.inputs)
        _write_description(partial, found)
        _sync(partial)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _pointer(source: str) -> Path:
    name = hashlib.blake2b(str(Path(source).absolute()).encode(), digest_size=12).hexdigest()
    return cache_dir() / "data" / "files" / f"{name}.last"


def _last_entry(source: str | None) -> Found | None:
    """The samples that were made last for a source."""
    if source is None:
        return None
    try:
        return _load(entry_folder(_pointer(source).read_text("ascii")))
    except (OSError, ValueError):
        return None


def _note(source: str | None, key: str) -> None:
    if source is not None:
        with suppress(OSError):
            _pointer(source).parent.mkdir(exist_ok=True)
            _pointer(source).write_text(key, "ascii")


def _remove_unused(root: Path) -> None:
    limit = time.time() - _UNUSED_DAYS * 86_400
    for description in root.glob("*/samples.json"):
        with suppress(OSError):
            if description.parent.stat().st_mtime < limit:
                shutil.rmtree(description.parent, ignore_errors=True)


def _write_description(folder: Path, found: Found) -> None:
    arrays = {"labels": found.labels}
    for name, values in (("given", found.given), ("digests", found.digests)):
        if values is not None:
            arrays[name] = values
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the first name for a flag
        file.flush()
        os.fsync(file.fileno())
    described = {
        "format": FORMAT,
        "shape": list(found.inputs.shape),
        "dtype": found.inputs.dtype.name,
        "class_names": list(found.class_names),
        "names": list(found.names),
        "groups": None if found.groups is None else list(found.groups),
        "preprocessing": found.preprocessing.model_dump(),
        "report": found.report.model_dump(),
    }
    with (folder / "samples.json").open("w", encoding="utf-8") as text:
        text.write(json.dumps(described))  # json.dump would not use the C encoder
        text.flush()
        os.fsync(text.fileno())


def _load(folder: Path) -> Found | None:
    """The samples of a whole entry; None when it is not there, torn, or of another format."""
    try:
        described = json.loads((folder / "samples.json").read_text("utf-8"))
        if described["format"] != FORMAT:
            return None
        shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
        if (folder / "inputs.bin").stat().st_size != int(np.prod(shape)) * dtype.itemsize:
            return None
        with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
        inputs = np.memmap(folder / "inputs.bin", dtype, "r", shape=shape)
        return Found(
            preprocessing=Preprocessing(**described["preprocessing"]),
            inputs=inputs,
            labels=loaded["labels"],
            class_names=tuple(described["class_names"]),
            names=described["names"],
            given=loaded.get("given"),
            groups=described["groups"],
            digests=loaded.get("digests"),
            report=Report(**described["report"]),
        )
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return None


def _sync(folder: Path) -> None:
    """Make names durable; Windows cannot open folders and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (*_NO_ROOM, *_NO_LEAVE):
            raise _storage_error(error, folder) from None
        raise


def _storage_error(error: OSError, folder: Path) -> StorageError:
    if error.errno in _NO_ROOM:
        return StorageError(
            f"{folder}: no space left for the cache. Fix: free some, or set CONVLENS_CACHE to another disk."
        )
    return StorageError(
        f"{folder}: the cache cannot be written ({error.strerror}). Fix: set CONVLENS_CACHE to a folder that can."
    )


def _no_room(folder: Path, needed: int, free: int) -> StorageError:
    return StorageError(
        f"{folder}: the decoded samples need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free. "
        "Fix: free some, choose a smaller --size, or set CONVLENS_CACHE to another disk."
    )
