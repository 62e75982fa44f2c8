"""The HTTP interface: predict, models, health, metrics, and a page to try it on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import prometheus_client as prometheus
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from convlens.errors import BadFileError
from convlens.serving.batching import Batcher, Draining, Overloaded
from convlens.serving.page import PAGE, SCRIPT
from convlens.serving.requests import Refused, bodies, check_pixels
from convlens.serving.served import ServedModel
from convlens.serving.settings import ServeSettings

__all__ = ["create_app"]

_log = logging.getLogger("convlens.serving")
_SMALL = 32 << 10  # bytes of a picture that is decoded sooner than handed to a thread
_TOP = 5

_SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_SCRIPT_HASH}'; style-src 'unsafe-inline'; img-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                }
            },
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        400: "The body is no picture, or wrong",
        401: "The token is missing or wrong",
        404: "No such model",
        413: "Too large",
        415: "Another content type",
        429: "The queue is full; Retry-After says when to come back",
        503: "Timed out, or shutting down",
    }.items()
}


class _Metrics:
    """What Prometheus is told; a registry of its own, so that two apps in a process don't collide."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "convlens_requests_total", "Requests by status", ["status"], registry=self.registry
        )
        self.images = prometheus.Counter("convlens_images_total", "Pictures answered", registry=self.registry)
        self.seconds = prometheus.Histogram(
            "convlens_request_seconds",
            "Time from request to answer",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.waiting = prometheus.Gauge("convlens_waiting", "Pictures in the queue", registry=self.registry)
        self.batch = prometheus.Gauge("convlens_mean_batch", "Pictures computed together", registry=self.registry)


class _Service:
    """The models with their batchers, and what happens to one request."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServeSettings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = _Metrics()
        self.ready = False
        self.decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="convlens-decode")
        self.batchers = {
            name: Batcher(
                model.compute, largest=settings.batch, wait_s=settings.wait_ms / 1e3, queue=settings.queue
            )
            for name, model in models.items()
        }

    async def predict(self, name: str, request: Request) -> dict[str, Any]:
        model = self.models.get(name)
        if model is None:
            raise Refused(404, "model", f"expected one of {', '.join(self.models)}, received {name!r}")
        raws = await bodies(request, self.settings)
        stored = [await self._decoded(model, raw, place) for place, raw in enumerate(raws)]
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                answers = await self.batchers[name].submit(stored)
        except TimeoutError:
            raise Refused(503, "timeout", f"no answer within {self.settings.timeout_s:g} s") from None
        self.metrics.images.inc(len(answers))
        return {"model": name, "predictions": [_prediction(model, row) for row in answers]}

    async def _decoded(self, model: ServedModel, raw: bytes, place: int) -> npt.NDArray[Any]:
        def work() -> npt.NDArray[Any]:
            check_pixels(raw, self.settings.pixels)
            return np.array(model.preprocessing.decode(raw))

        try:
            if len(raw) <= _SMALL:
                return work()
            return await asyncio.get_running_loop().run_in_executor(self.decoders, work)
        except BadFileError as error:
            raise Refused(400, "picture", f"picture {place}: {error}") from None

    async def watch(self) -> None:
        """Look for newer model files until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.watch_s)
            for model in self.models.values():
                before = model.last_error
                if await loop.run_in_executor(self.decoders, model.reload_if_changed):
                    _log.info(json.dumps({"event": "reloaded", "model": model.name}))
                elif model.last_error and model.last_error != before:
                    _log.error(json.dumps({"event": "kept_old", "model": model.name, "why": model.last_error}))


def create_app(models: Mapping[str, ServedModel], settings: ServeSettings) -> FastAPI:
    """The application; the first model answers requests that name none."""
    service = _Service(models, settings)
    first = next(iter(models))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for batcher in service.batchers.values():
            batcher.start()
        watcher = asyncio.get_running_loop().create_task(service.watch()) if settings.watch_s else None
        service.ready = True
        yield
        service.ready = False
        if watcher is not None:
            watcher.cancel()
        await asyncio.gather(*(batcher.drain() for batcher in service.batchers.values()))
        service.decoders.shutdown()

    app = FastAPI(
        title="convlens",
        summary="Predictions of trained networks",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(_Door, service=service)

    @app.post("/v1/predict", openapi_extra=_BODY, responses=_ERRORS)
    async def predict(request: Request) -> Response:
        """Classify one or many pictures with the first model."""
        return JSONResponse(await service.predict(first, request))

    @app.post("/v1/models/{name}/predict", openapi_extra=_BODY, responses=_ERRORS)
    async def predict_with(name: str, request: Request) -> Response:
        """Classify one or many pictures with the model called ``name``."""
        return JSONResponse(await service.predict(name, request))

    @app.get("/v1/models")
    async def list_models() -> Any:
        """The models, their classes and inputs."""
        return {"models": [model.describe() for model in service.models.values()]}

    @app.get("/healthz")
    async def healthz() -> Any:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Not ready"}})
    async def readyz() -> Response:
        """Requests are welcome."""
        return JSONResponse({"status": "ready" if service.ready else "draining"}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        batchers = service.batchers.values()
        service.metrics.waiting.set(sum(batcher.waiting for batcher in batchers))
        batches = sum(batcher.batches for batcher in batchers)
        service.metrics.batch.set(sum(batcher.computed for batcher in batchers) / batches if batches else 0)
        return Response(
            prometheus.generate_latest(service.metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST
        )

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": _POLICY})

    return app


class _Door:
    """What surrounds every request: id, token, errors as JSON, metrics, one log line. Plain ASGI, for speed."""

    _OPEN = ("/healthz", "/readyz", "/")

    def __init__(self, app: Any, service: _Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("ascii", "ignore")
        identity = given if given.isascii() and given.isprintable() and 0 < len(given) <= 64 else uuid.uuid4().hex
        status = 500

        async def marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", identity.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            if scope["path"] not in self._OPEN and not self._admitted(headers):
                refusal = Refused(401, "token", "expected the header Authorization: Bearer TOKEN")
                await _error(refusal, {"WWW-Authenticate": "Bearer"})(scope, receive, marked)
            else:
                await self._answer(scope, receive, marked)
        finally:
            spent = time.perf_counter() - started
            self.service.metrics.requests.labels(str(status)).inc()
            if scope["path"].endswith("/predict"):
                self.service.metrics.seconds.observe(spent)
            if _log.isEnabledFor(logging.INFO):
                line = {"request_id": identity, "method": scope["method"], "path": scope["path"], "status": status}
                _log.info(json.dumps(line | {"ms": round(spent * 1e3, 2)}))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except Refused as refusal:
            await _error(refusal)(scope, receive, send)
        except Overloaded as overload:
            full = Refused(429, "overloaded", "the queue is full, come back later")
            await _error(full, {"Retry-After": str(overload.retry_after_s)})(scope, receive, send)
        except Draining:
            await _error(Refused(503, "draining", "the server is shutting down"))(scope, receive, send)

    def _admitted(self, headers: Mapping[bytes, bytes]) -> bool:
        token = self.service.settings.token
        if token is None:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # compared in constant time, so that answers don't tell how much was right
        return hmac.compare_digest(given.strip(), token.encode()) and scheme.lower() == b"bearer"


def _error(refusal: Refused, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"code": refusal.code, "message": refusal.message}}
    return JSONResponse(body, refusal.status, headers)


def _prediction(model: ServedModel, row: npt.NDArray[np.float32]) -> dict[str, Any]:
    predictor = model.predictor
    top = [{"label": label, "probability": share} for label, share in predictor.top(row, _TOP)]
    return {"label": predictor.label_of(row), "probability": float(row.max()), "top": top}
