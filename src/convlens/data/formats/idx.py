"""IDX files as MNIST ships them, gzipped or not, found by their magic number and paired by their names."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from convlens.data.formats.contract import Found, Report, Work
from convlens.data.options import DataOptions
from convlens.data.pictures import decode_picture, read_bytes
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.sizing import square
from convlens.errors import BadFileError, DataError

__all__ = ["IdxReader", "read_idx"]

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_AXES = 8
_LONGEST_HEADER = 4 + 4 * _MAX_AXES
_MAX_PACKED = 8 * 2**30
_TEST_WORDS = ("t10k", "test")
_DEV_WORDS = ("dev", "val")


class IdxReader:
    """A folder of IDX files, or one images file whose labels lie beside it."""

    name = "IDX files"
    pictures = False

    def matches(self, source: str) -> bool:
        """Any IDX file in the folder, or the file itself."""
        return bool(_idx_files(Path(source)))

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Images and labels of every pair."""
        return [path for pair in _pairs(Path(source), options) for path in pair]

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Every pair joined: uint8 ``[N, 1, rows, columns]``, split as the names say (``train``, ``t10k``)."""
        images, labels, sides, names = [], [], [], []
        for image_path, label_path in _pairs(Path(source), options):
            pictures, classes = read_idx(image_path), read_idx(label_path).astype(np.int64)
            if len(pictures) != len(classes):
                raise DataError(
                    f"{image_path.name} holds {len(pictures)} images but {label_path.name} {len(classes)} labels; "
                    "they are not a pair."
                )
            images.append(pictures)
            labels.append(classes)
            sides.append(np.full(len(classes), _side(image_path.name), np.int8))
            names += [f"{image_path.name}[{number}]" for number in range(len(classes))]
        if len({pictures.shape[1:] for pictures in images}) > 1:
            shapes = ", ".join("×".join(map(str, pictures.shape[1:])) for pictures in images)
            raise DataError(f"{source}: the IDX files hold pictures of different sizes ({shapes}).")
        joined, preprocessing = _as_pictures(np.concatenate(images), options)
        numbers = np.concatenate(labels)
        present, renumbered = np.unique(numbers, return_inverse=True)
        given = np.concatenate(sides)
        return Found(
            preprocessing=preprocessing,
            inputs=joined,
            labels=renumbered.astype(np.int64),
            class_names=tuple(str(number) for number in present),
            names=names,
            given=given if len(sides) > 1 else None,
            report=Report(found=len(joined), used=len(joined)),
        )


def read_idx(path: Path) -> Array:
    """One IDX file as an array of the type and shape its header gives.

    Format: two zero bytes, type, number of axes, then one big-endian uint32 per axis (LeCun, "MNIST").
    """
    data = read_bytes(path)
    try:
        if data[:2] == b"\x1f\x8b":
            # no more than the header asks for is unpacked: a small file must not fill the memory
            with gzip.open(io.BytesIO(data)) as packed:
                start = packed.read(_LONGEST_HEADER)
                data = start + packed.read(max(0, min(_bytes_of(start), _MAX_PACKED) - len(start)))
        kind, shape = _header(data)
        values = np.frombuffer(data, kind, offset=4 + 4 * len(shape), count=math.prod(shape))
        return values.reshape(shape)
    except (KeyError, IndexError, ValueError, OverflowError, EOFError, OSError, struct.error, zlib.error) as error:
        raise BadFileError(f"{path}: is not a whole IDX file ({error}).") from None


def _header(data: bytes) -> tuple[Any, tuple[int, ...]]:
    """Type and shape."""
    kind, axes = _TYPES[data[2]], data[3]
    if axes > _MAX_AXES:
        raise ValueError(f"{axes} axes")
    return kind, struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])


def _bytes_of(start: bytes) -> int:
    """Bytes of the whole file by its header."""
    kind, shape = _header(start)
    return 4 + 4 * len(shape) + math.prod(shape) * int(np.dtype(kind).itemsize)


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            if start != b"\x1f\x8b":
                return file.read(4)
            with gzip.open(file) as inner:
                return inner.read(4)
    except (OSError, EOFError, zlib.error):
        return b""


def _is_idx(path: Path) -> bool:
    magic = _magic(path)
    return len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _TYPES and 1 <= magic[3] <= 4


def _idx_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if _is_idx(source) else []
    if not source.is_dir():
        return []
    likely = [
        path
        for path in sorted(source.iterdir())
        if path.is_file() and "idx" in path.name.lower() or path.suffix in (".idx", "") and path.is_file()
    ]
    return [path for path in likely if _is_idx(path)]


def _side(name: str) -> int:
    lowered = name.lower()
    if any(word in lowered for word in _TEST_WORDS):
        return 2
    return 1 if any(word in lowered for word in _DEV_WORDS) else 0


def _labels_name(name: str) -> set[str]:
    """Names under which the labels of an images file may lie."""
    swapped = name.replace("images", "labels").replace("idx3", "idx1")
    bare = swapped.removesuffix(".gz")
    return {swapped, bare, bare + ".gz"}


def _pairs(source: Path, options: DataOptions) -> list[tuple[Path, Path]]:
    folder = source if source.is_dir() else source.parent
    files = _idx_files(folder)
    pictures = [path for path in files if _magic(path)[3] >= 3]
    if source.is_file():
        pictures = [source]
    seen: dict[str, Path] = {}
    for path in pictures:  # the same file gzipped and not: one of them is enough
        seen.setdefault(path.name.removesuffix(".gz"), path)
    pairs = []
    for path in seen.values():
        wanted = {Path(options.labels).name} if options.labels else _labels_name(path.name)
        matching = [other for other in files if other.name in wanted and other != path]
        if not matching:
            wanted_name = min(_labels_name(path.name))
            raise DataError(
                f"{path}: found the images but no labels; expected {wanted_name} beside it. "
                "Fix: name the labels file with --labels."
            )
        pairs.append((path, matching[0]))
    if not pairs:
        raise DataError(f"{source}: holds IDX labels but no IDX images.")
    return sorted(pairs, key=lambda pair: (_side(pair[0].name), pair[0].name))


def _as_pictures(values: Array, options: DataOptions) -> tuple[Array, Preprocessing]:
    """Pictures ``[N, rows, columns]`` or ``[N, rows, columns, colours]`` in storage form."""
    if values.dtype != np.uint8:
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0 or high > 255:
            raise DataError(f"IDX pictures must hold 0–255, received {low} to {high}.")
        values = values.astype(np.uint8)
    colours = values.shape[3] if values.ndim == 4 else 1
    native = (int(values.shape[1]), int(values.shape[2]))
    preprocessing = Preprocessing(
        kind="image",
        channels=options.channels or (3 if colours == 3 else 1),
        size=square(options.size) or native,
        fit=options.fit or "crop",
        scale=1 / 255,
    )
    if preprocessing.size == native and preprocessing.channels == colours == 1:
        return values[:, None], preprocessing
    return np.stack([decode_picture(preprocessing, picture) for picture in values]), preprocessing
