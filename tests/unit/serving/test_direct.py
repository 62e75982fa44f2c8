"""Requests over real connections: answered on the spot or the ordinary way, alike; refused early; none lost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import uvicorn

from convlens.modelfile import load
from convlens.serving.admission import Admission
from convlens.serving.application import create_app
from convlens.serving.batching import Batcher, Overloaded
from convlens.serving.direct import connections_of
from convlens.serving.running import _readable_bytes, _Server, _turn_away, listening
from convlens.serving.served import ServedModel
from convlens.serving.settings import ServeSettings
from unit_serving import png


@contextlib.contextmanager
def serving(run, **given):
    """A running server: its port and its service."""
    settings = ServeSettings(port=0, watch_s=0, **given)
    app = create_app({"m": ServedModel("m", run)}, settings)
    listener = listening(settings)
    config = uvicorn.Config(app, http=connections_of(app.state.service), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield listener.getsockname()[1], app.state.service
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def asked(port, body, kind="image/png", path="/v1/predict", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"content-type": kind, **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), dict(response.getheaders())
    finally:
        connection.close()


def request(body, *headers, path="/v1/predict", version="1.1"):
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: image/png", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def answers(raw):
    """The (status, document) of each response in a stream of bytes."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append((int(head[9:12]), json.loads(rest[:length])))
        raw = rest[length:]
    return found


def test_answers_are_alike_whichever_way_they_come(run):
    expected = load(run).predict(png(1)).probabilities.max()
    wrapped = json.dumps({"images": [base64.b64encode(png(1)).decode()]}).encode()
    padded = wrapped + b" " * 70_000  # too large to be answered on the spot
    form = b'--y\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n' + png(1) + b"\r\n--y--\r\n"
    large = png(1, (400, 400))  # decoded by a thread
    with serving(run) as (port, service):
        json_kind = "application/json"
        for body, kind in ((png(1), "image/png"), (wrapped, json_kind), (padded, json_kind)):
            status, found, headers = asked(port, body, kind)
            assert (status, len(headers["x-request-id"])) == (200, 32)
            assert found["predictions"][0]["probability"] == pytest.approx(float(expected), abs=1e-6)
        assert asked(port, form, "multipart/form-data; boundary=y")[1] == asked(port, png(1))[1]
        status, found, _ = asked(port, large)
        wide = load(run).predict(large).probabilities.max()
        assert found["predictions"][0]["probability"] == pytest.approx(float(wide), abs=1e-6)
        assert asked(port, iter([png(1)]))[1] == asked(port, png(1))[1]  # chunked
        assert len(asked(port, png(1), path="/v1/predict?top=2")[1]["predictions"][0]["top"]) == 2
        assert asked(port, png(1), **{"x-request-id": "mine"})[2]["x-request-id"] == "mine"
        for body, kind, path, status in (
            (b"none", "image/png", "/v1/predict", 400), (b"", "image/png", "/v1/predict", 400),
            (b"x", "application/x-tar", "/v1/predict", 415), (png(1), "image/png", "/v1/models/n/predict", 404),
            (png(1), "image/png", "/v1/predict?top=0", 400),
        ):  # fmt: skip
            assert asked(port, body, kind, path)[0] == status
        assert service.admissions["m"].admitted == service._held_bytes == 0


def test_pipelined_requests_are_answered_in_order(run):
    several = [request(png(n)) for n in range(3)]
    several.insert(1, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    with serving(run) as (port, _), socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(b"".join(several) + request(png(9), "Connection: close"))
        raw = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    found = answers(raw)
    assert [status for status, _ in found] == [200] * 5
    assert found[1][1] == {"status": "ok"}
    predicted = [load(run).predict(png(n)).probabilities.max() for n in (0, 1, 2, 9)]
    values = [document["predictions"][0]["probability"] for _, document in found[:1] + found[2:]]
    assert values == pytest.approx([float(one) for one in predicted], abs=1e-6)


def test_a_large_picture_keeps_its_headers_when_others_follow(run):
    """It is decoded by a thread, so the next request has come before it is answered."""
    large = request(png(1, (400, 400)))
    form = "\r\n".join(
        ["POST /v1/predict HTTP/1.1", "Host: x", "Content-Type: text/x", "Content-Length: 3", "", "abc"]
    )
    with serving(run) as (port, _), socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(
            large + form.encode().replace(b"text/x", b"video/x") + request(png(), "Connection: close")
        )
        raw = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert [status for status, _ in answers(raw)] == [200, 415, 200]


def test_a_token_is_asked_for_on_the_spot_too(run):
    with serving(run, token="right-token") as (port, _):
        assert asked(port, png())[0] == 401
        assert asked(port, png(), authorization="Bearer wrong-token")[0] == 401
        assert asked(port, png(), authorization="Bearer right-token")[0] == 200


def test_a_full_server_refuses_before_it_reads_the_body(run, monkeypatch):
    with serving(run) as (port, service):
        monkeypatch.setattr(Admission, "refusal", lambda self, count=1: Overloaded(7))
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            whole = request(b"x" * 1_000_000)
            connection.sendall(whole[:200])
            head = connection.recv(1 << 16)
            assert head.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 7" in head
            connection.sendall(whole[200:])  # thrown away, and the connection goes on
            monkeypatch.undo()
            connection.sendall(request(png()))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(Admission, "refusal", lambda self, count=1: Overloaded(1))
        assert asked(port, png())[0] == 429
        assert service._held_bytes == 0


def test_slow_and_vanished_clients_leave_nothing_behind(run):
    with serving(run, timeout_s=0.2) as (port, service):
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(request(png())[:-5])
            raw = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # it is closed: the rest may never come
        assert answers(raw)[0][1]["error"]["code"] == "timeout"
        for cut in (-5, None):
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                connection.sendall(request(png())[:cut])
        until(lambda: service.admissions["m"].admitted == service._held_bytes == 0)
        assert asked(port, png())[0] == 200


def test_who_sends_slowly_takes_nobodys_place(run):
    with serving(run, queue=1) as (port, _), socket.create_connection(("127.0.0.1", port), 20) as slow:
        slow.sendall(request(b"x" * 100_000)[:90_000])
        time.sleep(0.1)
        assert asked(port, png())[0] == 200


class TestAdmission:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(Admission, "_pulse", lambda self: None)
        return now

    def test_it_learns_what_answers_take(self, clock):
        admission = Admission(1000, 2.0)
        claims = [admission.claim()]
        for _ in range(100):  # batches of eight, 0.8 s each
            claims += [admission.claim() for _ in range(8 - len(claims))]
            clock[0] += 0.8
            while claims:
                claims.pop().release(True)
            claims = [admission.claim()]
        assert admission.seconds_each == pytest.approx(0.1, rel=0.01)
        while admission.refusal() is None:
            claims.append(admission.claim())
        assert 12 <= len(claims) <= 14  # 0.7 of the budget

    def test_who_is_alone_is_let_in(self, clock):
        admission = Admission(1000, 2.0)
        admission._busy_s = 100.0
        alone = admission.claim()
        assert alone.deadline == float("inf")
        alone.grow(50)
        with pytest.raises(Overloaded) as refused:
            admission.claim()
        assert refused.value.retry_after_s > 1000
        alone.release(False)
        assert admission.admitted == 0

    def test_many_pictures_count(self, clock):
        admission = Admission(10, 2.0)
        first, second = admission.claim(), admission.claim()
        first.grow(9)
        with pytest.raises(Overloaded):
            second.grow(2)
        with pytest.raises(Overloaded):
            admission.claim()


def test_what_waited_too_long_after_all_is_refused():
    async def ask():
        batcher = Batcher(lambda batch: batch, wait_s=0)
        asked = asyncio.create_task(batcher.submit([png()], deadline=time.monotonic() - 1))
        await asyncio.sleep(0)
        batcher.start()
        with pytest.raises(Overloaded):
            await asked
        await batcher.drain()

    asyncio.run(ask())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can filter who connects")
def test_the_door_is_shut_without_a_reset_for_who_stands_in_it():
    listener = listening(ServeSettings(port=0))
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), 5) as early:
        assert _turn_away(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), 0.2)
        accepted, _ = listener.accept()
        listener.close()
        accepted.sendall(b"yes")
        assert early.recv(3) == b"yes"
        early.sendall(b"more")
        until(lambda: _readable_bytes(_Transport(accepted)) == 4)
        accepted.close()


class _Transport:
    def __init__(self, connection):
        self.connection = connection

    def get_extra_info(self, name):
        return self.connection


def test_kept_alive_connections_are_answered_while_the_server_leaves(run):
    """One asks during the farewell, one was let in and asks afterwards, one has sent half, one says nothing."""
    settings = ServeSettings(port=0, watch_s=0, linger_s=0.3)
    app = create_app({"m": ServedModel("m", run)}, settings)
    listener = listening(settings)
    server = _Server(uvicorn.Config(app, http=connections_of(app.state.service), log_level="error", lifespan="on"))
    server.service, server.linger_s, server.drain_s = app.state.service, 0.3, 20.0
    started = threading.Event()
    server.started_well = started.set
    loops = []

    async def whole():
        loops.append(asyncio.get_running_loop())
        await server._serve([listener])

    thread = threading.Thread(target=asyncio.run, args=(whole(),))
    thread.start()
    assert started.wait(20)
    port = listener.getsockname()[1]
    asks, half, silent = (socket.create_connection(("127.0.0.1", port), 20) for _ in range(3))
    until(lambda: len(server.server_state.connections) == 3)
    loops[0].call_soon_threadsafe(server.handle_exit, 15, None)
    until(lambda: app.state.service.leaving)
    half.sendall(request(png())[:-5])
    late = socket.create_connection(("127.0.0.1", port), 20)  # the door is still open
    asks.sendall(request(png()))
    raw = b"".join(iter(lambda: asks.recv(1 << 16), b""))
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in raw
    until(lambda: server.should_exit)
    late.sendall(request(png()))
    assert late.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert silent.recv(1) == b""  # closed when it had been quiet
    half.sendall(request(png())[-5:])
    assert half.recv(1 << 16).startswith(b"HTTP/1.1 200")
    thread.join(20)
    assert not thread.is_alive()
    for connection in (asks, half, silent, late):
        connection.close()
    listener.close()
