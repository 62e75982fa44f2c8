"""Files fetched once: resumed where they broke off, checked by their sums, safe under two processes."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from convlens.data.progress import Track
from convlens.errors import DataError, StorageError

__all__ = ["Remote", "fetch"]

_PIECE_BYTES = 1 << 18
_TIMEOUT_S = 30.0
_ATTEMPTS = 3
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Remote:
    """One file on the web: its name, the addresses it can be had from, and the MD5 sum its publisher gives."""

    name: str
    addresses: tuple[str, ...]
    md5: str


def fetch(remotes: Sequence[Remote], folder: Path, track: Track) -> list[Path]:
    """Bring every file into a folder, unless it is there and whole; their paths.

    Raises:
        DataError: no address gave the file, or what came is not what was published.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror}).") from None
    with FileLock(folder / ".lock"):
        return [_fetch_one(remote, folder, track) for remote in remotes]


def _fetch_one(remote: Remote, folder: Path, track: Track) -> Path:
    path, partial = folder / remote.name, folder / f"{remote.name}.part"
    if path.is_file():
        return path  # renamed into place only after its sum was right
    reasons = []
    for attempt in range(_ATTEMPTS):
        for address in remote.addresses:
            try:
                _continue_download(address, partial, track)
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                if isinstance(error, OSError) and error.filename == str(partial):
                    raise StorageError(f"{partial}: cannot be written ({error.strerror}).") from None
                reasons.append(f"{address}: {_reason(error)}")
                continue
            if _md5(partial) == remote.md5:
                partial.replace(path)
                return path
            partial.unlink()
            reasons.append(f"{address}: what came has another MD5 sum than {remote.md5}")
        if attempt + 1 < _ATTEMPTS:
            time.sleep(_PAUSE_S * 2**attempt)
    raise DataError(
        f"{remote.name} could not be downloaded ({reasons[-1]}). What came so far is kept and will be continued. "
        f"Fix: try again with a network, or put the file into {folder} by hand."
    )


def _continue_download(address: str, partial: Path, track: Track) -> None:
    """Append what is missing; begin again where the server does not know ranges."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # addresses come from our own table
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the sum decides
        raise
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        length = int(response.headers.get("Content-Length") or 0)
        with partial.open("ab" if goes_on else "wb") as file, track(length, f"downloading {partial.stem}") as step:
            received = 0
            while piece := response.read(_PIECE_BYTES):
                file.write(piece)
                received += len(piece)
                step(len(piece))
        if length and received < length:
            raise http.client.IncompleteRead(b"", length - received)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
