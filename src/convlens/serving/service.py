"""What happens to one request: admission, body, decoding, the batch, and the answer as bytes."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
import prometheus_client as prometheus

from convlens.errors import BadFileError
from convlens.serving.admission import Admission
from convlens.serving.batching import Asked, Batcher, Draining, Overloaded
from convlens.serving.requests import Refused, bodies, pictures_in, pixels_of
from convlens.serving.served import Loaded, ServedModel
from convlens.serving.settings import ServeSettings

__all__ = ["PAUSE_S", "Answer", "Metrics", "Service", "TakesLonger", "answer_to", "identity_of"]

_log = logging.getLogger("convlens.serving")
_SMALL_PIXELS = 1 << 16  # a picture that is decoded sooner than handed to a thread
_SMALL_BYTES = 1 << 15
_TOP = 5
PAUSE_S = 0.1
"""Before a 429: who asks again at once would otherwise take the time that the answers need."""
_IDENTITY = re.compile(rb"[A-Za-z0-9._:/+=-]{1,64}")
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


class TakesLonger(Exception):
    """A request that is not answered on the spot: a form, or a picture that is decoded by a thread."""


def identity_of(given: bytes) -> bytes:
    """A request's id: as the client gave it, or a new one."""
    return given if _IDENTITY.fullmatch(given) else uuid.uuid4().hex.encode()


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
        self.named = {"/v1/predict": self.first} | {f"/v1/models/{name}/predict": name for name in models}
        """Paths that are asked for predictions, and by which model."""
        self.metrics = Metrics()
        self.ready = False
        self.leaving = False
        """The process was asked to end: what comes is answered, connections are closed after it."""
        self.admissions = {name: Admission(settings.queue, settings.budget_s) for name in models}
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

    def admits(self, authorization: bytes) -> bool:
        """Whether a header ``Authorization`` has the token, or none is needed."""
        token = self.settings.token
        if token is None:
            return True
        scheme, _, given = authorization.partition(b" ")
        # compared in constant time, so that answers don't tell how much was right
        return hmac.compare_digest(given.strip(), token.encode()) and scheme.lower() == b"bearer"

    def hold(self, count: int) -> bool:
        """Bodies take so many bytes more (or less); whether that is within the limit."""
        self._held_bytes += count
        return self._held_bytes <= self.settings.held_bytes

    def note(self, identity: bytes, method: str, path: str, status: int, spent_s: float) -> None:
        """A request is over: metrics, and one line."""
        self.metrics.count(status)
        if path.endswith("/predict"):
            self.metrics.seconds.observe(spent_s)
        if _log.isEnabledFor(logging.INFO):
            _log.info(
                '{"request_id": "%s", "method": %s, "path": %s, "status": %d, "ms": %.2f}',
                *(identity.decode(), json.dumps(method), json.dumps(path), status, spent_s * 1e3),
            )

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
            return self.late()
        except (Refused, Overloaded, Draining) as error:
            if isinstance(error, Overloaded) and not self.leaving:
                await asyncio.sleep(PAUSE_S)
            return answer_to(error)

    def late(self) -> Answer:
        """To a request that took longer than it may."""
        late = Refused(503, "timeout", f"no answer within {self.settings.timeout_s:g} s")
        return Answer.refusal(late, (b"retry-after", b"1"))

    def answer_soon(
        self, name: str, query: bytes, content_type: str, raw: bytes, deliver: Callable[[Answer], None]
    ) -> Asked:
        """The same for a small whole body, without a task: ``deliver`` is called with the answer.

        Returns:
            What was queued, to be given up if nobody waits any more.

        Raises:
            Refused, Overloaded, Draining: there is no answer but `answer_to` it.
            TakesLonger: it is to be asked through `answer`; nothing was begun.
        """
        served = self.models[name]
        top, model = _top(query), served.now
        claim = self.admissions[name].claim()

        def over(rows: npt.NDArray[np.float32] | None, error: BaseException | None) -> None:
            claim.release(rows is not None)
            if rows is None:
                deliver(answer_to(error))
                return
            try:
                deliver(self._document(name, model, rows, top))
            except Refused as why:
                deliver(Answer.refusal(why))

        try:
            raws = pictures_in(content_type, raw, self.settings.images)
            if raws is None or not all(self._is_small(model, one, place) for place, one in enumerate(raws)):
                raise TakesLonger
            claim.grow(len(raws))
            stored = [_decoded(model, one, place) for place, one in enumerate(raws)]
            return self.batchers[name].put(stored, over, model.compute, claim.deadline)
        except BaseException:
            claim.release(False)
            raise

    async def _predictions(self, name: str, scope: Any, receive: Any) -> Answer:
        served = self.models.get(name)
        if served is None:
            raise Refused(404, "model", f"expected one of {', '.join(self.models)}, received {name[:100]!r}")
        top = _top(scope["query_string"])
        model = served.now  # one and the same for this request, whatever is loaded meanwhile
        admission = self.admissions[name]
        if (refused := admission.refusal()) is not None:
            raise refused  # before anything of the body is read
        length, claim, rows = 0, None, None

        def hold(count: int) -> None:
            nonlocal length
            length += count
            if not self.hold(count):
                raise Overloaded(1)

        try:
            raws = await bodies(scope["headers"], receive, self.settings, hold)
            claim = admission.claim()  # only now: who sends slowly must not take the place of others
            claim.grow(len(raws))
            stored = [await self._decoded(model, raw, place) for place, raw in enumerate(raws)]
            rows = await self.batchers[name].submit(stored, model.compute, claim.deadline)
        finally:
            if claim is not None:
                claim.release(rows is not None)
            self.hold(-length)
        return self._document(name, model, rows, top)

    def _document(self, name: str, model: Loaded, rows: npt.NDArray[np.float32], top: int) -> Answer:
        document = _document(name, model, rows, top)
        self.metrics.images.inc(len(rows))
        return Answer(200, document)

    def _is_small(self, model: Loaded, raw: bytes, place: int) -> bool:
        """Whether it is decoded sooner than handed to a thread."""
        if model.predictor.preprocessing.kind != "image":
            return len(raw) <= _SMALL_BYTES
        pixels = pixels_of(raw)
        if pixels > self.settings.pixels:
            limit = f"at most {self.settings.pixels:,} pixels"
            raise Refused(413, "pixels", f"picture {place}: expected {limit}, received {pixels:,}")
        return pixels <= _SMALL_PIXELS and len(raw) <= 4 * _SMALL_PIXELS

    async def _decoded(self, model: Loaded, raw: bytes, place: int) -> npt.NDArray[Any]:
        if self._is_small(model, raw, place):
            return _decoded(model, raw, place)
        return await asyncio.get_running_loop().run_in_executor(self.decoders, _decoded, model, raw, place)

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


def answer_to(error: BaseException | None) -> Answer:
    """The response to a request that was refused."""
    if isinstance(error, Refused):
        return Answer.refusal(error)
    if isinstance(error, Overloaded):
        full = Refused(429, "overloaded", "more is waiting than can be answered soon, come back later")
        return Answer.refusal(full, (b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, Draining):
        return Answer.refusal(Refused(503, "draining", "the server is shutting down"))
    _log.error(json.dumps({"event": "failed", "why": repr(error)}))
    return Answer.refusal(Refused(500, "failed", "the prediction failed"))


def _decoded(model: Loaded, raw: bytes, place: int) -> npt.NDArray[Any]:
    try:
        return model.predictor.preprocessing.decode(raw)
    except BadFileError as error:
        raise Refused(400, "picture", f"picture {place}: {error}") from None


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
