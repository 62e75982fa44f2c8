"""Whose turn it is to compute: one request at a time, newer ones of a kind before older, stoppable, with progress.

A page that follows the pointer asks faster than a large net answers. A request that a newer one of its kind has
overtaken is dropped, before it starts or between two layers, so that nothing piles up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from convlens.errors import ConvlensError

__all__ = ["ORDER", "Overtaken", "Turns"]

ORDER: ContextVar[int | None] = ContextVar("ORDER", default=None)
"""When the page sent the request that is answered, in microseconds: requests may arrive in another order."""


class Overtaken(ConvlensError):
    """The request was stopped, or a newer one took its place."""


class Turns:
    """A lock with memory.

    Args:
        model: its layers are where a computation can be stopped, and what progress counts.
    """

    def __init__(self, model: nn.Module) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, int] = {}
        self._stopped = 0
        self._now: tuple[str, int] | None = None
        self._since = 0.0
        self._layer, self._done, self._total = "", 0, 0
        for name, module in model.named_modules():
            if not any(module.children()):
                module.register_forward_pre_hook(self._hook(name))

    @contextmanager
    def turn(self, kind: str, total: int = 0) -> Iterator[None]:
        """Wait for the turn, then compute.

        Args:
            kind: requests of one kind overtake each other.
            total: steps expected, for progress.

        Raises:
            Overtaken: on entering or from within, when there is a newer request or `stop` was called.
        """
        mine = ORDER.get() or time.time_ns() // 1000
        self._newest[kind] = max(mine, self._newest.get(kind, 0))
        with self._lock:
            self._now, self._since = (kind, mine), time.perf_counter()
            self._layer, self._done, self._total = "", 0, total
            try:
                self.check()
                yield
            finally:
                self._now = None

    def check(self) -> None:
        """Raise `Overtaken` if the computation that runs is no longer wanted; may be called anywhere within."""
        if self._now is None:
            return
        kind, mine = self._now
        if self._newest[kind] != mine or mine <= self._stopped:
            raise Overtaken("stopped")

    def stop(self) -> None:
        """Give up every request that has come so far."""
        self._stopped = max(self._newest.values(), default=0)

    def step(self, done: int, total: int) -> None:
        """Tell how far a computation of many parts is."""
        self._done, self._total = done, total
        self.check()

    def progress(self) -> dict[str, Any]:
        """What runs now: kind, layer, steps done and expected, seconds; empty when nothing does."""
        now = self._now
        if now is None:
            return {}
        return {
            "kind": now[0],
            "layer": self._layer,
            "done": self._done,
            "total": self._total,
            "seconds": round(time.perf_counter() - self._since, 1),
        }

    def _hook(self, name: str) -> Any:
        def entered(module: nn.Module, inputs: Any) -> None:
            self._layer = name
            self.check()

        return entered
