"""The connection: uvicorn's, but a prediction of a small body is answered without a task of its own.

Most requests to a small net spend more time in the machinery around them than in the net. Here the body's last
byte leads straight to the batch, and the batch's answer straight to the socket. A request that would wait too
long is refused when its headers have come, before its body is read. Everything else, and whatever is unusual about
a request (a form, a large or chunked body, HTTP/1.0, another path), goes uvicorn's way and is answered alike.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from convlens.serving.batching import Overloaded
from convlens.serving.requests import Refused
from convlens.serving.service import PAUSE_S, Answer, Service, TakesLonger, answer_to, identity_of

if TYPE_CHECKING:
    from convlens.serving.batching import Asked

__all__ = ["Connection", "connections_of"]

_GONE = 499  # in the log: nobody was there any more to be answered


def connections_of(service: Service) -> type[Connection]:
    """The class of connections that ask ``service``, for uvicorn's setting ``http``."""
    names = {path.encode(): name for path, name in service.named.items()}
    return type("ServiceConnection", (Connection,), {"service": service, "names": names})


class Connection(HttpToolsProtocol):
    """One connection."""

    service: ClassVar[Service]
    names: ClassVar[dict[bytes, str]]

    begun = 0
    ended = 0
    rested = 0.0
    exchange: Exchange | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing of a request has come that is not answered."""
        return self.begun == self.ended

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.rested = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        # the exchange need not be uvicorn's present cycle: a second request may have come behind it
        if self.exchange is not None:
            self.exchange.leave()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        self.begun += 1
        super().on_message_begin()

    def on_response_complete(self) -> None:
        """A request is answered."""
        self.ended += 1
        self.rested = time.monotonic()
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        """A request's headers have come."""
        exchange = self._exchange()
        if exchange is None:
            super().on_headers_complete()
            return
        self.cycle = self.exchange = exchange  # type: ignore[assignment]
        exchange.begin()

    def _exchange(self) -> Exchange | None:
        """How the request is answered here; None if it is not."""
        path, _, query = self.url.partition(b"?")
        name = self.names.get(path)
        busy = self.cycle is not None and not self.cycle.response_complete
        if name is None or busy or self.expect_100_continue or self.flow.write_paused or b"#" in query:
            return None
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        length, kind, given, authorization = -1, b"", b"", b""
        for header, value in self.headers:
            if header == b"content-length":
                length = int(value) if value.isdigit() and len(value) < 20 else -1
            elif header == b"content-type":
                kind = value
            elif header == b"x-request-id":
                given = value
            elif header == b"authorization":
                authorization = value
            elif header in (b"transfer-encoding", b"upgrade"):
                return None
        overload = self.service.admissions[name].refusal()
        most = HIGH_WATER_LIMIT if overload is None else self.service.settings.body_bytes
        if not 0 <= length <= most or not self.service.admits(authorization):
            return None
        return Exchange(self, name, (path, query, kind.decode("latin-1"), identity_of(given)), length, overload)


class Exchange:
    """A request and its answer, in the shape of uvicorn's own cycle: the connection fills in the body."""

    __slots__ = (
        "asked", "body", "connection", "disconnected", "headers", "keep_alive", "length", "message_event",
        "more_body", "name", "overload", "request", "response_complete", "started", "task", "timer",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        name: str,
        request: tuple[bytes, bytes, str, bytes],
        length: int,
        overload: Overloaded | None,
    ) -> None:
        self.connection, self.name, self.request = connection, name, request
        self.headers = connection.headers  # a request behind this one brings its own
        self.length, self.overload = length, overload
        self.body, self.more_body = bytearray(), True
        self.disconnected = self.response_complete = False
        self.keep_alive = connection.parser.should_keep_alive()
        self.message_event = self
        self.started = time.perf_counter()
        self.asked: Asked | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The headers have come."""
        service, loop = self.connection.service, self.connection.loop
        if self.overload is not None and self.length > HIGH_WATER_LIMIT:
            self._answer(answer_to(self.overload))  # its body is thrown away as it comes
            return
        if not service.hold(self.length):
            self.overload = self.overload or Overloaded(1)
        self.timer = loop.call_later(service.settings.timeout_s, self._late)

    def set(self) -> None:
        """Told by the connection that more of the body has come."""
        if not self.more_body and self.asked is None and self.task is None:
            self._ask()

    def _ask(self) -> None:
        _, query, kind, _ = self.request
        service = self.connection.service
        if self.overload is not None:
            self._refuse(self.overload)
            return
        try:
            self.asked = service.answer_soon(self.name, query, kind, bytes(self.body), self._answer)
        except TakesLonger:
            self.task = self.connection.loop.create_task(self._answer_later())
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        answer = answer_to(error)
        if isinstance(error, Overloaded) and not self.connection.service.leaving:
            self.connection.loop.call_later(PAUSE_S, self._answer, answer)
        else:
            self._answer(answer)

    async def _answer_later(self) -> None:
        _, query, kind, _ = self.request
        scope = {"headers": self.headers, "query_string": query}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(self.body), "more_body": False}

        try:
            answer = await self.connection.service.answer(self.name, scope, receive)
        except Exception as error:
            answer = answer_to(error)
        self._answer(answer)

    def _late(self) -> None:
        if self.response_complete:
            return
        if self.more_body:
            self.keep_alive = False  # the rest of the body may never come
        self._answer(self.connection.service.late())
        self._drop()

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        if not self.response_complete:
            self._over(_GONE)
            self._drop()

    def _drop(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.asked is not None:
            self.asked.fail(Refused(_GONE, "gone", "nobody waits for it any more"))

    def _answer(self, answer: Answer) -> None:
        if self.response_complete:
            return
        connection = self.connection
        if connection.transport.is_closing():
            self.leave()
            return
        if connection.service.leaving:
            self.keep_alive = False
        lines = [STATUS_LINE[answer.status]]
        for name, value in (*connection.server_state.default_headers, *answer.headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"content-length: ", str(len(answer.body)).encode(), b"\r\nx-request-id: ", self.request[3])
        lines += (b"\r\nx-content-type-options: nosniff", b"" if self.keep_alive else b"\r\nconnection: close")
        lines += (b"\r\n\r\n", answer.body)
        connection.transport.write(b"".join(lines))
        self._over(answer.status)
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()

    def _over(self, status: int) -> None:
        self.response_complete, self.connection.exchange = True, None
        service = self.connection.service
        if self.timer is not None:
            self.timer.cancel()
            service.hold(-self.length)
        path = self.request[0].decode("ascii", "replace")
        service.note(self.request[3], "POST", path, status, time.perf_counter() - self.started)
