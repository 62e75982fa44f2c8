"""The embedded default: 1,797 digits written by 43 people, which come inside scikit-learn's wheel (no network)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convlens.data.formats.contract import Found, Report
from convlens.data.options import DataOptions
from convlens.data.pictures import decode_picture
from convlens.data.preprocessing import Preprocessing

__all__ = ["DigitsReader"]


class DigitsReader:
    """8×8 counts of 0–16 (UCI "Optical Recognition of Handwritten Digits"), enlarged to 32×32 by default.

    LeNet-5 was published for 32×32 pictures, so that is what the digits come as.
    """

    name = "digits"

    def matches(self, source: str) -> bool:
        """The name alone."""
        return source == "digits"

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """None: the data come with a library."""
        return []

    def read(self, source: str, options: DataOptions) -> Found:
        """All digits as uint8 ``[1797, channels, *size]``."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        preprocessing = Preprocessing(
            kind="image",
            channels=options.channels or 1,
            size=square(options.size) or (32, 32),
            fit=options.fit or "crop",
            resample="bicubic",
            scale=1 / 255,
        )
        counts = np.asarray(bunch.images, np.float64)
        small = np.round(counts * (255 / 16)).astype(np.uint8)
        inputs = np.stack([decode_picture(preprocessing, picture) for picture in small])
        return Found(
            preprocessing=preprocessing,
            inputs=inputs,
            labels=np.asarray(bunch.target, np.int64),
            class_names=tuple(str(digit) for digit in range(10)),
            names=[f"digits[{number}]" for number in range(len(inputs))],
            report=Report(found=len(inputs), used=len(inputs)),
        )


def square(size: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """One side stands for both."""
    return size * 2 if size is not None and len(size) == 1 else size
