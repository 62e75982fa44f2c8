"""`convlens explore`: the pages and their JSON, for this machine only.

Loopback only, a random token in every request, Host and Origin checked (so that another site's page can
neither read nor reach it, DNS rebinding included), and a policy that forbids every other host.
"""

from __future__ import annotations

import hmac
import secrets
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse

from convlens.errors import ConvlensError
from convlens.explorer.bundle import static_file
from convlens.explorer.change import Change
from convlens.explorer.lessons import LESSONS
from convlens.explorer.playground import Asked, answer
from convlens.explorer.session import Session, position_of
from convlens.explorer.turns import ORDER, Overtaken

__all__ = ["create_app", "new_token"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"css": "text/css", "js": "text/javascript", "html": "text/html", "svg": "image/svg+xml"}
_LARGEST_UPLOAD = 64 << 20


def new_token() -> str:
    """A token that can't be guessed, for one server's life."""
    return secrets.token_urlsafe(24)


def create_app(session: Session | None, token: str, hosts: set[str]) -> FastAPI:
    """The application.

    Args:
        session: the net to explore; None for the playground and the lessons alone.
        token: must come with every request for data, as the header ``X-Convlens-Token``.
        hosts: values of the Host header that are answered, ``"127.0.0.1:8000"``.
    """
    app = FastAPI(title="convlens explorer", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        refused = _refusal(request, token, hosts)
        sent = request.headers.get("x-convlens-order", "")
        ORDER.set(int(sent) if sent.isascii() and sent.isdigit() else None)
        response: Response = JSONResponse({"error": refused}, 403) if refused else await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(Overtaken)
    async def overtaken(request: Request, error: Overtaken) -> Response:
        # no error code: browsers would report it as one, and nothing went wrong
        return JSONResponse({"overtaken": True})

    @app.exception_handler(ConvlensError)
    async def explained(request: Request, error: ConvlensError) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.get("/")
    async def index(token: str = "") -> Response:
        page = static_file("explorer.html").read_text(encoding="utf-8")
        return HTMLResponse(page)

    @app.get("/static/{name:path}")
    async def static(name: str) -> Response:
        root = files("convlens.explorer").joinpath("static")
        parts = name.split("/")
        if len(parts) > 2 or any(part in ("", ".", "..") or "\\" in part for part in parts):
            return Response(status_code=404)
        file = root.joinpath(*parts)
        if not file.is_file():
            return Response(status_code=404)
        return Response(file.read_bytes(), media_type=_TYPES.get(name.rpartition(".")[2], "text/plain"))

    _add_api(app, session)
    return app


def _refusal(request: Request, token: str, hosts: set[str]) -> str | None:
    """Why a request is not answered; None if it is."""
    host = request.headers.get("host", "")
    if host not in hosts:
        return f"this server answers as {' or '.join(sorted(hosts))}, not as {host!r}"
    origin = request.headers.get("origin")
    if origin is not None and origin not in {f"http://{name}" for name in hosts}:
        return "another site's page may not use this server"
    path = request.url.path
    if path.startswith("/static/"):
        return None
    given = request.query_params.get("token", "") if path == "/" else request.headers.get("x-convlens-token", "")
    if not hmac.compare_digest(given.encode(), token.encode()):
        return "the token is missing or wrong: open the address that `convlens explore` printed"
    return None


def _add_api(app: FastAPI, session: Session | None) -> None:
    @app.get("/api/lessons")
    def lessons() -> Any:
        return LESSONS

    @app.post("/api/convolve")
    def convolve(asked: Asked) -> Any:
        return answer(asked)

    @app.get("/api/net")
    def net() -> Any:
        return session.describe() | session.current() if session else None

    if session is None:
        return

    @app.post("/api/sample/{number}")
    def sample(number: int) -> Any:
        return session.use_sample(number)

    @app.post("/api/input")
    async def upload(request: Request) -> Any:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _LARGEST_UPLOAD:
                return JSONResponse({"error": f"expected at most {_LARGEST_UPLOAD >> 20} MB"}, 413)
        return await run_in_threadpool(session.use_bytes, bytes(raw))

    @app.get("/api/progress")
    async def progress() -> Any:
        return session.turns.progress()

    @app.post("/api/stop")
    async def stop() -> Any:
        session.turns.stop()
        return {}

    @app.get("/api/input")
    def current(planes: str = "") -> Any:
        return session.current(position_of(planes) if planes else None)

    @app.get("/api/layer")
    def layer(name: str, plane: int | None = None) -> Any:
        return session.layer(name, plane)

    @app.get("/api/filters")
    def filters(name: str, channel: int = 0, plane: int | None = None) -> Any:
        return session.filters(name, channel, plane)

    @app.get("/api/excited")
    def excited(name: str, channel: int) -> Any:
        return session.excited(name, channel)

    @app.post("/api/change")
    def change(asked: Change) -> Any:
        return session.change(asked)

    @app.get("/api/point")
    def point(name: str, channel: int, position: str) -> Any:
        return session.pixel(name, channel, position_of(position), apart=False)

    @app.get("/api/pixel")
    def pixel(name: str, channel: int, position: str) -> Any:
        return session.pixel(name, channel, position_of(position))

    @app.get("/api/backward")
    def backward(name: str, channel: int, position: str) -> Any:
        return session.backward(name, channel, position_of(position))

    @app.get("/api/algorithms")
    def algorithms(name: str) -> Any:
        return session.algorithms(name)

    @app.get("/api/evidence")
    def evidence(method: str = "grad_cam", target: int | None = None) -> Any:
        return session.evidence(method, target)

    @app.get("/api/adversary")
    def adversary() -> Any:
        return session.adversary()
