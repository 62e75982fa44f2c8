"""`convlens.load`: one file is enough to predict, whatever form the pictures come in; bad files are refused."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import convlens
from convlens.data import Preprocessing
from convlens.errors import ModelFileError, PathError, ShapeError
from convlens.modelfile.card import (
    ModelCard,
    TestEvaluation,
    add_evaluation,
    now,
    read_card,
    read_model,
    write_model,
)


def _make(path, channels=1, size=(12, 12), kind="image", multilabel=False, **changes):
    torch.manual_seed(0)
    name = "lenet5" if kind == "image" else "fcn1d"
    architecture = {"name": name, "in_channels": channels, "num_classes": 3, "input_size": list(size)}
    network = convlens.models.create(**architecture).eval()
    dtype = "uint8" if kind == "image" else "float32"
    preprocessing = Preprocessing(
        kind=kind,
        channels=channels,
        size=size,
        dtype=dtype,
        scale=1 / 255,
        mean=(0.3,) * channels,
        std=(0.5,) * channels,
    )
    card = ModelCard(
        architecture=architecture, preprocessing=preprocessing, class_names=("a", "b", "c"), multilabel=multilabel,
        created=now(),
    ).model_copy(update=changes)  # fmt: skip
    write_model(path, network.state_dict(), card)
    return network, card


@pytest.fixture
def grey(tmp_path):
    return _make(tmp_path / "model.safetensors")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 12, 12), dtype=np.uint8)


def _expected(network, card, stored):
    return network(card.preprocessing.normalise(torch.from_numpy(stored))).softmax(1).detach().numpy()


def test_every_form_of_picture_gives_the_same_answer(grey, tmp_path, pixels):
    expected = _expected(*grey, pixels[:, None])
    files = []
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    model = convlens.load(tmp_path)
    forms = [
        files,
        [str(file) for file in files],
        (file.read_bytes() for file in files),
        [Image.open(file) for file in files],
        pixels,
        pixels[:, None],
        pixels[..., None],
        torch.from_numpy(pixels),
        list(torch.from_numpy(pixels)),
    ]
    for form in forms:
        labels, probabilities = model.predict(form, batch_size=2)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        assert labels == ["abc"[i] for i in expected.argmax(1)]
    for one in (files[0], str(files[0]), pixels[0], pixels[0][None], pixels[0][..., None], Image.open(files[0])):
        assert model.predict(one).probabilities.shape == (1, 3)


def test_colour_arrays_by_their_axes(tmp_path):
    _make(tmp_path / "m.safetensors", channels=3)
    model = convlens.load(tmp_path / "m.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    one = model.predict(picture).probabilities
    np.testing.assert_allclose(model.predict(picture.transpose(2, 0, 1)).probabilities, one, rtol=1e-5)
    np.testing.assert_allclose(model.predict(picture[None]).probabilities, one, rtol=1e-5)
    assert model.predict([]).probabilities.shape == (0, 3)
    with pytest.raises(ShapeError, match="2, 3 or 4 axes"):
        model.predict(picture[None, None])


def test_multilabel_answers_stand_alone(tmp_path, pixels):
    _make(tmp_path / "m.safetensors", multilabel=True)
    model = convlens.load(tmp_path / "m.safetensors")
    labels, probabilities = model.predict(pixels[:1])
    assert labels == ["|".join(n for n, p in zip("abc", probabilities[0], strict=True) if p > 0.5)]


def test_top_is_sorted(grey, tmp_path, pixels):
    model = convlens.load(tmp_path)
    row = model.predict(pixels[0]).probabilities[0]
    top = model.top(row, 2)
    assert [label for label, _ in top] == [model.class_names[i] for i in np.argsort(-row)[:2]]
    assert repr(model).startswith("Predictor(")


def test_metadata_is_json_and_counts_evaluations(grey, tmp_path):
    path = tmp_path / "model.safetensors"
    assert convlens.load(path).metadata["test_accuracy"] is None
    for accuracy in (0.9, 0.8):
        add_evaluation(
            path, TestEvaluation(date=now(), data="d", fingerprint="f", samples=10, accuracy=accuracy, loss=1.0)
        )
    metadata = json.loads(json.dumps(convlens.load(path).metadata))
    assert metadata["test_accuracy"] == 0.9
    assert [evaluation["accuracy"] for evaluation in metadata["test_evaluations"]] == [0.9, 0.8]


def test_nothing_is_executed_on_loading(grey, tmp_path, monkeypatch):
    import pickle

    monkeypatch.setattr(pickle, "load", pytest.fail)
    monkeypatch.setattr(pickle, "loads", pytest.fail)
    monkeypatch.setattr(torch, "load", pytest.fail)
    convlens.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architecture": {"name": "nonet"}}, "its network cannot be built here"),
        ({"architecture": {"name": "lenet5", "bad": 1}}, "its network cannot be built here"),
        ({"architecture": {}}, "its network cannot be built here"),
        (
            {"architecture": {"name": "lenet5", "in_channels": 1, "num_classes": 3, "input_size": [28, 28]}},
            "expects",
        ),
        ({"architecture": {"name": "net39"}}, "its weights lack"),
    ],
)
def test_a_record_that_does_not_fit_its_weights(tmp_path, changes, text):
    _make(tmp_path / "m.safetensors", **changes)
    with pytest.raises(ModelFileError, match=text):
        convlens.load(tmp_path / "m.safetensors")


def test_an_absurd_architecture_costs_no_memory(tmp_path):
    huge = {"name": "lenet5", "in_channels": 10**9, "num_classes": 10**9, "input_size": [12, 12]}
    _make(tmp_path / "m.safetensors", architecture=huge)
    with pytest.raises(ModelFileError, match="expects"):
        convlens.load(tmp_path / "m.safetensors")


def test_a_wrong_record_is_named(tmp_path):
    from convlens.modelfile.card import FORMAT_VERSION, KIND
    from convlens.modelfile.container import write_container

    _, card = _make(tmp_path / "m.safetensors")
    record = card.model_dump(mode="json")
    record["class_names"] = []
    write_container(
        tmp_path / "m.safetensors", KIND, FORMAT_VERSION, read_model(tmp_path / "m.safetensors")[0], record
    )
    with pytest.raises(ModelFileError, match="class_names in its record is wrong"):
        read_card(tmp_path / "m.safetensors")


def test_paths_that_hold_no_model(tmp_path):
    with pytest.raises(PathError, match="no such run or model file"):
        convlens.load(tmp_path / "none")
    with pytest.raises(PathError, match=r"no model\.safetensors"):
        convlens.load(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(PathError, match="has not finished.*--resume"):
        convlens.load(tmp_path)


def test_a_picture_from_memory(grey, tmp_path, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "PNG")
    assert convlens.load(tmp_path).predict(buffer.getvalue()).labels
