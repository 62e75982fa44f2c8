"""The process: one listening socket, SIGTERM and SIGINT drain it, exit without error."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

import uvicorn

from convlens.errors import DeviceError, PathError
from convlens.serving.application import create_app
from convlens.serving.served import ServedModel
from convlens.serving.service import Service
from convlens.serving.settings import ServeSettings

__all__ = ["listening", "serve"]


class _Server(uvicorn.Server):
    """uvicorn that neither ends the process by the signal that stopped it nor shuts the door in a caller's face.

    Closing idle connections at once would lose the request that is on its way on one of them. So for a while
    after the signal everything is still answered, with the word that the connection ends. Then those who have
    connected already are let in, the door is shut, and they get as long again to ask.
    """

    service: Service
    linger_s: float
    started_well: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self.started_well()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the farewell, a second one ends it."""
        if self.service.leaving or not self.started:
            super().handle_exit(sig, frame)
            return
        self.service.leaving = True
        asyncio.get_running_loop().call_later(self.linger_s, super().handle_exit, sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let in who waits at the door, shut it, wait for their requests, then close what is idle."""
        await self._shut_the_door(sockets or [])
        deadline = time.monotonic() + self.linger_s
        while self.server_state.connections and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    async def _shut_the_door(self, sockets: list[socket.socket]) -> None:
        waiting: list[socket.socket] = []
        for listener in sockets:
            listener.setblocking(False)
            with contextlib.suppress(OSError):  # BlockingIOError: nobody waits
                while True:
                    waiting.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        protocol = functools.partial(
            self.config.http_protocol_class,  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop = asyncio.get_running_loop()
        for connection in waiting:
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # gone again
                await loop.connect_accepted_socket(protocol, connection, ssl=self.config.ssl)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows has no such handlers; Ctrl-C works anyway
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class _Line(logging.Formatter):
    """One JSON object a line, with the time. Messages are JSON objects already, or text."""

    _second: tuple[int, str] = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not text.startswith("{"):
            text = json.dumps({"message": text}, ensure_ascii=False)
        second = int(record.created)
        if second != self._second[0]:
            self._second = second, self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        return f'{{"time": "{self._second[1]}", "level": "{record.levelname.lower()}", {text[1:]}'


def serve(
    models: Mapping[str, ServedModel],
    settings: ServeSettings,
    announce: Callable[[str], None],
    *,
    quiet: bool = False,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; what is in flight then is still answered.

    Args:
        models: by name; the first answers requests that name none.
        settings: limits and places.
        announce: told the address once requests are answered.
        quiet: no line for each request.

    Raises:
        DeviceError: the address cannot be listened on.
        PathError: certificate or key cannot be used.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    log = logging.getLogger("convlens.serving")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    listener = listening(settings)
    app = create_app(models, settings)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=round(settings.drain_s),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        server_header=False,
    )
    scheme = "https" if settings.tls_certificate else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        config.load()
    except OSError as error:  # an SSLError is one too
        listener.close()
        files = f"{settings.tls_certificate} and {settings.tls_key}"
        why = error.strerror or error
        raise PathError(
            f"tls: expected a certificate and its key, both PEM; {files} cannot be used ({why})."
        ) from None
    server = _Server(config)
    server.service, server.linger_s = app.state.service, settings.linger_s
    server.started_well = lambda: announce(f"{scheme}://{host}:{listener.getsockname()[1]}/")
    server.run(sockets=[listener])


def listening(settings: ServeSettings) -> socket.socket:
    """A socket that listens where the settings say; raises `DeviceError` where that cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise DeviceError(f"{where} cannot be listened on: {error.strerror}. Choose another --port.") from error
    return listener
