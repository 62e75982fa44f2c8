"""The embedded default: 1,797 digits written by 43 people, which come inside scikit-learn's wheel (no network)."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from convlens.data.formats.contract import Found, Report, Work
from convlens.data.options import DataOptions
from convlens.data.pictures import decode_picture
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.sizing import square

__all__ = ["DigitsReader"]


class DigitsReader:
    """8×8 counts of 0–16 (UCI "Optical Recognition of Handwritten Digits"), enlarged to 32×32 by default.

    LeNet-5 was published for 32×32 pictures, so that is what the digits come as.
    """

    name = "digits"
    pictures = False

    def matches(self, source: str) -> bool:
        """The name alone."""
        return source == "digits"

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """None: the data come with a library."""
        return []

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """All digits as uint8 ``[1797, channels, *size]``."""
        counts, labels = _table()
        preprocessing = Preprocessing(
            kind="image",
            channels=options.channels or 1,
            size=square(options.size) or (32, 32),
            fit=options.fit or "crop",
            resample="bicubic",
            scale=1 / 255,
        )
        small = np.round(counts * (255 / 16)).astype(np.uint8)
        inputs = np.stack([decode_picture(preprocessing, picture) for picture in small])
        return Found(
            preprocessing=preprocessing,
            inputs=inputs,
            labels=labels,
            class_names=tuple(str(digit) for digit in range(10)),
            names=[f"digits[{number}]" for number in range(len(inputs))],
            report=Report(found=len(inputs), used=len(inputs)),
        )


def _table() -> tuple[Array, Array]:
    """Counts float64 ``[1797, 8, 8]`` of 0–16 and labels int64 ``[1797]``.

    The table is read straight from the installed package: importing scikit-learn takes a second, the file 20 ms.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        table = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if table.exists():
            with gzip.open(table, "rt") as file:
                rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.asarray(bunch.images, np.float64), np.asarray(bunch.target, np.int64)
