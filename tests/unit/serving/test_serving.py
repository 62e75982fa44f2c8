"""The server: answers equal predict's, limits hold, nothing in flight is lost, newer models are taken."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient

from convlens import models, planner
from convlens.errors import ModelFileError
from convlens.modelfile import load
from convlens.modelfile.card import write_model
from convlens.serving.application import create_app
from convlens.serving.batching import Batcher, Draining, Overloaded
from convlens.serving.served import ServedModel, batch_invariant_twin
from convlens.serving.settings import ServeSettings
from unit_serving import RAW, png, write_run


@pytest.fixture
def client(run):
    app = create_app({"digits": ServedModel("digits", run)}, ServeSettings(watch_s=0, images=3, pixels=10_000))
    with TestClient(app) as client:
        yield client


def test_every_way_of_asking_gives_predicts_answer(client, run):
    expected = load(run).predict([png(1)]).probabilities[0]
    ways = [
        client.post("/v1/predict", content=png(1), headers=RAW),
        client.post("/v1/predict", content=png(1), headers={"content-type": "image/png"}),
        client.post("/v1/predict", files={"images": ("a.png", png(1))}),
        client.post("/v1/predict", json={"images": [base64.b64encode(png(1)).decode()]}),
        client.post("/v1/models/digits/predict", content=png(1), headers=RAW),
    ]
    for response in ways:
        assert response.status_code == 200
        assert len(response.headers["x-request-id"]) == 32
        (found,) = response.json()["predictions"]
        assert found["probability"] == pytest.approx(float(expected.max()), abs=1e-6)
        assert found["label"] == "abcd"[expected.argmax()]
        assert [one["label"] for one in found["top"]] == ["abcd"[i] for i in np.argsort(-expected)]


def test_many_pictures_in_one_request(client):
    response = client.post("/v1/predict", json={"images": [base64.b64encode(png(i)).decode() for i in range(3)]})
    assert len(response.json()["predictions"]) == 3
    assert client.get("/metrics").text.count("convlens_images_total 3.0") == 1


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", RAW, 400, "empty"),
        (b"no picture", RAW, 400, "picture"),
        (png()[:60], RAW, 400, "picture"),
        (png(size=(101, 100)), RAW, 413, "pixels"),
        (b"x" * (17 << 20), RAW, 413, "body"),
        (b"{}", {"content-type": "application/json"}, 400, "json"),
        (b"[" * 100_000, {"content-type": "application/json"}, 400, "json"),
        (b'{"images": ["%%%"]}', {"content-type": "application/json"}, 400, "base64"),
        (b'{"images": []}', {"content-type": "application/json"}, 400, "empty"),
        (b'{"images": ["QQ==","QQ==","QQ==","QQ=="]}', {"content-type": "application/json"}, 413, "too_many"),
        (b"x", {"content-type": "application/x-tar"}, 415, "content_type"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "multipart"),
        (b"x", {"content-type": "multipart/form-data; boundary=y"}, 400, "multipart"),
        (b"--y--", {"content-type": "multipart/form-data; boundary=y"}, 400, "empty"),
    ],
)
def test_what_is_wrong_is_said(client, body, headers, status, code):
    response = client.post("/v1/predict", content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_other_models_and_pages(client):
    assert client.post("/v1/models/none/predict", content=png()).json()["error"]["code"] == "model"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/models").json()["models"][0]["classes"] == list("abcd")
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]
    page = client.get("/")
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", page.text)


def test_tokens(run):
    settings = ServeSettings(watch_s=0, token="right-token")
    with TestClient(create_app({"m": ServedModel("m", run)}, settings)) as client:
        assert client.get("/healthz").status_code == 200
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right-token"}):
            assert client.post("/v1/predict", content=png(), headers=header).status_code == 401
        right = {"authorization": "Bearer right-token", **RAW}
        assert client.post("/v1/predict", content=png(), headers=right).status_code == 200
    assert "right-token" not in repr(settings)


def test_other_machines_need_a_token_or_a_word():
    with pytest.raises(ValueError, match="--insecure"):
        ServeSettings(host="0.0.0.0")
    assert ServeSettings(host="0.0.0.0", insecure=True).host == "0.0.0.0"
    with pytest.raises(ValueError, match="belong together"):
        ServeSettings(tls_key="key.pem")


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_bits_do_not_depend_on_the_batch(name):
    planner.set_batch_invariant(True)
    torch.manual_seed(0)
    batch = torch.randn(17, 3, 32, 32)
    net = batch_invariant_twin(models.create(name, in_channels=3, num_classes=10, input_size=(32, 32)), batch)
    with torch.inference_mode():
        alone = torch.cat([net(one[None]) for one in batch])
        for size in (2, 3, 8, 17):
            assert torch.equal(torch.cat([net(part) for part in batch.split(size)]), alone)


def test_a_newer_model_is_taken_and_a_bad_one_is_not(run):
    served = ServedModel("m", run)
    stored = np.random.default_rng(0).integers(0, 256, (2, 1, 20, 20), dtype=np.uint8)
    before = served.compute(stored)
    assert not served.reload_if_changed()
    (run / "model.safetensors").write_bytes(b"torn")
    assert not served.reload_if_changed()
    assert served.last_error
    np.testing.assert_array_equal(served.compute(stored), before)
    write_run(run, seed=5)
    os.utime(run / "model.safetensors", ns=(1, 1))
    assert served.reload_if_changed()
    assert served.last_error is None
    assert not np.array_equal(served.compute(stored), before)


def test_a_model_that_answers_nan_is_not_served(run):
    predictor = load(run)
    state = {name: torch.full_like(tensor, float("nan")) for name, tensor in predictor.model.state_dict().items()}
    write_model(run / "model.safetensors", state, predictor.card)
    with pytest.raises(ModelFileError, match="NaN"):
        ServedModel("m", run)


class TestBatcher:
    def test_gathers_while_computing(self):
        sizes = []

        def compute(batch):
            sizes.append(len(batch))
            time.sleep(0.02)
            return batch.reshape(len(batch), -1)

        async def ask():
            batcher = Batcher(compute, largest=8, wait_s=0.001)
            batcher.start()
            answers = await asyncio.gather(*(batcher.submit([np.full((1,), i, np.float32)]) for i in range(20)))
            await batcher.drain()
            return answers

        answers = asyncio.run(ask())
        assert [int(answer[0, 0]) for answer in answers] == list(range(20))
        assert sizes[0] == 8
        assert sum(sizes) == 20

    def test_full_queue_draining_and_errors(self):
        gate = threading.Event()

        def compute(batch):
            gate.wait(5)
            if batch[0, 0] < 0:
                raise RuntimeError("broken")
            return batch

        async def ask():
            batcher = Batcher(compute, largest=1, wait_s=0, queue=2)
            batcher.start()
            one = np.zeros((1,), np.float32)
            running = [asyncio.create_task(batcher.submit([one]))]
            await asyncio.sleep(0.01)
            running += [asyncio.create_task(batcher.submit([one - i])) for i in range(2)]
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded) as full:
                await batcher.submit([one])
            assert full.value.retry_after_s >= 1
            gate.set()
            ended = asyncio.create_task(batcher.drain())
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await batcher.submit([one])
            results = await asyncio.gather(*running, return_exceptions=True)
            await ended
            return results

        first, second, third = asyncio.run(ask())
        assert first.shape == second.shape == (1, 1)
        assert isinstance(third, RuntimeError)


def test_process_drains_on_sigterm_and_ends_with_0(run):
    command = [sys.executable, "-m", "convlens", "serve", str(run), "--port", "0", "--quiet"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = child.stderr.readline()
        address = re.search(r"http://\S+", line)[0]

        def ask(number):
            request = urllib.request.Request(address + "v1/predict", png(number), RAW)
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read())["predictions"][0]["label"]

        assert ask(0) in "abcd"
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, number) for number in range(8)]
            time.sleep(0.005)
            child.send_signal(signal.SIGTERM)
            for answer in asked:
                error = answer.exception()
                # a connection made after the socket closed is refused; one that was taken is answered
                assert error is None or "refused" in str(error) or "reset" in str(error)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.stderr.close()
