"""Class folders of pictures: ``root/class/*.jpg``, or ``root/train/class/*.jpg`` beside ``dev`` and ``test``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convlens.data.formats.contract import Found, Work
from convlens.data.options import DataOptions
from convlens.data.picture_files import decode_listed
from convlens.data.survey import PICTURE_ENDINGS
from convlens.errors import DataError, PathError

__all__ = ["FolderReader", "Listing", "list_classes", "walk"]

_SIDES = {"train": 0, "training": 0, "dev": 1, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
_IGNORED_FOLDERS = ("__MACOSX",)


@dataclass(frozen=True)
class Listing:
    """Every wanted file with its class and side, in order of path, and how many other files there are."""

    files: list[Path]
    classes: list[str]
    sides: list[int]
    ignored: int


class FolderReader:
    """A folder whose sub-folders are the classes."""

    name = "class folders of pictures"
    pictures = True

    def matches(self, source: str) -> bool:
        """A folder with a picture file at any depth below it."""
        root = Path(source)
        return root.is_dir() and any(path.suffix for path, _ in walk(root) if _is_picture(path))

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Every picture file, in order of path."""
        return list_classes(Path(source), _is_picture).files

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Decode everything once into ``work.writer``."""
        root = Path(source)
        listing = list_classes(root, _is_picture)
        if not listing.files:
            raise DataError(
                f"{source}: the pictures lie directly in the folder, so nothing says which class they are of. "
                "Fix: make one folder per class, or write a CSV manifest with the columns path,label."
            )
        decoded = decode_listed(listing.files, options, work)
        used = decoded.kept
        class_names = tuple(sorted({listing.classes[number] for number in used}))
        number_of = {name: number for number, name in enumerate(class_names)}
        sides = np.array([listing.sides[number] for number in used], np.int8)
        return Found(
            preprocessing=decoded.form,
            inputs=decoded.inputs,
            labels=np.array([number_of[listing.classes[number]] for number in used], np.int64),
            class_names=class_names,
            names=[listing.files[number].relative_to(root).as_posix() for number in used],
            given=sides if (sides >= 0).any() else None,
            digests=decoded.digests,
            report=decoded.report.model_copy(update={"ignored": listing.ignored}),
        )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_ENDINGS


def walk(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every file below a folder with the folders it lies in, in order; not hidden ones; links once."""
    stack: list[tuple[Path, tuple[str, ...]]] = [(root, ())]
    seen: set[str] = set()
    while stack:
        folder, inside = stack.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except PermissionError:
            raise PathError(f"{folder}: may not be read (permission denied). Fix: chmod u+rx {folder}") from None
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        yield from ((Path(entry.path), inside) for entry in reversed(visible) if entry.is_file())
        stack += [
            (Path(entry.path), (*inside, entry.name))
            for entry in visible
            if entry.is_dir() and entry.name not in _IGNORED_FOLDERS
        ]


def list_classes(root: Path, wanted: Callable[[Path], bool]) -> Listing:
    """The files of class folders, with or without a level of ``train``, ``dev`` and ``test`` above them."""
    everything = list(walk(root))
    pictures = sorted((item for item in everything if wanted(item[0])), key=lambda item: item[0].as_posix())
    tops = {inside[0].lower() for _, inside in pictures if inside}
    split_layout = bool(tops & {"train", "training"}) and tops <= set(_SIDES)
    depth = 1 if split_layout else 0
    placed = [(path, inside) for path, inside in pictures if len(inside) > depth]
    return Listing(
        files=[path for path, _ in placed],
        classes=[inside[depth] for _, inside in placed],
        sides=[_SIDES[inside[0].lower()] if split_layout else -1 for _, inside in placed],
        ignored=len(everything) - len(placed),
    )
