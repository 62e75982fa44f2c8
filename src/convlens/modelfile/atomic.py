"""A file is either the old one or the new one, never half of each: temporary file, fsync, rename."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convlens.errors import StorageError

__all__ = ["replace_atomically", "storage_errors", "write_text"]


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "no space" and "no permission" while writing ``path`` into `StorageError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: no space is left on the disk. What was saved before is untouched; free some space "
                f"or write elsewhere with --out."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(f"{path}: no permission to write here. Choose another place with --out.") from error
        raise


@contextmanager
def replace_atomically(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, it is synced and takes ``path``'s place.

    If the block raises, ``path`` keeps its old content and the temporary file is removed.

    Args:
        path: what is replaced.
        folder: where the temporary file lies, which a kill leaves behind; beside ``path`` by default, on its disk.

    Raises:
        StorageError: no space, or no permission.
    """
    with storage_errors(path):
        handle, name = tempfile.mkstemp(dir=folder or path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            # mkstemp makes files that only their owner reads; a run is read by others, as umask says.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` (UTF-8), atomically.

    Raises:
        StorageError: no space, or no permission.
    """
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; folders cannot be opened for this on Windows."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
