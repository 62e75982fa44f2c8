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
    assert 0 <= small.labels_changed <= 1
    first = small.path.read_bytes()
    assert export(run, "onnx", int8=True).path.read_bytes() == first
    assert small.accuracy is None  # its data are gone
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


def test_the_torch_archive_carries_its_card(run):
    found = {export_files.CARD_NAME: ""}
    torch.export.load(export(run, "torch").path, extra_files=found)
    card = json.loads(found[export_files.CARD_NAME])
    assert card["class_names"] == list("abcd")
    assert card["preprocessing"]["size"] == [20, 24]


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


def test_the_command_asks_training_and_the_server_too(run, capsys):
    pytest.importorskip("fastapi")
    assert run_command_line(["export", str(run), "--to", "torch", "--json"]) == 0
    routes = json.loads(capsys.readouterr().out)["routes"]
    assert routes == ["evaluate", "predict", "training's evaluation", "the server", "the torch file"]


@pytest.mark.parametrize("place", ["training's evaluation", "the server"])
def test_the_first_route_that_differs_is_named(run, place):
    wrong = {"training's evaluation": lambda raw: _right(run, raw), "the server": lambda raw: _right(run, raw)}
    wrong[place] = lambda raw: _right(run, raw)[:, ::-1].copy()
    with pytest.raises(TrainingError, match=f"not written: {place} differs from evaluate on input 0"):
        export(run, "safetensors", routes=wrong)
    assert [path.name for path in run.iterdir()] == ["model.safetensors"]


def _right(run, raw):
    return load(run).predict(raw).probabilities


@pytest.mark.parametrize("kind", ["signal", "sequence"])
def test_other_kinds_go_every_way(tmp_path, kind, capsys):
    pytest.importorskip("fastapi")
    pytest.importorskip("onnxscript")
    form = Preprocessing(
        kind=kind, channels=4, size=(48,), dtype="uint8" if kind == "sequence" else "float32",
        alphabet="ACGT" if kind == "sequence" else None,
    )  # fmt: skip
    architecture = {"name": "fcn1d", "in_channels": 4, "num_classes": 3, "input_size": [48]}
    torch.manual_seed(0)
    card = ModelCard(architecture=architecture, preprocessing=form, class_names=("a", "b", "c"))
    write_model(tmp_path / "m.safetensors", models.create(**architecture).state_dict(), card)
    assert run_command_line(["export", str(tmp_path / "m.safetensors"), "--to", "onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "the server" in found["routes"]
    assert found["largest_gap"] < 1e-4


def test_int8_accuracy_is_measured_on_labelled_data(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 156)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(low, low + 100, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    train = ["train", str(tmp_path / "data"), "--model", "lenet5", "--epochs", "2", "--out", str(tmp_path / "run")]
    assert run_command_line(train) == 0
    capsys.readouterr()
    assert run_command_line(["export", str(tmp_path / "run"), "--int8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy_samples"] > 0
    assert -1 <= found["accuracy_cost"] <= 1
