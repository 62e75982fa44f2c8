"""Files with flipped, cut and added bytes: an array or a `BadFileError`, never another exception."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens import data
from convlens.data.pictures import decode_picture, quiet_pillow, read_header
from convlens.errors import BadFileError, ConvlensError

FORM = data.Preprocessing(kind="image", channels=3, size=(8, 8))


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 12))):
        changed[int(draw.integers(len(changed)))] = int(draw.integers(256))
    how = draw.integers(4)
    if how == 0:
        return bytes(changed[: int(draw.integers(len(changed)))])
    return bytes(changed) + (b"\xff" * 50 if how == 1 else b"")


def packed(kind: str) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (20, 24, 3), np.uint8)
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(out, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_damaged_pictures(kind: str) -> None:
    whole, draw = packed(kind), np.random.default_rng(5)
    with quiet_pillow():
        for _ in range(150):
            content = damaged(whole, draw)
            for look in (read_header, lambda raw, name: decode_picture(FORM, raw, name)):
                try:
                    look(content, "file")
                except BadFileError as error:
                    assert str(error).startswith("file: ")


@pytest.mark.parametrize(
    "name", ["x.npy", "x.npz", "train-images-idx3-ubyte.gz", "train-images-idx3-ubyte", "s.mat"]
)
def test_damaged_arrays(tmp_path: Path, name: str) -> None:
    draw = np.random.default_rng(7)
    out, values = io.BytesIO(), draw.integers(0, 256, (12, 6, 5), np.uint8)
    if name.endswith(".npy"):
        np.save(out, values)
        np.save(tmp_path / "y.npy", np.arange(12) % 2)
    elif name.endswith(".npz"):
        np.savez(out, x=values, y=np.arange(12) % 2)
    elif name.endswith(".mat"):
        from scipy.io import savemat

        savemat(out, {"cube": values.astype(np.float64), "gt": np.arange(72).reshape(12, 6) % 3})
    else:
        out.write(bytes([0, 0, 8, 3, 0, 0, 0, 12, 0, 0, 0, 6, 0, 0, 0, 5]) + values.tobytes())
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 12]) + bytes(n % 2 for n in range(12))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    whole = out.getvalue()
    path = tmp_path / name
    for _ in range(60):
        content = damaged(whole, draw)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        try:
            data.open(path)
        except ConvlensError as error:
            assert str(error)
