"""The server as one route of the export gate: the run is served on the loopback and asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvicorn
from PIL import Image

from convlens import planner
from convlens.data import Preprocessing
from convlens.errors import DeviceError
from convlens.serving.application import create_app
from convlens.serving.direct import connections_of
from convlens.serving.running import listening
from convlens.serving.served import ServedModel
from convlens.serving.settings import ServeSettings

__all__ = ["server_route"]

_PATIENCE_S = 60.0


def server_route(run: str | Path) -> Callable[[Sequence[Any]], npt.NDArray[np.float32]]:
    """Raw inputs to probabilities by a server of ``run`` that runs while it is asked, as ``convlens serve`` would.

    Raises:
        DeviceError: the loopback cannot be listened on, or an answer is no answer.
    """

    def route(raw: Sequence[Any]) -> npt.NDArray[np.float32]:
        before = planner.settings.current().batch_invariant
        try:
            model = ServedModel("model", Path(run))
            classes = model.predictor.class_names
            with _serving(model) as port:
                rows = [_asked(port, body_of(model.preprocessing, one), len(classes)) for one in raw]
        finally:
            planner.set_batch_invariant(before)
        return np.array([[row[name] for name in classes] for row in rows], np.float32)

    return route


def body_of(preprocessing: Preprocessing, raw: Any) -> bytes:
    """A raw input as the bytes that a client would send: PNG, letters, or ``.npy``."""
    if isinstance(raw, str):
        return raw.encode()
    written = io.BytesIO()
    if preprocessing.kind == "image":
        Image.fromarray(raw).save(written, "PNG", compress_level=1)
    else:
        np.save(written, raw, allow_pickle=False)
    return written.getvalue()


@contextlib.contextmanager
def _serving(model: ServedModel) -> Iterator[int]:
    settings = ServeSettings(port=0, watch_s=0, body_bytes=1 << 30, pixels=1 << 30, timeout_s=_PATIENCE_S)
    listener = listening(settings)
    app = create_app({model.name: model}, settings)
    http = connections_of(app.state.service)
    config = uvicorn.Config(app, http=http, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise DeviceError("the server for the export gate did not start.")
            time.sleep(0.005)
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(_PATIENCE_S)
        listener.close()


def _asked(port: int, body: bytes, classes: int) -> dict[str, float]:
    """Probability of each class by name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        headers = {"content-type": "application/octet-stream"}
        connection.request("POST", f"/v1/predict?top={classes}", body, headers)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise DeviceError(f"the server for the export gate answered {response.status}: {text[:200]!r}.")
    (found,) = json.loads(text)["predictions"]
    return {one["label"]: one["probability"] for one in found["top"]}
