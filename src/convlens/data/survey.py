"""What lies in the files, without decoding them: content hash and picture header, remembered by size and time.

A file whose size and modification time are as remembered is not read again. A file changed less than two seconds
before it was looked at is not remembered: a second change within the clock's step would go unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from convlens.data.pictures import PictureHeader, quiet_pillow, read_bytes, read_header
from convlens.data.progress import Track
from convlens.environment import cache_dir
from convlens.errors import BadFileError, PathError

__all__ = ["FileFacts", "decode_workers", "survey_files"]

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".gif", "")
_CHUNK = 64
_PIECE_BYTES = 1 << 20
_UNSAFE_SECONDS = 2.0


@dataclass(frozen=True)
class FileFacts:
    """One file: 16 bytes of BLAKE2b over its content, a picture's header, or why it cannot be read."""

    digest: bytes
    header: PictureHeader | None = None
    error: str | None = None


def decode_workers() -> int:
    """Threads for reading and decoding: the cores this process may use. Pillow decodes outside Python's lock."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


def survey_files(root: Path, files: Sequence[Path], *, pictures: bool, track: Track) -> list[FileFacts]:
    """Facts of every file, in order; reads only those that changed since the last time.

    Args:
        root: folder (or file) under which the facts are remembered.
        files: what to look at.
        pictures: also read the picture header of files with a picture's ending.
        track: progress.
    """
    memory = _memory_path(root)
    known = _load(memory)
    stats = [_stat(path) for path in files]
    facts: list[FileFacts | None] = [None] * len(files)
    changed = []
    for number, (path, stat) in enumerate(zip(files, stats, strict=True)):
        row = known.get(str(path))
        if row is not None and stat is not None and row[:2] == list(stat) and (row[3] is not None or not pictures):
            facts[number] = _from_row(row)
        else:
            changed.append(number)
    chunks = [changed[start : start + _CHUNK] for start in range(0, len(changed), _CHUNK)]
    with (
        quiet_pillow(),
        ThreadPoolExecutor(decode_workers()) as pool,
        track(len(changed), "looking at files") as step,
    ):
        for chunk, found in zip(
            chunks, pool.map(lambda chunk: [_look(files[i], pictures) for i in chunk], chunks), strict=True
        ):
            for number, fact in zip(chunk, found, strict=True):
                facts[number] = fact
            step(len(chunk))
    whole = [fact for fact in facts if fact is not None]
    if changed:
        _save(memory, files, stats, whole)
    return whole


def _look(path: Path, pictures: bool) -> FileFacts:
    if not (pictures and path.suffix.lower() in PICTURE_ENDINGS):
        return FileFacts(_hash_file(path))
    try:
        data = read_bytes(path)
    except (PathError, OSError) as error:
        return FileFacts(bytes(16), error=str(error))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        return FileFacts(digest, read_header(data, str(path)))
    except BadFileError as error:
        return FileFacts(digest, error=str(error))


def _hash_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    except PermissionError:
        raise PathError(f"{path}: may not be read (permission denied). Fix: chmod u+r {path}") from None
    except OSError as error:
        raise PathError(f"{path}: cannot be read ({error.strerror}).") from None
    return digest.digest()


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _memory_path(root: Path) -> Path:
    name = hashlib.blake2b(str(root.absolute()).encode(), digest_size=12).hexdigest()
    return cache_dir() / "data" / "files" / f"{name}.json"


def _load(memory: Path) -> dict[str, list[object]]:
    try:
        found = json.loads(memory.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _from_row(row: list[object]) -> FileFacts:
    _, _, digest, header, error = row
    found = PictureHeader(*header) if isinstance(header, list) and len(header) == 3 else None
    return FileFacts(bytes.fromhex(str(digest)), found, None if error is None else str(error))


def _save(
    memory: Path, files: Sequence[Path], stats: Sequence[tuple[int, int] | None], facts: Sequence[FileFacts]
) -> None:
    """Remember; a cache that cannot be written is no error here, the next look only takes longer."""
    limit_ns = time.time_ns() - int(_UNSAFE_SECONDS * 1e9)
    rows = {
        str(path): [*stat, fact.digest.hex(), _header_row(fact), fact.error]
        for path, stat, fact in zip(files, stats, facts, strict=True)
        if stat is not None and stat[1] < limit_ns
    }
    partial = memory.with_suffix(f".{os.getpid()}.partial")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(rows), "utf-8")
        partial.replace(memory)
    except OSError:
        partial.unlink(missing_ok=True)


def _header_row(fact: FileFacts) -> list[object] | None:
    """None: not looked at as a picture; empty: no picture."""
    if fact.header is not None:
        return [fact.header.width, fact.header.height, fact.header.grey]
    return [] if fact.error is not None else None
