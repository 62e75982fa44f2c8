"""Many picture files to rows of one array: decoded in threads, written in order, bad files named.

Threads, not processes: Pillow decodes and resizes outside Python's lock, so that 2 threads ran 1.8× one (1,900
photos/s at 128×128 on 2 cores; 2 warm processes 1,900, but they take half a second to start).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from convlens.data.cache import RowWriter
from convlens.data.dataset import Report, SkippedFile
from convlens.data.formats.contract import Work
from convlens.data.options import DataOptions
from convlens.data.pictures import decode_picture, quiet_pillow
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.progress import Track
from convlens.data.sizing import choose_picture_form
from convlens.data.survey import decode_workers
from convlens.errors import BadFileError, PathError

__all__ = ["Decoded", "decode_files", "decode_listed"]

_CHUNK = 32
_Outcome = Array | str


@dataclass(frozen=True, eq=False)
class Decoded:
    """What became of a list of picture files: numbers of those kept, and everything about them."""

    form: Preprocessing
    inputs: Array
    kept: list[int]
    digests: Array
    report: Report


def decode_listed(files: Sequence[Path], options: DataOptions, work: Work) -> Decoded:
    """Choose size, channels and fit from the headers, then decode every file once into ``work.writer``.

    Raises:
        BadFileError: nothing could be decoded, or something could not and ``on_bad_file`` is ``fail``.
    """
    facts = [work.facts[path] for path in files]
    bad = [
        SkippedFile(path=str(path), reason=_without_path(fact.error, path))
        for path, fact in zip(files, facts, strict=True)
        if fact.error is not None
    ]
    good = [number for number, fact in enumerate(facts) if fact.header is not None]
    fail = options.on_bad_file == "fail"
    if bad and (fail or not good):
        more = f" ({len(bad)} such files)" if len(bad) > 1 else ""
        raise BadFileError(f"{bad[0].path}: {bad[0].reason}{more}. Fix: mend it, or --on-bad-file skip.")
    headers = [header for number in good if (header := facts[number].header) is not None]
    form, losses, words = choose_picture_form(headers, options)
    digests = [facts[number].digest for number in good]
    kept, late = decode_files(
        [files[n] for n in good], form, work.writer, fail=fail, track=work.track, digests=digests
    )
    used = [good[number] for number in kept]
    return Decoded(
        form=form,
        inputs=work.writer.finish(),
        kept=used,
        digests=np.frombuffer(b"".join(facts[number].digest for number in used), np.uint8).reshape(-1, 16),
        report=Report(
            found=len(files),
            used=len(used),
            skipped=tuple(sorted([*bad, *late], key=lambda item: item.path)),
            fit_losses=losses,
            notes=(words,) if words else (),
        ),
    )


def decode_files(
    files: Sequence[Path],
    form: Preprocessing,
    writer: RowWriter,
    *,
    fail: bool,
    track: Track,
    digests: Sequence[bytes] = (),
) -> tuple[list[int], list[SkippedFile]]:
    """Append every decodable file to `writer`, in order.

    Args:
        files: what to decode.
        form: size, channels and fit.
        writer: takes the rows.
        fail: raise `BadFileError` at the first file that cannot be decoded instead of leaving it out.
        track: progress.
        digests: content hash of each file; rows that the last entry holds in the same form are copied.

    Returns:
        Numbers of the files that were decoded, and the others with their reasons.
    """
    kept: list[int] = []
    skipped: list[SkippedFile] = []
    writer.expect(len(files), form.channels * form.size[0] * form.size[1])
    old = _old_rows(writer, form, digests)
    with quiet_pillow(), track(len(files), "decoding") as step:
        for number, outcome in enumerate(_outcomes(files, form, old)):
            step(1)
            if not isinstance(outcome, str):
                writer.append(outcome)
                kept.append(number)
            elif fail:
                raise BadFileError(f"{outcome}. Fix: remove it, or skip bad files with --on-bad-file skip.")
            else:
                skipped.append(SkippedFile(path=str(files[number]), reason=_without_path(outcome, files[number])))
    return kept, skipped


def _old_rows(writer: RowWriter, form: Preprocessing, digests: Sequence[bytes]) -> list[Array | None]:
    """For each file its row in the source's last entry, or None where it must be decoded."""
    previous = writer.previous
    if previous is None or previous.digests is None or previous.preprocessing != form:
        return []
    row_of = {digest.tobytes(): row for row, digest in enumerate(previous.digests)}
    return [None if (row := row_of.get(digest)) is None else previous.inputs[row] for digest in digests]


def _outcomes(files: Sequence[Path], form: Preprocessing, old: Sequence[Array | None]) -> Iterator[_Outcome]:
    """Pixels or the reason why not, in order, with a bounded number of chunks under way."""
    workers = decode_workers()
    waiting: deque[Future[list[_Outcome]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(files), _CHUNK):
                end = start + _CHUNK
                waiting.append(pool.submit(_decode_chunk, files[start:end], form, old[start:end]))
                if len(waiting) > 3 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode_chunk(files: Sequence[Path], form: Preprocessing, old: Sequence[Array | None]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for path, row in zip_longest(files, old):
        try:
            outcomes.append(decode_picture(form, path) if row is None else row)
        except (BadFileError, PathError) as error:
            outcomes.append(str(error))
    return outcomes


def _without_path(reason: str, path: Path) -> str:
    return reason.removeprefix(f"{path}: ")
