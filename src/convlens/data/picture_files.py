"""Many picture files to rows of one array: decoded in threads, written in order, bad files named.

Threads, not processes: Pillow decodes and resizes outside Python's lock, so that 2 threads ran 1.8× one (1,900
photos/s at 128×128 on 2 cores; 2 warm processes 1,900, but they take half a second to start).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from convlens.data.cache import RowWriter
from convlens.data.dataset import SkippedFile
from convlens.data.pictures import decode_picture, quiet_pillow
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.progress import Track
from convlens.data.survey import decode_workers
from convlens.errors import BadFileError, PathError

__all__ = ["decode_files"]

_CHUNK = 32
_Outcome = Array | str


def decode_files(
    files: Sequence[Path], form: Preprocessing, writer: RowWriter, *, fail: bool, track: Track
) -> tuple[list[int], list[SkippedFile]]:
    """Append every decodable file to `writer`, in order.

    Args:
        files: what to decode.
        form: size, channels and fit.
        writer: takes the rows.
        fail: raise `BadFileError` at the first file that cannot be decoded instead of leaving it out.
        track: progress.

    Returns:
        Numbers of the files that were decoded, and the others with their reasons.
    """
    kept: list[int] = []
    skipped: list[SkippedFile] = []
    writer.expect(len(files), form.channels * form.size[0] * form.size[1])
    with quiet_pillow(), track(len(files), "decoding") as step:
        for number, outcome in enumerate(_outcomes(files, form)):
            step(1)
            if not isinstance(outcome, str):
                writer.append(outcome)
                kept.append(number)
            elif fail:
                raise BadFileError(f"{outcome}. Fix: remove it, or skip bad files with --on-bad-file skip.")
            else:
                skipped.append(SkippedFile(path=str(files[number]), reason=_without_path(outcome, files[number])))
    return kept, skipped


def _outcomes(files: Sequence[Path], form: Preprocessing) -> Iterator[_Outcome]:
    """Pixels or the reason why not, in order, with a bounded number of chunks under way."""
    workers = decode_workers()
    waiting: deque[Future[list[_Outcome]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(files), _CHUNK):
                waiting.append(pool.submit(_decode_chunk, files[start : start + _CHUNK], form))
                if len(waiting) > 3 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode_chunk(files: Sequence[Path], form: Preprocessing) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for path in files:
        try:
            outcomes.append(decode_picture(form, path))
        except (BadFileError, PathError) as error:
            outcomes.append(str(error))
    return outcomes


def _without_path(reason: str, path: Path) -> str:
    return reason.removeprefix(f"{path}: ")
