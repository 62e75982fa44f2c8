"""The process: one listening socket, SIGTERM and SIGINT drain it, exit without error."""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import functools
import gc
import json
import logging
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import uvicorn

from convlens.errors import DeviceError, PathError
from convlens.serving.application import create_app
from convlens.serving.direct import Connection, connections_of
from convlens.serving.served import ServedModel
from convlens.serving.service import Service
from convlens.serving.settings import ServeSettings

if sys.platform == "win32":
    fcntl = termios = None
else:
    import fcntl
    import termios

__all__ = ["listening", "serve"]

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER
_HANDSHAKE_S = 0.05
_LAST_S = 2  # for what is not over when the time to drain is
_KEEP_ALIVE_S = 75  # longer than the minute of usual proxies: then they close idle connections, and lose nothing


class _Server(uvicorn.Server):
    """uvicorn that neither ends the process by the signal that stopped it nor shuts the door in a caller's face.

    A request is in flight from the moment that its first byte, or the connection it comes on, has reached this
    machine. After the signal everything is still answered for a while, with the word that the connection ends.
    Then the door is shut: who has connected already is let in, nobody else. A connection is closed once it has
    been quiet for as long again and nothing waits to be read from it.
    """

    service: Service
    linger_s: float
    drain_s: float
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
        """Shut the door, close what has become quiet, wait for the rest."""
        await self._shut_the_door(sockets or [])
        deadline = time.monotonic() + self.drain_s
        while self.server_state.connections and time.monotonic() < deadline and not self.force_exit:
            self._close_the_quiet()
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    def _close_the_quiet(self) -> None:
        before = time.monotonic() - self.linger_s
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection) and connection.is_idle and connection.rested < before:
                transport = connection.transport
                if not transport.get_write_buffer_size() and not _readable_bytes(transport):
                    transport.close()

    async def _shut_the_door(self, sockets: list[socket.socket]) -> None:
        turned_away = [_turn_away(listener) for listener in sockets]
        if all(turned_away):
            await asyncio.sleep(_HANDSHAKE_S)  # those whose greeting was answered complete theirs
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


class _Filter(ctypes.Structure):
    """Linux's ``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def _turn_away(listener: socket.socket) -> bool:
    """Let nobody connect any more, while those who have can still be accepted; False where that is impossible.

    Closing a listening socket resets whoever has connected and is not accepted yet. On Linux a filter on the
    socket drops the greeting of new ones (SYN), which then find nobody, as they would have after the close.
    """
    if sys.platform != "linux":
        return False
    steps = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (6, 0, 0, 0), (6, 0, 0, 0xFFFF_FFFF))  # flags; SYN? drop : keep
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    try:
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(_Filter(4, program)))
    except OSError:
        return False
    return True


def _readable_bytes(transport: Any) -> int:
    """Bytes that have come and are not read yet."""
    if fcntl is None:
        return 0
    count = array.array("i", [0])
    with contextlib.suppress(OSError):  # closed already
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0]


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
        http=connections_of(app.state.service),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_S,
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
    server.service, server.linger_s, server.drain_s = app.state.service, settings.linger_s, settings.drain_s
    gc.collect()
    gc.freeze()  # a full collection would walk over all of PyTorch's objects, while requests wait
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
