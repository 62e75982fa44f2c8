"""A load generator of one process: ``python -m convlens.bench.serving.load URL --body FILE``.

Requests go over connections that stay open, each with at most one request at a time. Without ``--rate`` every
connection asks again as soon as it has its answer (closed loop); with it requests come at that rate whatever the
server does (open loop). Prints one JSON document.

``latency`` counts from when a request was due to its answer's last byte: waiting for a free connection, the
server's queue of connections and this process's lateness are all in it. How late this process itself was, where
a connection was free, is told apart as ``own_lateness``, and so is its share of a core (``generator_cpu_share``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

GAVE_UP_S = 30.0


class Load:
    """What is asked, and what came of it."""

    def __init__(self, url: str, bodies: list[bytes], kind: str, token: str | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: {kind}\r\n"
        head += f"Authorization: Bearer {token}\r\n" if token else ""
        self.messages = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        self.asked = 0
        self.statuses: Counter[int] = Counter()
        self.lost: Counter[str] = Counter()
        self.latencies: dict[int, list[float]] = {}
        self.lateness: list[float] = []
        self.waited = 0
        self.samples: dict[int, bytes] = {}
        self.closed = 0
        self.stopping = False

    def next_message(self) -> bytes:
        """The request that comes next."""
        message = self.messages[self.asked % len(self.messages)]
        self.asked += 1
        return message

    def answered(self, status: int, seconds: float, body: bytes) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        self.latencies.setdefault(status, []).append(seconds)
        self.samples.setdefault(status, body)

    def summary(self, seconds: float) -> dict[str, Any]:
        """What came of it, as plain values."""

        def quantiles(values: list[float]) -> dict[str, float]:
            points = np.percentile(values, (50, 95, 99, 99.9)) * 1e3
            named = zip(("p50_ms", "p95_ms", "p99_ms", "p999_ms"), points, strict=True)
            return {name: round(float(value), 3) for name, value in named} | {"max_ms": max(values) * 1e3}

        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": round(seconds, 3),
            "asked": self.asked,
            "answered_per_s": round(self.statuses[200] / seconds, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "lost": dict(self.lost),
            "connections_closed_by_server": self.closed,
            "own_lateness": quantiles(self.lateness) if self.lateness else {},
            "waited_for_a_connection": self.waited,
            "latency": {str(status): quantiles(values) for status, values in sorted(self.latencies.items())},
            "sample": {
                str(status): body.decode("utf-8", "replace")[:300] for status, body in self.samples.items()
            },
            "generator_cpu_share": round((used.ru_utime + used.ru_stime) / seconds, 2),
        }


class Connection(asyncio.Protocol):
    """One connection; ``idle`` is told when it may be asked again."""

    def __init__(self, load: Load, idle: Any) -> None:
        self.load, self.idle = load, idle
        self.transport: Any = None
        self.due = 0.0
        self.waiting = False
        self.buffer = b""
        self.needed = -1

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport
        self.idle(self)

    def ask(self, due: float) -> None:
        """Send the next request, which was due at ``due``."""
        self.due, self.waiting = due, True
        self.transport.write(self.load.next_message())

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.buffer = self.buffer + data if self.buffer else data
        if self.needed < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            self.needed = end + 4 + length
            self.closing = b"connection: close" in head
        if len(self.buffer) < self.needed:
            return
        status, body = int(self.buffer[9:12]), self.buffer[: self.needed]
        self.load.answered(status, time.perf_counter() - self.due, body.partition(b"\r\n\r\n")[2])
        self.buffer, self.needed, self.waiting = b"", -1, False
        if self.closing:
            self.transport.close()
        else:
            self.idle(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.load.closed += 1
        if self.waiting:
            self.load.lost[type(error).__name__ if error else "closed without an answer"] += 1
            self.waiting = False
        self.idle(None)


async def closed_loop(load: Load, connections: int, seconds: float) -> float:
    """Every connection asks again as soon as it has its answer; returns the seconds it took."""
    loop = asyncio.get_running_loop()
    live: set[Connection] = set()

    def idle(connection: Connection | None) -> None:
        if connection is not None and not load.stopping:
            connection.ask(time.perf_counter())
        elif connection is None and not load.stopping:
            loop.call_later(0.01, lambda: loop.create_task(connect()))

    async def connect() -> None:
        if load.stopping:
            return
        try:
            _, made = await loop.create_connection(lambda: Connection(load, idle), load.host, load.port)
            live.add(made)
        except OSError:
            load.lost["refused a connection"] += 1
            if load.lost["refused a connection"] > 50 * connections:
                load.stopping = True
            loop.call_later(0.05, lambda: loop.create_task(connect()))

    started = time.perf_counter()
    await asyncio.gather(*(connect() for _ in range(connections)))
    while time.perf_counter() - started < seconds and not load.stopping:
        await asyncio.sleep(0.02)
    load.stopping = True
    spent = time.perf_counter() - started
    await finished(live)
    return spent


async def open_loop(load: Load, connections: int, seconds: float, rate: float) -> float:
    """Requests at ``rate`` a second; those that find no idle connection wait, and that counts."""
    loop = asyncio.get_running_loop()
    free: deque[Connection] = deque()
    live: set[Connection] = set()
    due: deque[float] = deque()

    def idle(connection: Connection | None) -> None:
        if connection is None:
            if not load.stopping:
                loop.create_task(connect())
        elif due:
            load.waited += 1
            connection.ask(due.popleft())
        else:
            free.append(connection)

    async def connect() -> None:
        try:
            _, made = await loop.create_connection(lambda: Connection(load, idle), load.host, load.port)
            live.add(made)
        except OSError:
            load.lost["refused a connection"] += 1

    await asyncio.gather(*(connect() for _ in range(connections)))
    random = np.random.default_rng(0)
    started = following = time.perf_counter()
    while (now := time.perf_counter()) - started < seconds:
        while following <= now:
            due.append(following)
            following += random.exponential(1 / rate)
        while due and free:
            connection = free.popleft()
            if connection.transport is not None and not connection.transport.is_closing():
                load.lateness.append(time.perf_counter() - due[0])
                connection.ask(due.popleft())
        await asyncio.sleep(0.001)
    spent = time.perf_counter() - started
    load.lost["never sent"] += len(due)
    due.clear()
    load.stopping = True
    await finished(live)
    load.lost += Counter()
    return spent


async def finished(live: set[Connection]) -> None:
    """Wait for the answers that are still owed."""
    deadline = time.perf_counter() + GAVE_UP_S
    while any(one.waiting for one in live) and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    for one in live:
        if one.waiting:
            one.load.lost["no answer"] += 1
            one.waiting = False
        if one.transport is not None:
            one.transport.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Load one URL with posted bodies.")
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, action="append", required=True)
    parser.add_argument("--kind", default="application/octet-stream")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--token")
    chosen = parser.parse_args()
    load = Load(chosen.url, [path.read_bytes() for path in chosen.body], chosen.kind, chosen.token)
    if chosen.rate:
        work = open_loop(load, chosen.connections, chosen.seconds, chosen.rate)
    else:
        work = closed_loop(load, chosen.connections, chosen.seconds)
    try:
        import uvloop

        spent = uvloop.run(work)
    except ImportError:
        spent = asyncio.run(work)
    print(json.dumps(load.summary(spent)))


if __name__ == "__main__":
    main()
