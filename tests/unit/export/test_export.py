"""Exported files: Pillow's arithmetic repeated, every route alike, nothing kept that differs."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from convlens import models
from convlens.cli._app import run_command_line
from convlens.data import Preprocessing
from convlens.data.pictures import decode_picture
from convlens.errors import ArgumentError, TrainingError
from convlens.export import RouteAnswers, agree, export
from convlens.export import files as export_files
from convlens.export.portable import Portable
from convlens.modelfile import load
from convlens.modelfile.card import ModelCard, write_model


@pytest.fixture
def run(tmp_path):
    """A run directory with an untrained net; its training data are not to be had."""
    torch.manual_seed(0)
    net = models.create("lenet5", in_channels=3, num_classes=4, input_size=(20, 24))
    card = ModelCard(
        architecture={"name": "lenet5", "in_channels": 3, "num_classes": 4, "input_size": [20, 24]},
        preprocessing=Preprocessing(kind="image", channels=3, size=(20, 24), mean=(120.0,) * 3, std=(60.0,) * 3),
        class_names=tuple("abcd"),
        data={"source": str(tmp_path / "gone")},
    )
    folder = tmp_path / "run"
    folder.mkdir()
    write_model(folder / "model.safetensors", net.state_dict(), card)
    return folder


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_pixels_are_pillows_exactly(fit, resample):
    rng = np.random.default_rng(0)
    preprocessing = Preprocessing(kind="image", channels=3, size=(28, 36), fit=fit, resample=resample, pad_value=9)
    portable = Portable(torch.nn.Flatten(), preprocessing)
    for height, width in [(28, 36), (9, 13), (50, 20), (100, 81), (1, 1), (211, 333), (30, 500)]:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = decode_picture(preprocessing, Image.fromarray(pixels))
        ours = portable.fitted(torch.from_numpy(pixels)[None])[0].numpy()
        np.testing.assert_array_equal(ours, expected, err_msg=f"{height}×{width}")


@pytest.mark.parametrize("to", ["onnx", "torch", "safetensors"])
def test_every_route_agrees_and_again_is_the_same_file(run, to):
    if to == "onnx":
        pytest.importorskip("onnxscript")
    done = export(run, to)
    assert done.routes == ("evaluate", "predict", f"the {to} file")
    assert done.largest_gap < 1e-4
    first = done.path.read_bytes()
    assert export(run, to).path.read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == sorted({"model.safetensors", done.path.name})


def test_onnx_takes_any_size_and_says_what_it_is(run):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = export(run, "onnx").path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 256, (3, 61, 47, 3), dtype=np.uint8)
    (answers,) = session.run(None, {"images": pixels})
    np.testing.assert_allclose(answers, load(run).predict(pixels).probabilities, atol=1e-4)
    facts = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
    assert facts["class_names"] == list("abcd")
    assert onnx.load(path).opset_import[0].version == export_files.OPSET


def test_int8_says_what_it_costs(run):
    pytest.importorskip("onnxscript")
    plain, small = export(run, "onnx"), export(run, "onnx", int8=True)
    assert 0 <= small.accuracy_cost <= 1
    assert small.path != plain.path
    assert small.path.stat().st_size < plain.path.stat().st_size
    with pytest.raises(ArgumentError, match="to='onnx'"):
        export(run, "torch", int8=True)


def test_the_torch_archive_holds_no_pickle(run):
    path = export(run, "torch").path
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            start = archive.read(entry)[:2]
            assert not start.startswith(b"\x80"), entry.filename
            assert not entry.filename.endswith(".pkl")
        assert b"convlens" not in archive.read(next(n for n in archive.namelist() if n.endswith("model.json")))


def test_what_differs_is_not_kept(run, monkeypatch):
    monkeypatch.setitem(
        export_files._WRITERS,
        "torch",
        lambda predictor, path, source, int8: (
            path.write_text("x") and (lambda inputs: np.full((len(inputs), 4), 0.25, np.float32))
        ),
    )
    with pytest.raises(TrainingError, match="the torch file differs from evaluate on input 0"):
        export(run, "torch")
    assert [path.name for path in run.iterdir()] == ["model.safetensors"]


def test_the_comparison_can_fail():
    base = np.array([[0.6, 0.4], [0.3, 0.7]], np.float32)
    assert agree([RouteAnswers("a", base), RouteAnswers("b", base + 5e-5)]) is None
    off = base.copy()
    off[1] = [0.7, 0.3]
    assert "b differs from a on input 1" in agree([RouteAnswers("a", base), RouteAnswers("b", off)])
    assert "nan" in agree([RouteAnswers("a", base), RouteAnswers("b", base * np.nan)])
    assert "answers (1, 2)" in agree([RouteAnswers("a", base), RouteAnswers("b", base[:1])])


def test_command(run, capsys):
    assert run_command_line(["export", str(run), "--to", "safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "safetensors"
    assert run_command_line(["export", str(run), "--to", "tflite"]) == 2
    assert run_command_line(["export", str(run / "none")]) == 1
