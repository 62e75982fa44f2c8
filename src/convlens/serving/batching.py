"""Requests that arrive together are computed together: a bounded queue and one computing thread.

While a batch is computed the next one gathers, so under load nothing ever waits for the clock; the latency
budget only matters when the processor is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Batcher", "Draining", "Overloaded"]

Stored = npt.NDArray[Any]
Probabilities = npt.NDArray[np.float32]


class Overloaded(Exception):
    """The queue is full. ``retry_after_s`` says when to try again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


class Draining(Exception):
    """The server is shutting down and takes nothing new."""


class Batcher:
    """Computes single inputs in batches.

    Args:
        compute: stored inputs ``[n, channels, *size]`` → probabilities ``[n, classes]``; runs in one thread.
        largest: inputs in a batch at most.
        wait_s: longest wait of the first input for company while idle.
        queue: inputs waiting at most.
    """

    def __init__(
        self,
        compute: Callable[[Stored], Probabilities],
        *,
        largest: int = 32,
        wait_s: float = 0.002,
        queue: int = 256,
    ) -> None:
        self.compute = compute
        self.batches = 0
        self.computed = 0
        self._largest = largest
        self._wait_s = wait_s
        self._limit = queue
        self._waiting: deque[tuple[Stored, asyncio.Future[Probabilities]]] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="convlens-compute")
        self._task: asyncio.Task[None] | None = None
        self._draining = False
        self._seconds_each = 0.001

    @property
    def waiting(self) -> int:
        """Inputs in the queue now."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to compute; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def submit(self, inputs: list[Stored]) -> Probabilities:
        """Probabilities of the inputs of one request, in order.

        Raises:
            Overloaded: they do not fit into the queue; none was taken.
            Draining: the server is shutting down.
        """
        if self._draining:
            raise Draining
        if len(self._waiting) + len(inputs) > self._limit:
            raise Overloaded(max(1, round(len(self._waiting) * self._seconds_each)))
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in inputs]
        self._waiting.extend(zip(inputs, futures, strict=True))
        self._arrived.set()
        if len(self._waiting) >= self._largest:
            self._full.set()
        try:
            return np.stack([await future for future in futures])
        finally:
            for future in futures:  # a request that was given up must not be computed
                future.cancel()

    async def drain(self) -> None:
        """Take nothing new, compute what waits, end."""
        self._draining = True
        self._arrived.set()
        self._full.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        idle = True
        while True:
            if not self._waiting:
                if self._draining:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                idle = True
                continue
            if idle and self._wait_s and len(self._waiting) < self._largest and not self._draining:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._wait_s)
            await self._compute_one()
            idle = False

    async def _compute_one(self) -> None:
        taken: list[tuple[Stored, asyncio.Future[Probabilities]]] = []
        while self._waiting and len(taken) < self._largest:
            one = self._waiting.popleft()
            if not one[1].done():
                taken.append(one)
        if not taken:
            return
        batch = np.stack([stored for stored, _ in taken])
        started = time.perf_counter()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self.compute, batch)
        except Exception as error:  # every request of the batch must hear of it
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
            return
        self.batches += 1
        self.computed += len(taken)
        each = (time.perf_counter() - started) / len(taken)
        self._seconds_each += 0.1 * (each - self._seconds_each)
        for (_, future), row in zip(taken, answers, strict=True):
            if not future.done():
                future.set_result(row)
