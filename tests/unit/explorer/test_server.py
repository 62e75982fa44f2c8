"""The explorer's server: who is answered, and that its numbers are the operators' own."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")

from fastapi.testclient import TestClient

import convlens
from convlens import models, ops
from convlens.data import Preprocessing
from convlens.errors import ArgumentError
from convlens.explain import layer_graph, opened
from convlens.explorer.lessons import LESSONS
from convlens.explorer.payload import thumbnail
from convlens.explorer.server import create_app
from convlens.explorer.session import Session
from convlens.explorer.subject import Subject, open_subject
from convlens.explorer.turns import ORDER, Overtaken, Turns

HOST = "127.0.0.1:9"
HEADERS = {"host": HOST, "x-convlens-token": "secret"}


def small_net() -> nn.Module:
    """Named on the command line as module:function would be."""
    torch.manual_seed(0)
    return models.create("lenet5", in_channels=1, num_classes=10, input_size=(28, 28))


@pytest.fixture(scope="module")
def client():
    preprocessing = Preprocessing(kind="image", channels=1, size=(28, 28), scale=1 / 255)
    subject = Subject("test", opened(small_net().eval()), preprocessing, tuple("0123456789"))
    return TestClient(create_app(Session(subject), "secret", {HOST}))


def png(size=(28, 28)) -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(written, format="PNG")
    return written.getvalue()


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/api/net", HEADERS, 200),
        ("/?token=secret", {"host": HOST}, 200),
        ("/static/js/dom.js", {"host": HOST}, 200),
        ("/", {"host": HOST}, 403),
        ("/?token=wrong", {"host": HOST}, 403),
        ("/api/net", {"host": HOST}, 403),
        ("/api/net", {**HEADERS, "x-convlens-token": "secrets"}, 403),
        ("/api/net", {**HEADERS, "host": "evil.example"}, 403),
        ("/api/net", {**HEADERS, "origin": "http://evil.example"}, 403),
        ("/api/net", {**HEADERS, "origin": f"http://{HOST}"}, 200),
        ("/static/../server.py", {"host": HOST}, 403),
        ("/static/%2e%2e/server.py", {"host": HOST}, 404),
        ("/static/js/none.js", {"host": HOST}, 404),
        ("/docs", HEADERS, 404),
    ],
)
def test_who_is_answered(client, path, headers, code):
    response = client.get(path, headers=headers)
    assert response.status_code == code
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_every_layer_of_the_net_answers(client):
    net = client.get("/api/net", headers=HEADERS).json()
    assert net["edges"][0] == ["input", "features.conv1.conv"]
    assert len(net["edges"]) == len(net["layers"])
    for layer in net["layers"]:
        answered = client.get("/api/layer", params={"name": layer["name"]}, headers=HEADERS)
        assert answered.status_code == 200
        assert answered.json()["shape"] == layer["shape"]


def test_a_pixel_is_what_the_operator_computes(client):
    client.post("/api/input", content=png(), headers=HEADERS)
    query = {"name": "features.conv1.conv", "channel": 2, "position": "3,5"}
    found = client.get("/api/pixel", params=query, headers=HEADERS).json()
    net = small_net()
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png())), dtype=np.float32))[None, None] / 255
    layer = net.features.conv1
    expected = ops.conv2d(pixels, layer.weight, layer.bias, padding=2)[0, 2, 3, 5]
    assert found["value"] == pytest.approx(float(expected.detach()), abs=1e-5)
    assert found["sum"]["value"] == pytest.approx(found["value"], abs=1e-5)
    backward = client.get("/api/backward", params=query, headers=HEADERS).json()
    np.testing.assert_allclose(backward["weight"], found["sum"]["window"], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/api/layer", {"name": "nowhere"}, "the name of a layer"),
        ("/api/pixel", {"name": "features.conv1.conv", "channel": 2, "position": "99,0"}, "coordinates within"),
        ("/api/pixel", {"name": "features.conv1.conv", "channel": 99, "position": "0,0"}, "0 to 5"),
        ("/api/pixel", {"name": "features.conv1.conv", "channel": 0, "position": "a"}, "whole numbers"),
        ("/api/algorithms", {"name": "classifier.output"}, "a convolution"),
    ],
)
def test_mistakes_are_explained(client, path, query, said):
    response = client.get(path, params=query, headers=HEADERS)
    assert response.status_code == 400
    assert said in response.json()["error"]


def test_what_is_no_picture_is_refused(client):
    response = client.post("/api/input", content=b"no picture", headers=HEADERS)
    assert response.status_code == 400
    assert client.get("/api/net", headers=HEADERS).status_code == 200


def test_evidence_adversary_and_algorithms(client):
    pytest.importorskip("captum")
    heat = client.get("/api/evidence", headers=HEADERS).json()
    assert heat["heat"]["shape"] == [28, 28]
    assert "label" in client.get("/api/adversary", headers=HEADERS).json()
    rows = client.get("/api/algorithms", params={"name": "features.conv1.conv"}, headers=HEADERS).json()["rows"]
    assert sum(row["chosen"] for row in rows) == 1
    assert all((row["time_us"] is None) == (row["refusal"] is not None) for row in rows)


ANSWERS = {
    "B1": [[[19, 25], [37, 43]]],
    "B6": [[[0, 8], [6, 8]]],
    "B7": [[[56, 72], [104, 120]]],
    "B11": [[[4, 3, 4], [2, 4, 3], [2, 3, 4]]],
}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson["row"])
def test_lessons_compute_the_lectures_numbers(client, lesson):
    asked = {key: value for key, value in lesson.items() if key not in ("row", "title", "text")}
    found = client.post("/api/convolve", json=asked, headers=HEADERS).json()
    if lesson["row"] in ANSWERS:
        assert found["output"] == ANSWERS[lesson["row"]]
    if lesson["row"] == "B12":
        assert found["shape"] == [2, 3, 3]
    if lesson["row"] == "D2":
        assert found["pooled"] == [[[1.0, 0.0], [1.0, 0.0]]]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"weight": [[[[1.0] * 5] * 5]]}, 400),
        ({"input": [[[1.0, 2.0], [3.0]]]}, 400),
        ({"input": [[[float("inf")]]]}, 400),
        ({"unknown": 1}, 422),
    ],
)
def test_playground_refuses_what_does_not_fit(client, change, code):
    asked = {"input": [[[1.0, 2.0], [3.0, 4.0]]], "weight": [[[[1.0]]]]} | change
    text = json.dumps(asked)
    response = client.post("/api/convolve", content=text, headers=HEADERS | {"content-type": "application/json"})
    assert response.status_code == code


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.join(torch.relu(self.left(input) + self.right(input)))


def test_graph_follows_branches_and_functional_calls():
    edges = set(layer_graph(Branches(), torch.ones(1, 1, 4, 4)))
    assert edges == {("input", "left"), ("input", "right"), ("left", "join"), ("right", "join")}


class TestSubject:
    def test_module_and_function(self, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "own_net", sys.modules[__name__])
        subject = open_subject("own_net:small_net", (1, 28, 28))
        assert len(subject.class_names) == 10
        with pytest.raises(ArgumentError, match="module:function"):
            open_subject("own_net:nothing_here")
        with pytest.raises(ArgumentError, match="returns a torch.nn.Module"):
            open_subject("own_net:png", (1, 28, 28))


class TestTurns:
    def test_a_newer_request_of_a_kind_overtakes_whatever_the_order_of_arrival(self):
        turns = Turns(nn.Sequential(nn.Linear(1, 1)))

        def asked(order, kind="point"):
            token = ORDER.set(order)
            try:
                with turns.turn(kind):
                    return "done"
            except Overtaken:
                return "overtaken"
            finally:
                ORDER.reset(token)

        assert asked(5) == "done"
        assert asked(4) == "overtaken"
        assert asked(4, "pixel") == "done"
        assert asked(6) == "done"
        turns.stop()
        assert asked(6, "layer") == "overtaken"
        assert asked(7, "layer") == "done"

    def test_a_running_pass_stops_between_layers_and_tells_how_far_it_is(self):
        net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        turns = Turns(net)
        seen = []

        def look(*_):
            seen.append(turns.progress())
            turns.stop()

        net[1].register_forward_hook(look)
        with pytest.raises(Overtaken), turns.turn("layer"):
            net(torch.ones(1))
        assert [(now["kind"], now["layer"]) for now in seen] == [("layer", "1")]
        assert turns.progress() == {}
        net(torch.ones(1))  # nobody's turn: nothing to stop


def test_changes_of_a_layer(client):
    """Window and kernel by hand: the operator's own map, costs from the problem, the net's answers."""

    def change(**what):
        body = {"name": "features.conv1.conv", "channel": 1, **what}
        return client.post("/api/change", headers=HEADERS, json=body)

    same = change().json()
    assert same["was"] == same["now"]
    assert same["top"] == client.get("/api/net", headers=HEADERS).json()["top"]
    larger = change(kernel_size=[7, 3], stride=[2, 1], padding=[3, 1], dilation=[1, 2]).json()
    assert larger["kernel_size"] == [7, 3]
    assert larger["now"]["weights"] == 6 * 21 + 6
    assert larger["shape"] == [6, 14, 26]
    assert "top" not in larger
    # a kernel that is 1 in its middle passes the input through, up to the bias
    kernel = [0.0] * 25
    kernel[12] = 1.0
    client.post("/api/input", headers=HEADERS, content=png())
    passed = change(kernel=kernel).json()["after"]
    field = client.get("/api/layer?name=features.conv1.conv", headers=HEADERS).json()
    assert passed["shape"] == [28, 28] == field["maps"]["shape"][1:]
    assert passed["high"] - passed["low"] == pytest.approx(1.0, abs=0.1)
    for wrong in ({"channel": 99}, {"kernel": [1.0]}, {"stride": [0, 1]}, {"kernel_size": [40, 40]}):
        assert change(**wrong).status_code == 400


def test_slices_and_bands():
    volume = thumbnail(np.zeros((1, 5, 4, 4), np.float32), "volume", planes=(9,))
    assert volume["planes"] == {"kind": "slice", "count": 5, "shown": [4]}
    cube = np.arange(10 * 16, dtype=np.float32).reshape(10, 4, 4)
    assert thumbnail(cube, "spectral")["planes"]["shown"] == [1, 5, 8]
    assert thumbnail(cube, "spectral", planes=(3,))["planes"]["shown"] == [3]
    subject = Subject(
        "cube",
        nn.Sequential(nn.Conv2d(10, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
        Preprocessing(kind="spectral", channels=10, size=(4, 4), dtype="float32"),
        ("a", "b"),
    )
    session = Session(subject)
    assert session.current((2, 4, 6))["picture"]["planes"]["shown"] == [2, 4, 6]
    assert session.filters("0", channel=7)["channel"] == 7
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 3 * 2 * 2, 2))
    shape = Preprocessing(kind="volume", channels=1, size=(5, 4, 4), dtype="float32")
    session = Session(Subject("volume", net, shape, ("a", "b")))
    assert session.layer("0", 2)["slice"] == 2
    assert session.filters("0", plane=0)["plane"] == 0
    assert session.pixel("0", 1, (2, 1, 1))["under"]["slice"] == 3


def test_what_excites_a_unit_comes_from_the_training_part():
    data = convlens.data.open("digits")
    subject = Subject("digits", digits_net(), data.preprocessing, data.class_names, data)
    session = Session(subject)
    found = session.excited("0", 1)
    assert found["searched"] == len(data.indices("train"))
    first = found["pictures"][0]
    assert first["number"] in data.indices("train")
    assert np.array(first["box"]).shape == (2, 2)
    values = [one["value"] for one in found["pictures"]]
    assert values == sorted(values, reverse=True)
    assert any(one["wrong"] for one in session.describe()["samples"][:1])  # an untrained net's mistakes come first


def digits_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)).eval()
