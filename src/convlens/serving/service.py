"""What happens to one request: admission, body, decoding, the batch, and the answer as bytes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
import prometheus_client as prometheus

from convlens.errors import BadFileError
from convlens.serving.batching import Batcher, Draining, Overloaded
from convlens.serving.requests import Refused, bodies, pixels_of
from convlens.serving.served import Loaded, ServedModel
from convlens.serving.settings import ServeSettings

__all__ = ["Answer", "Metrics", "Service"]

_log = logging.getLogger("convlens.serving")
_SMALL_PIXELS = 1 << 16  # a picture that is decoded sooner than handed to a thread
_SMALL_BYTES = 1 << 15
_TOP = 5
_PAUSE_S = 0.1  # before a 429: reading and refusing costs as much as answering with a small net
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, body, and headers besides its length."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [_JSON])

    @classmethod
    def refusal(cls, why: Refused, *headers: tuple[bytes, bytes]) -> Answer:
        """An error as JSON: ``{"error": {"code": …, "message": …}}``."""
        body = json.dumps({"error": {"code": why.code, "message": why.message}}).encode()
        return cls(why.status, body, [_JSON, *headers])


class Metrics:
    """What Prometheus is told; a registry of its own, so that two apps in a process don't collide."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "convlens_requests_total", "Requests by status", ["status"], registry=self.registry
        )
        self._by_status: dict[int, prometheus.Counter] = {}
        self.images = prometheus.Counter("convlens_images_total", "Pictures answered", registry=self.registry)
        self.seconds = prometheus.Histogram(
            "convlens_request_seconds",
            "Time from request to answer",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.waiting = prometheus.Gauge("convlens_waiting", "Pictures in the queue", registry=self.registry)
        self.batch = prometheus.Gauge("convlens_mean_batch", "Pictures computed together", registry=self.registry)

    def count(self, status: int) -> None:
        """One more request that ended with ``status``."""
        found = self._by_status.get(status)
        if found is None:
            found = self._by_status[status] = self._requests.labels(str(status))
        found.inc()


class Service:
    """The models with their batchers."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServeSettings) -> None:
        self.models = models
        self.first = next(iter(models))
        self.settings = settings
        self.metrics = Metrics()
        self.ready = False
        self.leaving = False
        """The process was asked to end: what comes is answered, connections are closed after it."""
        self._admitted = dict.fromkeys(models, 0)
        self._held_bytes = 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.decoders = ThreadPoolExecutor(cores, thread_name_prefix="convlens-decode")
        self.batchers = {
            name: Batcher(
                model.compute,
                largest=lambda model=model: min(model.batch, settings.batch),  # type: ignore[misc]
                wait_s=settings.wait_ms / 1e3,
                queue=settings.queue,
                workers=settings.workers or max(1, cores // settings.threads),
                expected_s=lambda model=model: model.batch_seconds,  # type: ignore[misc]
            )
            for name, model in models.items()
        }

    def start(self) -> None:
        """Begin to compute; needs a running event loop."""
        for batcher in self.batchers.values():
            batcher.start()
        self.ready = True

    async def drain(self) -> None:
        """Take nothing new, answer what waits, end."""
        self.ready = False
        await asyncio.gather(*(batcher.drain() for batcher in self.batchers.values()))
        self.decoders.shutdown()

    async def answer(self, name: str, scope: Any, receive: Any) -> Answer:
        """The response to a request for predictions by the model ``name``; never raises a refusal."""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await self._predictions(name, scope, receive)
        except TimeoutError:
            late = Refused(503, "timeout", f"no answer within {self.settings.timeout_s:g} s")
            return Answer.refusal(late, (b"retry-after", b"1"))
        except Refused as why:
            return Answer.refusal(why)
        except Overloaded as overload:
            # who asks again at once would otherwise take the time that the answers need
            await asyncio.sleep(_PAUSE_S)
            full = Refused(429, "overloaded", "more is waiting than can be answered soon, come back later")
            return Answer.refusal(full, (b"retry-after", str(overload.retry_after_s).encode()))
        except Draining:
            return Answer.refusal(Refused(503, "draining", "the server is shutting down"))

    async def _predictions(self, name: str, scope: Any, receive: Any) -> Answer:
        served = self.models.get(name)
        if served is None:
            raise Refused(404, "model", f"expected one of {', '.join(self.models)}, received {name[:100]!r}")
        top = _top(scope["query_string"])
        model = served.now  # one and the same for this request, whatever is loaded meanwhile
        length = 0

        def hold(count: int) -> None:
            nonlocal length
            length += count
            self._held_bytes += count
            if self._held_bytes > self.settings.held_bytes:
                raise Overloaded(1)

        try:
            raws = await bodies(scope["headers"], receive, self.settings, hold)
            rows = await self._computed(name, model, raws)
        finally:
            self._held_bytes -= length
        document = _document(name, model, rows, top)
        self.metrics.images.inc(len(rows))
        return Answer(200, document)

    async def _computed(self, name: str, model: Loaded, raws: list[bytes]) -> npt.NDArray[np.float32]:
        batcher, count = self.batchers[name], len(raws)
        self._admitted[name] += count
        try:
            expected_s = self._admitted[name] * batcher.seconds_each
            alone = self._admitted[name] == count
            if self._admitted[name] > self.settings.queue or (expected_s > self.settings.budget_s and not alone):
                raise Overloaded(max(1, math.ceil(expected_s - self.settings.budget_s)))
            stored = [await self._decoded(model, raw, place) for place, raw in enumerate(raws)]
            return await batcher.submit(stored, model.compute)
        finally:
            self._admitted[name] -= count

    async def _decoded(self, model: Loaded, raw: bytes, place: int) -> npt.NDArray[Any]:
        form = model.predictor.preprocessing
        try:
            if form.kind == "image":
                pixels = pixels_of(raw)
                if pixels > self.settings.pixels:
                    limit = f"at most {self.settings.pixels:,} pixels"
                    raise Refused(413, "pixels", f"picture {place}: expected {limit}, received {pixels:,}")
                small = pixels <= _SMALL_PIXELS and len(raw) <= 4 * _SMALL_PIXELS
            else:
                small = len(raw) <= _SMALL_BYTES
            if small:
                return form.decode(raw)
            return await asyncio.get_running_loop().run_in_executor(self.decoders, form.decode, raw)
        except BadFileError as error:
            raise Refused(400, "picture", f"picture {place}: {error}") from None

    async def watch(self) -> None:
        """Look for newer model files until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.watch_s)
            for model in self.models.values():
                before = model.last_error
                if await loop.run_in_executor(self.decoders, model.reload_if_changed):
                    _log.info(json.dumps({"event": "reloaded", "model": model.name}))
                elif model.last_error and model.last_error != before:
                    _log.error(json.dumps({"event": "kept_old", "model": model.name, "why": model.last_error}))


def _top(query: bytes) -> int:
    """How many classes of each input are named: ``?top=N``."""
    if not query:
        return _TOP
    try:
        found = int(parse_qs(query.decode("ascii"), max_num_fields=20).get("top", [_TOP])[-1])
    except ValueError:
        found = 0
    if found < 1:
        raise Refused(400, "top", "top: expected a whole number from 1")
    return found


def _document(name: str, model: Loaded, rows: npt.NDArray[np.float32], top: int) -> bytes:
    """The answers as JSON. Written out, as every request pays for it."""
    quoted, predictor = model.quoted, model.predictor
    predictions = []
    for row in rows:
        best = np.argsort(-row, kind="stable")[:top].tolist()
        values = row.tolist()
        if not math.isfinite(sum(values)):
            raise Refused(
                400, "not_a_number", "an answer is not a number: the input's values are out of all bounds"
            )
        listed = ",".join(f'{{"label":{quoted[i]},"probability":{values[i]!r}}}' for i in best)
        label = json.dumps(predictor.label_of(row)) if predictor.card.multilabel else quoted[best[0]]
        predictions.append(f'{{"label":{label},"probability":{values[best[0]]!r},"top":[{listed}]}}')
    return f'{{"model":{json.dumps(name)},"predictions":[{",".join(predictions)}]}}'.encode()
