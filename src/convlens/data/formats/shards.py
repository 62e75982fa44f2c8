"""A folder of WebDataset shards (``*.tar``): read in two passes, headers first; one picture is held at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convlens.data.dataset import SkippedFile
from convlens.data.formats.contract import Found, Report, Work
from convlens.data.options import DataOptions
from convlens.data.pictures import PictureHeader, decode_picture, quiet_pillow, read_header
from convlens.data.shards import read_shards
from convlens.data.sizing import choose_picture_form
from convlens.data.tables import class_numbers, sides_from_words
from convlens.errors import BadFileError

__all__ = ["ShardReader"]


class ShardReader:
    """Samples of pictures and classes in tar files."""

    name = "WebDataset shards (.tar)"
    pictures = False

    def matches(self, source: str) -> bool:
        """A ``.tar`` file, or a folder with at least one in it."""
        return bool(_shards(Path(source)))

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Every shard, in order of name."""
        return _shards(Path(source))

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Decode every picture once into ``work.writer``."""
        paths = _shards(Path(source))
        headers: list[PictureHeader] = []
        skipped: list[SkippedFile] = []
        bad: set[str] = set()
        total = 0
        with quiet_pillow():
            for name, picture, _, _ in read_shards(paths):
                total += 1
                try:
                    headers.append(read_header(picture, name))
                except BadFileError as error:
                    bad.add(name)
                    _skip(name, error, skipped, options)
            if not headers:
                raise BadFileError(f"{source}: no picture in the shards could be read.")
            form, losses, words = choose_picture_form(headers, options)
            work.writer.expect(len(headers), int(np.prod(form.shape)))
            names: list[str] = []
            labels: list[str] = []
            parts: list[str] = []
            with work.track(total, "decoding") as step:
                for name, picture, label, part in read_shards(paths):
                    step(1)
                    if name in bad:
                        continue
                    try:
                        work.writer.append(decode_picture(form, picture, name))
                    except BadFileError as error:
                        _skip(name, error, skipped, options)
                        continue
                    names.append(name)
                    labels.append(label)
                    parts.append(part or "")
        numbers, class_names = class_numbers(labels)
        sides = sides_from_words(parts, Path(source))
        return Found(
            preprocessing=form,
            inputs=work.writer.finish(),
            labels=numbers,
            class_names=class_names,
            names=names,
            given=sides if (sides >= 0).any() else None,
            report=Report(
                found=total,
                used=len(names),
                skipped=tuple(skipped),
                fit_losses=losses,
                notes=(words,) if words else (),
            ),
        )


def _skip(name: str, error: BadFileError, skipped: list[SkippedFile], options: DataOptions) -> None:
    if options.on_bad_file == "fail":
        raise error
    skipped.append(SkippedFile(path=name, reason=str(error).removeprefix(f"{name}: ")))


def _shards(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    return sorted(source.glob("*.tar")) if source.is_dir() else []
