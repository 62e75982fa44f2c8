"""Requests that arrive together are computed together: a bounded queue, and as many batches at once as fit.

While batches are computed the next one gathers, so under load nothing ever waits for the clock; the latency
budget only matters when the processor is idle. Work that takes less than handing it to a thread is worth is done
on the spot: a thread that computes for microseconds mostly waits for Python's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Asked", "Batcher", "Draining", "Overloaded"]

Stored = npt.NDArray[Any]
Probabilities = npt.NDArray[np.float32]
Deliver = Callable[[Probabilities | None, BaseException | None], None]
"""Told the answers of a request, or why there are none; called once, in the event loop."""

_ON_THE_SPOT_S = 0.002


class Overloaded(Exception):
    """The queue is full. ``retry_after_s`` says when to try again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


class Draining(Exception):
    """The server is shutting down and takes nothing new."""


class Asked:
    """The inputs of one request, by what they are computed, and where its answers gather."""

    __slots__ = ("compute", "deadline", "deliver", "missing", "over", "rows")

    def __init__(
        self, count: int, compute: Callable[[Stored], Probabilities], deliver: Deliver, deadline: float
    ) -> None:
        self.compute = compute
        self.deadline = deadline
        self.rows: list[Probabilities | None] = [None] * count
        self.missing = count
        self.deliver = deliver
        self.over = False

    def take(self, place: int, row: Probabilities) -> None:
        """One input's answer."""
        self.rows[place] = row
        self.missing -= 1
        if not self.missing and not self.over:
            self.over = True
            self.deliver(np.stack(self.rows) if len(self.rows) > 1 else row[None], None)  # type: ignore[arg-type]

    def fail(self, error: BaseException) -> None:
        """No answer, and why."""
        if not self.over:
            self.over = True
            self.deliver(None, error)

    def give_up(self) -> None:
        """Whoever asked has gone: nothing of it is computed any more."""
        self.over = True


_Waiting = tuple[Stored, Asked, int]


class Batcher:
    """Computes single inputs in batches.

    Args:
        compute: stored inputs ``[n, channels, *size]`` → probabilities ``[n, classes]``; runs in the threads of
            this batcher, or on the spot.
        largest: inputs in a batch at most; a function if that changes while serving.
        wait_s: longest wait of the first input for company while idle.
        queue: inputs waiting at most.
        workers: batches computed at once.
        expected_s: seconds that a full batch takes; below 2 ms it is computed on the spot.
    """

    def __init__(
        self,
        compute: Callable[[Stored], Probabilities],
        *,
        largest: int | Callable[[], int] = 32,
        wait_s: float = 0.002,
        queue: int = 256,
        workers: int = 1,
        expected_s: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.compute = compute
        self.batches = 0
        self.computed = 0
        self._largest = largest if callable(largest) else lambda: largest
        self._wait_s = wait_s
        self._limit = queue
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(workers, thread_name_prefix="convlens-compute")
        self._workers = workers
        self._running = 0
        self._expected_s = expected_s
        self._task: asyncio.Task[None] | None = None
        self._draining = False
        self._took_s = 0.0

    @property
    def waiting(self) -> int:
        """Inputs in the queue now."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to compute; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def put(
        self,
        inputs: list[Stored],
        deliver: Deliver,
        compute: Callable[[Stored], Probabilities] | None = None,
        deadline: float = math.inf,
    ) -> Asked:
        """Queue the inputs of one request.

        Args:
            inputs: of one shape.
            deliver: told the probabilities, in order, or why there are none.
            compute: by what, where that is not this batcher's own; only inputs of the same are computed together.
            deadline: of `time.monotonic`; what would be answered later is answered `Overloaded` instead.

        Raises:
            Overloaded: they do not fit into the queue; none was taken.
            Draining: the server is shutting down.
        """
        if self._draining:
            raise Draining
        if len(self._waiting) + len(inputs) > self._limit:
            raise Overloaded(1)
        asked = Asked(len(inputs), compute or self.compute, deliver, deadline)
        self._waiting.extend((stored, asked, place) for place, stored in enumerate(inputs))
        self._changed.set()
        return asked

    async def submit(
        self,
        inputs: list[Stored],
        compute: Callable[[Stored], Probabilities] | None = None,
        deadline: float = math.inf,
    ) -> Probabilities:
        """Probabilities of the inputs of one request; arguments and errors as `put`."""
        answered: asyncio.Future[Probabilities] = asyncio.get_running_loop().create_future()

        def deliver(found: Probabilities | None, error: BaseException | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            elif found is not None:
                answered.set_result(found)

        asked = self.put(inputs, deliver, compute, deadline)
        try:
            return await answered
        finally:
            asked.give_up()  # a request that was given up must not be computed

    async def drain(self) -> None:
        """Take nothing new, compute what waits, end."""
        self._draining = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            if self._waiting and self._running < self._workers:
                await self._gather()
                taken = self._taken()
                if taken and self._expected_s() < _ON_THE_SPOT_S:
                    self._compute_here(taken)
                    await asyncio.sleep(0)  # what arrived in the meantime is read before the next batch
                elif taken:
                    self._compute_in_thread(taken)
                continue
            if self._draining and not self._waiting and not self._running:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _gather(self) -> None:
        """Wait for company: what has arrived already, and if nothing is computed, for the latency budget."""
        await asyncio.sleep(0)
        largest = self._largest()
        if self._running or largest == 1 or not self._wait_s or self._expected_s() < _ON_THE_SPOT_S:
            return
        deadline = time.monotonic() + self._wait_s
        while len(self._waiting) < largest and not self._draining:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _taken(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        largest = self._largest()
        ready = time.monotonic() + max(self._took_s, self._expected_s())
        while self._waiting and len(taken) < largest:
            if taken and self._waiting[0][1].compute != taken[0][1].compute:
                break
            one = self._waiting.popleft()
            if one[1].over:
                continue
            if one[1].deadline < ready:
                one[1].fail(Overloaded(1))
                continue
            taken.append(one)
        return taken

    def _compute_here(self, taken: list[_Waiting]) -> None:
        try:
            answers = taken[0][1].compute(_batch(taken))
        except Exception as error:
            _fail(taken, error)
            return
        self._deliver(taken, answers)

    def _compute_in_thread(self, taken: list[_Waiting]) -> None:
        started = time.monotonic()
        self._running += 1
        compute = taken[0][1].compute
        future = asyncio.get_running_loop().run_in_executor(self._thread, lambda: compute(_batch(taken)))

        def done(found: asyncio.Future[Probabilities]) -> None:
            self._running -= 1
            took = time.monotonic() - started
            self._took_s = max(took, 0.8 * self._took_s + 0.2 * took)  # rather too long: others compute beside it
            self._changed.set()
            if found.cancelled():
                _fail(taken, Draining())
            elif (error := found.exception()) is not None:
                _fail(taken, error)
            else:
                self._deliver(taken, found.result())

        future.add_done_callback(done)

    def _deliver(self, taken: list[_Waiting], answers: Probabilities) -> None:
        self.batches += 1
        self.computed += len(taken)
        for (_, asked, place), row in zip(taken, answers, strict=True):
            asked.take(place, row)


def _batch(taken: list[_Waiting]) -> Stored:
    return np.stack([stored for stored, _, _ in taken])


def _fail(taken: list[_Waiting], error: BaseException) -> None:
    """Every request of the batch must hear of it."""
    for _, asked, _ in taken:
        asked.fail(error)
