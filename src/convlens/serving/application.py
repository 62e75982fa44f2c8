"""The HTTP interface: predict, models, health, metrics, and a page to try it on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import prometheus_client as prometheus
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from convlens.serving.page import PAGE, SCRIPT
from convlens.serving.requests import Refused
from convlens.serving.served import ServedModel
from convlens.serving.service import Answer, Service, identity_of
from convlens.serving.settings import ServeSettings

__all__ = ["create_app"]

_Top = Annotated[int, Query(ge=1, description="Classes named for each picture, the most probable first.")]

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


def create_app(models: Mapping[str, ServedModel], settings: ServeSettings) -> FastAPI:
    """The application; the first model answers requests that name none."""
    service = Service(models, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        watcher = asyncio.get_running_loop().create_task(service.watch()) if settings.watch_s else None
        yield
        if watcher is not None:
            watcher.cancel()
        await service.drain()

    app = FastAPI(
        title="convlens",
        summary="Predictions of trained networks",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # it would read a query that is no UTF-8, and fail on it
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(_Door, service=service)

    @app.post("/v1/predict", openapi_extra=_BODY, responses=_ERRORS)
    async def predict(request: Request, top: _Top = 5) -> Response:
        """Classify one or many pictures with the first model."""
        return _response(await service.answer(service.first, request.scope, request.receive))

    @app.post("/v1/models/{name}/predict", openapi_extra=_BODY, responses=_ERRORS)
    async def predict_with(name: str, request: Request, top: _Top = 5) -> Response:
        """Classify one or many pictures with the model called ``name``."""
        return _response(await service.answer(name, request.scope, request.receive))

    @app.get("/v1/models", responses={401: _ERRORS[401]})
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
        ready = service.ready and not service.leaving
        return JSONResponse({"status": "ready" if ready else "draining"}, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: _ERRORS[401]})
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


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, {name.decode(): value.decode() for name, value in answer.headers})


class _Door:
    """What surrounds every request: id, token, metrics, one log line. Plain ASGI, for speed.

    Requests for predictions are answered here: FastAPI's routing costs more than a small net's prediction. Its
    routes of the same paths give the same answers and make the OpenAPI document.
    """

    _OPEN = ("/healthz", "/readyz", "/")

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service
        self._named = service.named

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        given = authorization = b""
        for header, value in scope["headers"]:
            if header == b"x-request-id":
                given = value
            elif header == b"authorization":
                authorization = value
        identity = identity_of(given)
        around = [(b"x-request-id", identity), (b"x-content-type-options", b"nosniff")]
        if self.service.leaving:
            around.append((b"connection", b"close"))
        status = 500
        try:
            status = await self._answered(scope, receive, send, authorization, around)
        finally:
            self.service.note(identity, scope["method"], scope["path"], status, time.perf_counter() - started)

    async def _answered(
        self, scope: Any, receive: Any, send: Any, authorization: bytes, around: list[tuple[bytes, bytes]]
    ) -> int:
        """Answer, and say with which status."""
        if scope["path"] not in self._OPEN and not self.service.admits(authorization):
            refusal = Refused(401, "token", "expected the header Authorization: Bearer TOKEN")
            answer = Answer.refusal(refusal, (b"www-authenticate", b"Bearer"))
        elif scope["method"] == "POST" and (name := self._named.get(scope["path"])) is not None:
            answer = await self.service.answer(name, scope, receive)
        else:
            return await self._passed_on(scope, receive, send, around)
        length = (b"content-length", str(len(answer.body)).encode())
        headers = [*answer.headers, length, *around]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        return answer.status

    async def _passed_on(self, scope: Any, receive: Any, send: Any, around: list[tuple[bytes, bytes]]) -> int:
        status = 500

        async def marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *around]
            await send(message)

        await self.app(scope, receive, marked)
        return status
