"""Boxes of a TIFF are those of the whole picture, however it is written."""

from __future__ import annotations

import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from convlens.data import Preprocessing
from convlens.data.pictures import upright_picture
from convlens.data.tiff_regions import TiffRegions
from convlens.errors import BadFileError, ConvlensError
from convlens.explain.scan import open_big_picture
from fuzzing import mutated

WIDTH, HEIGHT = 173, 211


def form(channels):
    return Preprocessing(kind="image", channels=channels, size=(8, 8))


def drawn(mode):
    random = np.random.default_rng(0)
    rough = Image.fromarray(random.integers(0, 256, (30, 25, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    if mode == "I;16":
        return Image.fromarray(np.asarray(rough.convert("L")).astype(np.uint16) * 257)
    return rough.convert(mode)


def written(path, mode, **how):
    drawn(mode).save(path, "TIFF", strip_size=600 if mode == "1" else WIDTH * 40, **how)
    return path


def regions(path, channels):
    with Image.open(path) as opened:
        return TiffRegions(path, form(channels), opened)


def whole(path, channels):
    return np.asarray(upright_picture(form(channels), path))


def tiled(path, side=64):
    """Grey, uncompressed, in tiles; Pillow writes none."""
    pixels = np.asarray(drawn("L"))
    down, across = -(-HEIGHT // side), -(-WIDTH // side)
    padded = np.pad(pixels, ((0, down * side - HEIGHT), (0, across * side - WIDTH)))
    tiles = padded.reshape(down, side, across, side).swapaxes(1, 2).reshape(-1, side * side)
    start = 8
    for _ in range(2):  # the second time with where the tags end
        ifd = TiffImagePlugin.ImageFileDirectory_v2(b"MM\0*\0\0\0\0")
        ifd[256], ifd[257], ifd[258], ifd[259], ifd[262], ifd[277] = WIDTH, HEIGHT, 8, 1, 1, 1
        ifd[322] = ifd[323] = side
        for tag, values in (
            (324, range(start, start + tiles.size, side * side)),
            (325, [side * side] * len(tiles)),
        ):
            ifd.tagtype[tag] = TiffImagePlugin.TiffTags.LONG
            ifd[tag] = tuple(values)
        file = io.BytesIO()
        ifd.save(file)
        start = file.tell()
    path.write_bytes(file.getvalue() + tiles.tobytes())
    return path


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("L", {}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
        ("RGB", {"compression": "jpeg"}),
        ("P", {"compression": "packbits"}),
        ("LA", {"compression": "tiff_lzw"}),
        ("1", {"compression": "group4"}),
        ("I;16", {"compression": "tiff_adobe_deflate"}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_those_of_the_whole(tmp_path, monkeypatch, mode, how, channels):
    monkeypatch.setattr("convlens.data.tiff_regions._CUT", 10_000)
    if "compression" in how and not features.check("libtiff"):
        pytest.skip("Pillow was built without libtiff")
    path = written(tmp_path / "a.tif", mode, **how)
    expected, found = whole(path, channels), regions(path, channels)
    assert found.size == (WIDTH, HEIGHT)
    assert len(found._places) > 1
    for box in ((0, 0, WIDTH, HEIGHT), (3, 38, 100, 83), (170, 200, WIDTH, HEIGHT)):
        left, top, right, bottom = box
        np.testing.assert_array_equal(np.asarray(found.crop(box)), expected[top:bottom, left:right])


def test_tiles_and_bytes_the_other_way_round(tmp_path):
    path = tiled(tmp_path / "a.tif")
    found = regions(path, 1)
    np.testing.assert_array_equal(np.asarray(found.crop((0, 0, WIDTH, HEIGHT))), np.asarray(drawn("L")))
    np.testing.assert_array_equal(np.asarray(found.crop((60, 5, 140, 70))), np.asarray(drawn("L"))[5:70, 60:140])


@pytest.mark.parametrize("scale", [0.13, 0.5, 1.7])
def test_another_size_is_that_of_the_whole(tmp_path, scale, monkeypatch):
    monkeypatch.setattr("convlens.data.tiff_regions._BAND_ROWS", 50)
    path = written(tmp_path / "a.tif", "RGB", compression="tiff_lzw")
    size = round(WIDTH * scale), round(HEIGHT * scale)
    expected = np.asarray(upright_picture(form(3), path).resize(size, Image.Resampling.BILINEAR))
    found = regions(path, 3).resize(size, Image.Resampling.BILINEAR)
    middle = size[1] // 2
    for box in ((0, 0, *size), (2, middle, size[0], size[1])):
        part = np.asarray(found.crop(box))
        # Pillow takes boxes as 32-bit floats, so now and then the last bit of a pixel is another
        apart = np.abs(part.astype(int) - expected[box[1] : box[3], box[0] : box[2]])
        assert apart.max() <= 1
        assert np.count_nonzero(apart) < 0.005 * apart.size


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("convlens.data.tiff_regions._KEPT", 1)
    found = regions(written(tmp_path / "a.tif", "L", compression="tiff_lzw"), 1)
    for top in range(0, HEIGHT - 10, 10):
        found.crop((0, top, WIDTH, top + 10))
    assert len(found._kept) < len(found._places)


def test_damaged_parts_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("convlens.data.tiff_regions._CUT", 10_000)
    path = written(tmp_path / "a.tif", "L")
    found = regions(path, 1)
    path.write_bytes(path.read_bytes()[:-3000])
    found.crop((0, 0, WIDTH, 10))
    with pytest.raises(BadFileError, match="truncated"):
        found.crop((0, 0, WIDTH, HEIGHT))


def test_what_must_be_decoded_as_a_whole(tmp_path):
    for name, save in (
        ("png", lambda path: drawn("L").save(path, "PNG")),
        ("float", lambda path: drawn("F").save(path, "TIFF")),
        ("aside", lambda path: drawn("L").save(path, "TIFF", tiffinfo={274: 6})),
    ):
        save(tmp_path / name)
        with pytest.raises(ValueError):
            regions(tmp_path / name, 1)


@pytest.mark.parametrize("kind", ["tiles", "tiff_lzw", "jpeg"])
def test_damaged_files_are_refused_in_our_words(tmp_path, monkeypatch, kind, recwarn):
    monkeypatch.setattr("convlens.explain.scan._WHOLE_PIXELS", 0)
    path, model = tmp_path / "a.tif", SimpleNamespace(preprocessing=form(3))
    good = tiled(path) if kind == "tiles" else written(path, "RGB", compression=kind)
    content, refused = good.read_bytes(), 0
    for number in range(120):
        path.write_bytes(mutated(random.Random(number), content[:400] + content[-400:]) + content[800:])
        try:
            picture = open_big_picture(path, model, max_pixels=1_000_000)
            picture.crop((0, 0, min(300, picture.size[0]), min(300, picture.size[1])))
        except ConvlensError:
            refused += 1
    assert refused > 10
