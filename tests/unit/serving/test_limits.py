"""What the server does at its limits, and from the command line to an answer: TLS, logs, several models."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient

from convlens.cli._app import run_command_line
from convlens.errors import ModelFileError
from convlens.modelfile import load
from convlens.serving.application import create_app
from convlens.serving.batching import Batcher
from convlens.serving.served import Loaded, RowLinear, ServedModel
from convlens.serving.settings import ServeSettings
from unit_serving import RAW, png, write_run


def app_of(run, **settings):
    return create_app({"m": ServedModel("m", run)}, ServeSettings(watch_s=0, **settings))


def ask(app, receive, headers=((b"content-type", b"image/png"),)):
    """One request without a network; ``receive`` is ASGI's."""
    sent = []

    async def whole():
        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": list(headers),
        }  # fmt: skip
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(whole())
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_how_many_classes_are_named(run):
    with TestClient(app_of(run)) as client:
        found = client.post("/v1/predict?top=2", content=png(), headers=RAW).json()["predictions"][0]
        assert len(found["top"]) == 2
        every = client.post("/v1/predict?top=99", content=png(), headers=RAW).json()["predictions"][0]["top"]
        assert sum(one["probability"] for one in every) == pytest.approx(1)
        for bad in ("0", "-1", "x", "9" * 5000):
            assert client.post(f"/v1/predict?top={bad}", content=png(), headers=RAW).status_code == 400


def test_a_body_that_never_ends_is_given_up(run):
    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    status, answer = ask(app_of(run, timeout_s=0.3), receive)
    assert (status, answer["error"]["code"]) == (503, "timeout")


def test_a_client_that_goes_away(run):
    async def receive():
        return {"type": "http.disconnect"}

    assert ask(app_of(run), receive)[0] == 400


def test_bytes_held_by_all_requests_are_bounded(run):
    async def receive():
        return {"type": "http.request", "body": b"x" * 2000, "more_body": False}

    app = app_of(run, held_bytes=1000)
    status, answer = ask(app, receive)
    assert (status, answer["error"]["code"]) == (429, "overloaded")
    assert app.state.service._held_bytes == 0


def test_who_would_wait_too_long_is_told_to_come_back(run, monkeypatch):
    """Eight pictures that take 0.2 s each, all asked for at once, and nobody may wait more than half a second."""
    computing = threading.Event()

    def slow(self, stored):
        computing.wait(0.2)
        return np.full((len(stored), 4), 0.25, np.float32)

    app = app_of(run, budget_s=0.5, wait_ms=0, workers=1)
    service = app.state.service
    monkeypatch.setattr(ServedModel, "batch", 1)
    monkeypatch.setattr(ServedModel, "batch_seconds", 0.2)
    monkeypatch.setattr(Loaded, "compute", slow)
    service.admissions["m"]._busy_s = 0.2

    async def whole():
        async def one():
            async def receive():
                return {"type": "http.request", "body": png(), "more_body": False}

            scope = {"headers": [(b"content-type", b"image/png")], "query_string": b""}
            started = time.perf_counter()
            answer = await service.answer("m", scope, receive)
            return answer.status, time.perf_counter() - started, dict(answer.headers)

        async with app.router.lifespan_context(app):
            return await asyncio.gather(*(one() for _ in range(8)))

    found = asyncio.run(whole())
    assert {status for status, _, _ in found} == {200, 429}
    assert all(int(headers[b"retry-after"]) >= 1 for status, _, headers in found if status == 429)


def test_answers_that_are_no_numbers(run, monkeypatch):
    app = app_of(run)
    monkeypatch.setattr(Loaded, "compute", lambda self, stored: np.full((len(stored), 4), np.nan, np.float32))
    with TestClient(app) as client:
        response = client.post("/v1/predict", content=png(), headers=RAW)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "not_a_number")


def test_several_workers_compute_at_once():
    together = threading.Barrier(2)

    def compute(batch):
        together.wait(10)
        return batch

    async def both():
        batcher = Batcher(compute, largest=1, wait_s=0, workers=2)
        batcher.start()
        one = np.zeros((1,), np.float32)
        await asyncio.gather(batcher.submit([one]), batcher.submit([one]))
        await batcher.drain()
        return batcher.computed

    assert asyncio.run(both()) == 2


def test_dense_rows_have_the_same_bits_in_any_company():
    import torch

    torch.manual_seed(0)
    layer = RowLinear(torch.nn.Linear(300, 70))
    rows = torch.randn(37, 300)
    alone = torch.cat([layer(row[None]) for row in rows])
    for grouped in (True, False):
        layer.in_groups = grouped
        expected = torch.cat([layer(row[None]) for row in rows])
        assert torch.equal(layer(rows), expected)
        torch.testing.assert_close(expected, alone)
    assert layer(rows.view(37, 1, 300)).shape == (37, 1, 70)


def test_a_model_whose_twin_differs_is_not_served(run, monkeypatch):
    monkeypatch.setattr(RowLinear, "forward", lambda self, input: input @ self.weight.t() * 1.5)
    with pytest.raises(ModelFileError, match="would differ from predict"):
        ServedModel("m", run)


def test_tls_files_that_are_none(run, tmp_path, capsys):
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("bad.pem", "none.pem"):
        files = ["--tls-certificate", str(tmp_path / name), "--tls-key", str(tmp_path / name)]
        assert run_command_line(["serve", str(run), "--port", "0", *files]) == 1
        told = capsys.readouterr().err
        assert "expected a certificate and its key" in told.replace("\n", " ")
        assert "Serving" not in told


def test_from_the_command_line_over_tls_with_two_models(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", seed=7)
    certificate, key, token = (tmp_path / name for name in ("cert.pem", "key.pem", "token"))
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
        + ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    token.write_text("a-long-secret\n")
    command = [sys.executable, "-m", "convlens", "serve", str(first), f"other={second}", "--port", "0"]
    command += ["--tls-certificate", str(certificate), "--tls-key", str(key), "--token-file", str(token)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"https://\S+", child.stderr.readline())[0]
        context = ssl.create_default_context(cafile=certificate)
        headers = {**RAW, "authorization": "Bearer a-long-secret", "x-request-id": "mine-1"}

        def asked(path):
            request = urllib.request.Request(address + path, png(3), headers)
            with urllib.request.urlopen(request, timeout=30, context=context) as response:
                assert response.headers["x-request-id"] == "mine-1"
                return json.loads(response.read())

        for path, run in (("v1/predict", first), ("v1/models/other/predict", second)):
            expected = load(run).predict(png(3)).probabilities.max()
            assert asked(path)["predictions"][0]["probability"] == pytest.approx(float(expected), abs=1e-6)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
        lines = [json.loads(line) for line in child.stderr.read().splitlines()]
    finally:
        child.kill()
        child.stderr.close()
    assert {line["request_id"] for line in lines} == {"mine-1"}
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/predict", 200),
        ("/v1/models/other/predict", 200),
    ]
    assert all({"time", "level", "method", "ms"} <= line.keys() for line in lines)
    assert "a-long-secret" not in json.dumps(lines)


def test_models_are_exchanged_under_load_without_a_failed_request(run):
    app = create_app({"m": ServedModel("m", run)}, ServeSettings(watch_s=0.02))
    service, model = app.state.service, app.state.service.models["m"]
    body, seen, over = png(1), set(), False

    async def asking():
        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        while not over:
            scope = {"headers": [(b"content-type", b"image/png")], "query_string": b""}
            answer = await service.answer("m", scope, receive)
            assert answer.status == 200
            seen.add(answer.body)
            await asyncio.sleep(0.001)

    async def until(condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def whole():
        nonlocal over
        async with app.router.lifespan_context(app):
            askers = [asyncio.create_task(asking()) for _ in range(4)]
            await until(lambda: len(seen) == 1)
            write_run(run, seed=5)
            await until(lambda: model.reloads == 1 and len(seen) == 2)
            good = (run / "model.safetensors").read_bytes()
            (run / "model.safetensors").write_bytes(good[:-7])
            await until(lambda: model.last_error is not None)
            assert model.reloads == 1
            write_run(run, seed=6, size=24, classes="xyz")  # another input, other classes
            await until(lambda: model.reloads == 2 and len(seen) == 3)
            over = True
            await asyncio.gather(*askers)

    asyncio.run(whole())
    assert model.last_error is None
    expected = load(run).predict(body).probabilities.max()
    assert model.compute(model.preprocessing.decode(body)[None].copy()).max() == pytest.approx(expected, abs=1e-6)
