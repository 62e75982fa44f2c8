"""Scanning: tiles equal one pass, boxes in the picture's pixels, limits before decoding."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from convlens import models
from convlens.cli._app import run_command_line
from convlens.data import Preprocessing
from convlens.errors import ArgumentError, BadFileError, UnsupportedError
from convlens.explain.places import _is_blind_to_places
from convlens.explain.scan import Detection, PlaceMap, Scan, Scanner, open_big_picture, separate, tile_spans
from convlens.layers import Conv2d
from convlens.modelfile import Predictor
from convlens.modelfile.card import ModelCard, write_model
from convlens.models.fields import Axis
from convlens.planner.settings import Settings


@pytest.fixture(autouse=True)
def _nothing_is_timed(monkeypatch):
    monkeypatch.setattr("convlens.planner.settings._current", Settings(mode="estimate", precision="exact"))


def predictor(tmp_path, name="convnet-s", size=(20, 24), channels=3, **options):
    torch.manual_seed(0)
    architecture = {"name": name, "in_channels": channels, "num_classes": 3, "input_size": list(size), **options}
    net = models.create(**architecture).eval()
    for parameter in net.parameters():  # answers that differ from place to place
        parameter.data.mul_(2.0)
    card = ModelCard(
        architecture=architecture,
        preprocessing=Preprocessing(
            kind="image", channels=channels, size=size, mean=(120.0,) * channels, std=(60.0,) * channels
        ),
        class_names=("background", "cat", "dog"),
    )
    return Predictor(net, card, tmp_path / "model.safetensors")


def scanner_of(model, tile=768):
    """A scanner for which nothing is compiled or timed for each size of a tile."""
    scanner = Scanner(model, tile)
    for layer in scanner.net.modules():
        if hasattr(type(layer), "algorithm"):
            layer.algorithm = "vendor"
    return scanner


def noise(width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "size", "picture", "tile", "kernels"),
    [
        *(("convnet-s", (20, 24), (211, 173), tile, "vendor") for tile in (90, 128)),
        ("convnet-s", (20, 24), (211, 173), 101, "auto"),
        ("lenet5", (28, 28), (199, 150), 64, "vendor"),
        ("lenet5", (28, 28), (199, 150), 97, "auto"),
        ("resnet20", (32, 32), (257, 190), 109, "vendor"),
    ],
)
def test_tiles_equal_one_pass(tmp_path, name, size, picture, tile, kernels, monkeypatch):
    if kernels == "auto":  # whatever may round differently from place to place is let in
        monkeypatch.setattr("convlens.planner.settings._current", Settings(mode="estimate", precision="high"))
    model = predictor(tmp_path, name, size)
    scanner = scanner_of(model, tile) if kernels == "vendor" else Scanner(model, tile)
    image = noise(*picture)
    expected = scanner.probabilities(image)
    assert np.ptp(expected) > 0.01
    found = scanner.scan(image, threshold=1.0).maps[0]
    assert found.tiles > 1
    assert found.probability.shape == expected.shape[1:]
    np.testing.assert_allclose(found.probability, expected[1:].max(axis=0), atol=1e-5, rtol=0)


def test_only_kernels_that_are_blind_to_places_are_pinned():
    layer = Conv2d(16, 16, 3, padding=1)
    shape = (1, 16, 64, 64)
    layer.algorithm = "vendor"
    assert _is_blind_to_places(layer, shape)
    layer.algorithm = "fourier"
    with torch.no_grad():
        assert not _is_blind_to_places(layer, shape)


@pytest.mark.parametrize(
    "axis", [Axis(28, 4, 0), Axis(60, 4, -16), Axis(7, 1, -3), Axis(95, 8, -31), Axis(5, 3, 2)]
)
@pytest.mark.parametrize("length", [100, 333, 1001])
def test_spans_cover_each_place_once(axis, length):
    for tile in (axis.size, 110, 200, 5000):
        places = []
        for span in tile_spans(length, tile, axis):
            assert span.begin % axis.stride == 0
            stop = span.stop if span.stop is not None else (length - span.begin) // axis.stride
            assert 0 <= span.first <= stop
            for place in range(span.first, stop):
                low = place * axis.stride + axis.start
                assert low >= 0 or span.begin == 0
                assert span.begin + low + axis.size <= span.end or span.end == length
                places.append(span.begin // axis.stride + place)
        assert places == list(range(length // axis.stride))


def test_a_place_is_the_models_answer_for_its_box(tmp_path):
    model = predictor(tmp_path, "lenet5", (32, 32), channels=1)  # at this size it pads nothing
    image = noise(90, 70, "L")
    scan = scanner_of(model).scan(image, labels=["cat"], threshold=0.0, overlap=1.0)
    for detection in scan.detections[:: len(scan.detections) // 10]:
        patch = np.asarray(image.crop(tuple(int(n) for n in detection.box)))
        assert detection.label == "cat"
        assert detection.probability == pytest.approx(float(model.predict(patch).probabilities[0, 1]), abs=1e-5)


def test_scales_and_labels(tmp_path):
    scanner = scanner_of(predictor(tmp_path))
    scan = scanner.scan(noise(80, 60), scales=(1, 0.5, 0.1), threshold=0.0, overlap=1.0)
    assert [m.scale for m in scan.maps] == [1, 0.5]  # at 0.1 it is smaller than the window
    assert all(
        d.box[2] - d.box[0] == 24 / d.scale and d.box[3] - d.box[1] == 20 / d.scale for d in scan.detections
    )
    assert all(d.label != "background" for d in scan.detections)
    with pytest.raises(ArgumentError, match="label: expected one of background, cat, dog, received bird"):
        scanner.scan(noise(80, 60), labels=["bird"])
    with pytest.raises(ArgumentError, match="at least 24×20 pixels"):
        scanner.scan(noise(10, 10))


def test_separate_keeps_the_best_of_overlapping_boxes():
    best, near, far = (
        Detection("a", p, (left, 0.0, left + 10.0, 10.0), 1.0) for p, left in ((0.9, 0), (0.8, 4), (0.7, 9))
    )
    assert separate([far, near, best], 0.2) == [best, far]
    assert separate([], 0.2) == []


def test_heat_lies_in_the_middle_of_the_window():
    probability = np.zeros((6, 6), np.float32)
    probability[2, 3] = 1.0
    places = PlaceMap(1.0, (4, 4), (20, 20), probability, np.zeros((6, 6), np.int32), 1)
    rows, columns = np.nonzero(Scan((40, 40), [], [places]).heat())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 19, 20, 23)


def test_nets_that_look_at_the_whole_picture_are_refused(tmp_path):
    model = predictor(tmp_path)
    model.model.features[0].padding_mode = "circular"
    with pytest.raises(UnsupportedError, match="looks at the whole picture"):
        Scanner(model)


def test_pixels_are_counted_before_decoding(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bomb = tmp_path / "bomb.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    with pytest.raises(BadFileError, match="10,000,000,000 pixels, over the limit of 500,000,000"):
        open_big_picture(bomb, predictor(tmp_path))
    (tmp_path / "no.png").write_bytes(b"no")
    with pytest.raises(BadFileError, match="cannot be decoded"):
        open_big_picture(tmp_path / "no.png", predictor(tmp_path))


def test_command(tmp_path, capsys):
    model = predictor(tmp_path)
    write_model(model.path, model.model.state_dict(), model.card)
    noise(120, 90).save(tmp_path / "big.png")
    arguments = ["scan", str(model.path), str(tmp_path / "big.png"), "--json", "--threshold", "0"]
    assert (
        run_command_line([*arguments, "--scales", "1,0.5", "--tile", "80", "--boxes", str(tmp_path / "b.png")])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"]) == (120, 90)
    assert [scale["scale"] for scale in found["scales"]] == [1.0, 0.5]
    assert found["scales"][0]["tiles"] > 1
    assert set(found["detections"][0]) == {"label", "probability", "box", "scale"}
    with Image.open(tmp_path / "big-heat.png") as heat, Image.open(tmp_path / "b.png") as boxes:
        assert heat.size == boxes.size == (120, 90)
    assert run_command_line([*arguments, "--max-pixels", "100"]) == 1
    assert "10,800 pixels, over the limit of 100" in capsys.readouterr().err
    assert run_command_line(["scan"]) == 2


def test_a_large_tiff_is_looked_over_strip_by_strip(tmp_path, monkeypatch):
    monkeypatch.setattr("convlens.explain.scan._WHOLE_PIXELS", 1000)
    path, model = tmp_path / "a.tif", predictor(tmp_path)
    picture = noise(150, 130)
    picture.save(path, compression="tiff_adobe_deflate", strip_size=3000)
    opened = open_big_picture(path, model)
    assert not isinstance(opened, Image.Image)
    found = scanner_of(model, 64).scan(opened, threshold=0.0)
    expected = scanner_of(model, 64).scan(picture, threshold=0.0)
    assert found.detections == expected.detections
    np.testing.assert_array_equal(found.maps[0].probability, expected.maps[0].probability)
    # at another size a pixel in a thousand may differ by one level
    (half,), (expected_half,) = (scanner_of(model, 64).scan(p, (0.5,)).maps for p in (opened, picture))
    np.testing.assert_allclose(half.probability, expected_half.probability, atol=0.05)


def test_the_most_probable_places_are_kept(tmp_path, monkeypatch):
    scanner = scanner_of(predictor(tmp_path))
    values = np.random.default_rng(0).integers(0, 50, (37, 41)).astype(np.float32) / 50
    places = PlaceMap(1.0, (4, 4), (20, 24), values, np.ones(values.shape, np.int32), 1)
    expected = [d.box for d in scanner._detections(places, 0.3)]
    monkeypatch.setattr("convlens.explain.scan._AT_ONCE", 100)
    assert [d.box for d in scanner._detections(places, 0.3)] == expected
    monkeypatch.setattr("convlens.explain.scan._CANDIDATES", 60)
    assert [d.box for d in scanner._detections(places, 0.3)] == expected[:60]
