"""A conversation with the server's connections by bytes alone, without a network: for `fuzzing`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from convlens.serving.direct import connections_of

PATIENCE_S = 5.0


class Wire:
    """What a transport does, kept in memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.protocol, self.sent, self.closed = loop, None, bytearray(), False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the end"
        self.sent += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.loop.call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Line:
    """Conversations with one application."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.service = loop, app.state.service
        self.config = uvicorn.Config(app, http=connections_of(self.service), log_level="critical", ws="none")
        self.config.load()

    def say(self, pieces: list[bytes]) -> bytes:
        """Everything that is answered; raises if a request leaves something behind."""
        return self.loop.run_until_complete(self._say(pieces))

    async def _say(self, pieces: list[bytes]) -> bytes:
        wire = Wire(self.loop)
        wire.protocol = protocol = self.config.http_protocol_class(
            config=self.config, server_state=ServerState(), app_state={}, _loop=self.loop
        )
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.closed:
                protocol.data_received(piece)
                await asyncio.sleep(0)
        await self._until(lambda: wire.closed or protocol.is_idle or self._waits(protocol))
        wire.close()
        admission = self.service.admissions["m"]
        await self._until(lambda: admission.admitted == self.service._held_bytes == 0, "held after the end")
        return bytes(wire.sent)

    @staticmethod
    def _waits(protocol: Any) -> bool:
        """Whether it is the client's turn."""
        cycle = protocol.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    @staticmethod
    async def _until(holds: Any, or_else: str = "no answer") -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, or_else
            await asyncio.sleep(0.0002)
