"""WebDataset shards: tar files of pictures with their classes, the usual form of data for many machines.

Every machine opens the same shards (on a shared disk, say) and decodes them once into its own cache. What
`write_shards` makes holds the original files where the samples are files, so nothing is lost; the class and the
part go into a ``.json`` beside each picture.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convlens.data.dataset import SPLITS, Dataset
from convlens.data.pictures import read_bytes
from convlens.data.preprocessing import Array
from convlens.errors import DataError, MissingExtraError, StorageError

__all__ = ["read_shards", "write_shards"]

PICTURE_KEYS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm")


def read_shards(paths: list[Path]) -> Iterator[tuple[str, bytes, str, str | None]]:
    """``(name, picture, class, part)`` of every sample; the class from ``.json`` (label), ``.cls`` or ``.txt``.

    Raises:
        MissingExtraError: webdataset is not installed.
        DataError: a sample without picture or class, or a damaged tar.
    """
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError:
        raise MissingExtraError("webdataset", "shards", "Reading WebDataset shards") from None
    for path in paths:
        with path.open("rb") as stream:  # opened here, because the library leaves closing to chance
            samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
            try:
                for sample in samples:
                    yield _understood(sample, path)
            except (tarfile.TarError, EOFError, OSError, ValueError) as error:
                raise DataError(f"{path}: is damaged ({error}).") from None


def _understood(sample: dict[str, Any], path: Path) -> tuple[str, bytes, str, str | None]:
    name = str(sample["__key__"])
    picture = next((sample[key] for key in PICTURE_KEYS if key in sample), None)
    if picture is None:
        kinds = ", ".join(key for key in sample if not key.startswith("__"))
        raise DataError(f"{path}: the sample {name} has no picture; it has {kinds}.")
    label, part = _label_of(sample, f"{path}: {name}")
    if label is None:
        raise DataError(f"{path}: the sample {name} has no class (.json, .cls or .txt).")
    return name, picture, label, part


def _label_of(sample: dict[str, Any], where: str) -> tuple[str | None, str | None]:
    if "json" in sample:
        try:
            described = json.loads(sample["json"])
        except ValueError as error:
            raise DataError(f"{where}.json is not JSON ({error}).") from None
        label = described.get("label", described.get("class", described.get("cls")))
        if label is not None:
            return str(label), described.get("split")
    for key in ("cls", "txt"):
        if key in sample:
            return sample[key].decode("utf-8", "replace").strip(), None
    return None, None


def write_shards(dataset: Dataset, folder: Path, per_shard: int = 1000) -> list[Path]:
    """Write ``shard-000000.tar`` … with the samples of every part mixed by content, and return their paths.

    Args:
        dataset: pictures with one label each.
        folder: made where it is missing.
        per_shard: samples per tar.

    Raises:
        DataError: no pictures, or several labels a sample.
        StorageError: no space or no permission.
    """
    if dataset.kind != "image" or dataset.multilabel:
        raise DataError(f"{dataset.source}: shards hold pictures with one label each.")
    side = np.full(len(dataset), -1)
    for number, part in enumerate(SPLITS):
        side[dataset.splits[part]] = number
    order = np.lexsort(np.ascontiguousarray(dataset.digests).T)  # by content: mixed, and always the same
    root, written = Path(dataset.source), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for shard, start in enumerate(range(0, len(order), per_shard)):
            path = folder / f"shard-{shard:06d}.tar"
            partial = path.with_suffix(".partial")
            with tarfile.open(partial, "w") as tar:
                for number in order[start : start + per_shard].tolist():
                    ending, picture = _original(root / dataset.names[number], dataset.inputs[number])
                    described = {
                        "label": dataset.class_names[int(dataset.labels[number])],
                        "split": SPLITS[side[number]],
                        "name": dataset.names[number],
                    }
                    _add(tar, f"{number:09d}.{ending}", picture)
                    _add(tar, f"{number:09d}.json", json.dumps(described).encode())
            partial.replace(path)
            written.append(path)
    except OSError as error:
        raise StorageError(f"{folder}: the shards cannot be written ({error.strerror or error}).") from None
    return written


def _original(path: Path, stored: Array) -> tuple[str, bytes]:
    """The file the sample came from, or its stored form as PNG where it came from an array."""
    ending = path.suffix.lower().lstrip(".")
    if ending in PICTURE_KEYS and path.is_file():
        return ending, read_bytes(path)
    out = io.BytesIO()
    pixels = np.asarray(stored)
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(out, "PNG")
    return "png", out.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
