"""Sets known by name: MNIST, Fashion-MNIST and CIFAR-10, downloaded once into the cache."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import numpy as np

from convlens.data import progress
from convlens.data.download import Remote, fetch
from convlens.data.formats.contract import Found, Report, Work
from convlens.data.formats.idx import IdxReader
from convlens.data.options import DataOptions
from convlens.data.pictures import decode_picture
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.sizing import square
from convlens.environment import cache_dir
from convlens.errors import BadFileError

__all__ = ["KnownReader", "known_names"]


def _idx_set(bases: tuple[str, ...], sums: dict[str, str]) -> tuple[Remote, ...]:
    return tuple(Remote(name, tuple(base + name for base in bases), md5) for name, md5 in sums.items())


_SETS = {
    "mnist": _idx_set(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": _idx_set(
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": (
        Remote(
            "cifar-10-binary.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            "c32a1d4ab5d03f1284b67883e8d87530",
        ),
    ),
}
_FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_ROW = 1 + 3 * 32 * 32


def known_names() -> tuple[str, ...]:
    """Names that are downloaded."""
    return tuple(_SETS)


class KnownReader:
    """A folder of that name here goes before the download."""

    name = "known sets (mnist, fashion_mnist, cifar10)"
    pictures = False

    def matches(self, source: str) -> bool:
        """One of the names, and no such path."""
        return source in _SETS and not Path(source).exists()

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """The downloaded files, fetched where they are missing."""
        return fetch(_SETS[source], _folder(source), progress.visible)

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """The published parts: train and test; dev is taken out of train."""
        if source == "cifar10":
            return _cifar10(_folder(source) / _SETS[source][0].name, options)
        found = IdxReader().read(str(_folder(source)), options, work)
        if source != "fashion_mnist":
            return found
        return Found(
            preprocessing=found.preprocessing,
            inputs=found.inputs,
            labels=found.labels,
            class_names=tuple(_FASHION_CLASSES[int(number)] for number in found.class_names),
            names=found.names,
            given=found.given,
            report=found.report,
        )


def _folder(name: str) -> Path:
    return cache_dir() / "downloads" / name


def _cifar10(archive: Path, options: DataOptions) -> Found:
    """The binary version: rows of a label byte and 3072 bytes red, green, blue. (The other one is a pickle.)"""
    rows: list[Array] = []
    names: list[str] = []
    sides: list[Array] = []
    try:
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                file = tar.extractfile(member) if member.name.endswith(".bin") else None
                if file is None:
                    continue
                values = np.frombuffer(file.read(), np.uint8).reshape(-1, _CIFAR_ROW)
                rows.append(values)
                sides.append(np.full(len(values), 2 if "test" in member.name else 0, np.int8))
                names += [f"{Path(member.name).name}[{number}]" for number in range(len(values))]
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise BadFileError(
            f"{archive}: is not a whole archive ({error}). Fix: delete it, and try again."
        ) from None
    joined = np.concatenate(rows)
    pictures = joined[:, 1:].reshape(-1, 3, 32, 32)
    form = Preprocessing(
        kind="image",
        channels=options.channels or 3,
        size=square(options.size) or (32, 32),
        fit=options.fit or "crop",
        scale=1 / 255,
    )
    if form.shape != (3, 32, 32):
        pictures = np.stack([decode_picture(form, picture) for picture in pictures])
    return Found(
        preprocessing=form,
        inputs=np.ascontiguousarray(pictures),
        labels=joined[:, 0].astype(np.int64),
        class_names=_CIFAR_CLASSES,
        names=names,
        given=np.concatenate(sides),
        report=Report(found=len(joined), used=len(joined)),
    )
