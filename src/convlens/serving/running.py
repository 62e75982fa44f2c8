"""The process: one listening socket, SIGTERM and SIGINT drain it, exit without error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn

from convlens.errors import DeviceError
from convlens.serving.application import create_app
from convlens.serving.served import ServedModel
from convlens.serving.settings import ServeSettings

__all__ = ["serve"]


class _Server(uvicorn.Server):
    """uvicorn without its habit of ending the process by the signal that stopped it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows has no such handlers; Ctrl-C works anyway
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class _Line(logging.Formatter):
    """One JSON object a line, with the time."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        try:
            document: dict[str, Any] = json.loads(text)
        except ValueError:
            document = {"message": text}
        stamp = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        return json.dumps(stamp | document, ensure_ascii=False)


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
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    log = logging.getLogger("convlens.serving")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    listener = _listen(settings)
    config = uvicorn.Config(
        create_app(models, settings),
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
    announce(f"{scheme}://{host}:{listener.getsockname()[1]}/")
    _Server(config).run(sockets=[listener])


def _listen(settings: ServeSettings) -> socket.socket:
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
