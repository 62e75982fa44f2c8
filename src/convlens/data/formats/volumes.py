"""Class folders of volumes: NIfTI (``.nii``, ``.nii.gz``) or ``.npy``, one file per sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convlens.data.arrays import decode_volume, read_volume
from convlens.data.dataset import SkippedFile
from convlens.data.formats.contract import Found, Report, Work
from convlens.data.formats.folders import list_classes, walk
from convlens.data.options import DataOptions
from convlens.data.preprocessing import Preprocessing
from convlens.errors import BadFileError, DataError, PathError

__all__ = ["VolumeFolderReader"]

_NATIVE_LIMIT = 96
_DEFAULT_SIDE = 48


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz", ".npy"))


class VolumeFolderReader:
    """A folder whose sub-folders are the classes; all volumes are brought to one size."""

    name = "class folders of volumes (.nii, .npy)"
    pictures = False

    def matches(self, source: str) -> bool:
        """A folder with a volume file in a sub-folder."""
        root = Path(source)
        return root.is_dir() and any(inside and _is_volume(path) for path, inside in walk(root))

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Every volume file, in order of path."""
        return list_classes(Path(source), _is_volume).files

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Decode everything once into ``work.writer``; the first readable volume says size and channels."""
        root = Path(source)
        listing = list_classes(root, _is_volume)
        form: Preprocessing | None = None
        used: list[int] = []
        skipped: list[SkippedFile] = []
        with work.track(len(listing.files), "decoding") as step:
            for number, path in enumerate(listing.files):
                try:
                    values = read_volume(path)
                    if form is None:
                        form = _form_for(values.shape, options)
                        work.writer.expect(len(listing.files), 4 * int(np.prod(form.shape)))
                    work.writer.append(decode_volume(form, values, str(path)))
                    used.append(number)
                except (BadFileError, PathError) as error:
                    if options.on_bad_file == "fail":
                        raise
                    skipped.append(SkippedFile(path=str(path), reason=str(error).removeprefix(f"{path}: ")))
                step(1)
        if form is None:
            reason = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
            raise DataError(f"{source}: no volume could be read{reason}.")
        class_names = tuple(sorted({listing.classes[number] for number in used}))
        sides = np.array([listing.sides[number] for number in used], np.int8)
        return Found(
            preprocessing=form,
            inputs=work.writer.finish(),
            labels=np.array([class_names.index(listing.classes[number]) for number in used], np.int64),
            class_names=class_names,
            names=[listing.files[number].relative_to(root).as_posix() for number in used],
            given=sides if (sides >= 0).any() else None,
            digests=np.frombuffer(
                b"".join(work.facts[listing.files[number]].digest for number in used), np.uint8
            ).reshape(-1, 16),
            report=Report(
                found=len(listing.files), used=len(used), skipped=tuple(skipped), ignored=listing.ignored
            ),
        )


def _form_for(shape: tuple[int, ...], options: DataOptions) -> Preprocessing:
    """The first volume's own size up to 96 a side, else 48×48×48."""
    size = options.size * 3 if options.size and len(options.size) == 1 else options.size
    if size is None:
        size = shape[1:] if max(shape[1:]) <= _NATIVE_LIMIT else (_DEFAULT_SIDE,) * 3
    return Preprocessing(
        kind="volume", channels=shape[0], size=size, fit=options.fit or "stretch", dtype="float32"
    )
