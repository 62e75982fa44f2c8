"""One picture to pixels: modes, orientation, fits, damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens.data import Preprocessing
from convlens.data.pictures import decode_picture, read_header
from convlens.errors import BadFileError, PathError


def form(channels: int = 3, size: tuple[int, int] = (4, 6), **changes: object) -> Preprocessing:
    return Preprocessing(kind="image", channels=channels, size=size, **changes)  # type: ignore[arg-type]


def packed(picture: Image.Image, kind: str = "PNG", **save: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **save)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_eight_bit(mode: str, channels: int) -> None:
    if mode == "F":
        picture = Image.fromarray(np.full((4, 6), 0.5, np.float32))
    elif mode == "I":
        picture = Image.fromarray(np.full((4, 6), 128 * 257, np.int32))
    elif mode == "I;16":
        picture = Image.fromarray(np.full((4, 6), 128 << 8, np.uint16))
    elif mode == "LA":
        picture = Image.merge("LA", [Image.new("L", (6, 4), 128), Image.new("L", (6, 4), 255)])
    else:
        picture = Image.new("RGB", (6, 4), (128, 128, 128)).convert(mode)
    assert picture.mode == mode
    data = packed(picture, "TIFF")
    pixels = decode_picture(form(channels), data)
    assert pixels.shape == (channels, 4, 6)
    assert pixels.dtype == np.uint8
    if mode != "1":  # black and white dithers
        assert abs(int(pixels.mean()) - 128) <= 2


def test_transparent_parts_show_the_background() -> None:
    clear = packed(Image.new("RGBA", (6, 4), (10, 20, 30, 0)))
    assert (decode_picture(form(), clear) == 255).all()
    assert (decode_picture(form(background=0), clear) == 0).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_undone(turn: int) -> None:
    """The stored picture is the upright one after the inverse turn; decoding must give the upright one."""
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    data = packed(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    header = read_header(data, "picture")
    assert (header.height, header.width) == (4, 6)
    np.testing.assert_array_equal(decode_picture(form(1), data)[0], upright)


def test_crop_keeps_the_middle() -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 200
    assert (decode_picture(form(1, (4, 4), fit="crop"), wide) == 200).all()


def test_pad_keeps_everything() -> None:
    wide = np.full((4, 8), 200, np.uint8)
    pixels = decode_picture(form(1, (8, 8), fit="pad", pad_value=7), wide)[0]
    assert (pixels[2:6] == 200).all()
    assert (pixels[:2] == 7).all()
    assert (pixels[6:] == 7).all()


def test_stretch_fills() -> None:
    assert decode_picture(form(1, (8, 8), fit="stretch"), np.full((4, 8), 9, np.uint8)).shape == (1, 8, 8)


def test_draft_decoding_stays_close_to_full_decoding() -> None:
    smooth = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint8) // 2 + 30
    picture = Image.fromarray(np.clip(smooth, 0, 255).astype(np.uint8)).resize((512, 512))
    data = packed(picture, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BILINEAR))
    ours = decode_picture(form(1, (32, 32)), data)[0]
    assert np.abs(ours.astype(int) - full).mean() < 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello, this is no picture at all", "is not a picture: it holds text"),
        (b"\x00\x01\x02\x03" * 10, "is not a picture: it holds bytes"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BadFileError, match=f"photo.jpg: {reason}"):
        decode_picture(form(), data, "photo.jpg")
    with pytest.raises(BadFileError, match=reason):
        read_header(data, "photo.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_cut_file_is_a_bad_file(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    data = packed(Image.fromarray(noise), kind)
    assert decode_picture(form(), data).shape == (3, 4, 6)
    with pytest.raises(BadFileError):
        decode_picture(form(), data[: len(data) // 2])


def test_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.data.pictures.MAX_PIXELS", 23)
    with pytest.raises(BadFileError, match="6×4 pixels is over the limit of 23"):
        decode_picture(form(), packed(Image.new("L", (6, 4))), "bomb.png")


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 6), 0.5, np.float64),
        np.full((4, 6, 1), 128, np.uint8),
        np.full((3, 4, 6), 128, np.int64),
        np.full((4, 6, 3), 128 << 8, np.uint16),
    ],
)
def test_arrays_are_taken(values: np.ndarray) -> None:
    assert (decode_picture(form(), values) == 128).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((4, 6), 1.5), "float picture in 0–1"),
        (np.full((4, 6), np.nan), "float picture in 0–1"),
        (np.full((4, 6), 256), "whole numbers in 0–255"),
        (np.zeros((2, 3, 4, 5), np.uint8), "expected an array"),
    ],
)
def test_odd_arrays_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(BadFileError, match=reason):
        decode_picture(form(), values)


def test_missing_file_is_a_path_error(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="no such file"):
        decode_picture(form(), tmp_path / "none.png")
    with pytest.raises(PathError, match="is a folder"):
        decode_picture(form(), tmp_path)
