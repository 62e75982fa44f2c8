"""Who is let in: a request is refused at once if it would have to wait longer than the latency budget.

How long it would wait is the number of pictures before it times what one takes lately, all told: reading,
decoding, computing, writing, and whatever else the processor does meanwhile, refusals among it. That is measured
as the time between answers while there is work. The time that the event loop needs to come round counts as well,
as a request has waited that long before it is seen.
"""

from __future__ import annotations

import asyncio
import math
import time

from convlens.serving.batching import Overloaded

__all__ = ["Admission", "Claim"]

_MEMORY_S = 1.0  # of what answers take: work longer ago counts 1/e, and so on
_MARGIN = 0.7  # of the budget: the estimate is a mean, and what is admitted scatters around it
_LATEST = 0.9  # of the budget: what would be answered later is refused after all
_PULSE_S = 0.02


class Claim:
    """The place of one admitted request.

    Attributes:
        deadline: of `time.monotonic`, by which it should be answered; infinite if nobody was before it.
    """

    __slots__ = ("_admission", "count", "deadline")

    def __init__(self, admission: Admission, count: int, deadline: float) -> None:
        self._admission, self.count, self.deadline = admission, count, deadline

    def grow(self, count: int) -> None:
        """The request turned out to hold ``count`` pictures; raises `Overloaded` if those are too many now."""
        self._admission.grow(self, count)

    def release(self, answered: bool) -> None:
        """It is over; whether by an answer tells what answers take."""
        self._admission.release(self, answered)


class Admission:
    """The requests that are being answered by one model.

    Args:
        most: pictures at most.
        budget_s: longest time from a request's arrival to its answer.
    """

    def __init__(self, most: int, budget_s: float) -> None:
        self.most, self.budget_s = most, budget_s
        self.admitted = 0
        self._answered = 1.0
        self._busy_s = 0.001
        self._since = 0.0
        self._lag_s = 0.0
        self._pulsing = False

    @property
    def seconds_each(self) -> float:
        """What one picture takes lately while others are taken care of as well."""
        return self._busy_s / self._answered

    def expected_s(self, count: int = 1) -> float:
        """How long ``count`` pictures more would take from their arrival to the answer."""
        return self._lag_s + (self.admitted + count) * self.seconds_each

    def refusal(self, count: int = 1) -> Overloaded | None:
        """Why ``count`` pictures more would be refused now; None if they are welcome."""
        if not self.admitted:
            return None  # nobody is before it: sooner it cannot be had
        expected = self.expected_s(count)
        if self.admitted + count <= self.most and expected <= _MARGIN * self.budget_s:
            return None
        return Overloaded(max(1, math.ceil(expected - self.budget_s)))

    def claim(self) -> Claim:
        """Let a request in, whose pictures are counted later; raises `Overloaded`."""
        if (refused := self.refusal()) is not None:
            raise refused
        now = time.monotonic()
        if not self.admitted:
            self._since = now
            self._pulse()
        deadline = now - self._lag_s + _LATEST * self.budget_s if self.admitted else math.inf
        self.admitted += 1
        return Claim(self, 1, deadline)

    def grow(self, claim: Claim, count: int) -> None:
        """See `Claim.grow`."""
        others = self.admitted - claim.count
        if count > claim.count and (
            count + others > self.most
            or (others and self._lag_s + (others + count) * self.seconds_each > _MARGIN * self.budget_s)
        ):
            raise Overloaded(1)
        self.admitted += count - claim.count
        claim.count = count

    def release(self, claim: Claim, answered: bool) -> None:
        """See `Claim.release`."""
        self.admitted -= claim.count
        if answered:
            now = time.monotonic()
            spent = now - self._since
            kept = math.exp(-spent / _MEMORY_S)  # the answers of a batch come together: none of them fades
            self._busy_s = kept * self._busy_s + spent
            self._answered = kept * self._answered + claim.count
            self._since = now

    def _pulse(self) -> None:
        """See how late the event loop comes round, as long as there is work."""
        if self._pulsing:
            return
        self._pulsing = True
        loop = asyncio.get_running_loop()
        due = loop.time() + _PULSE_S

        def beat() -> None:
            nonlocal due
            late = max(0.0, loop.time() - due)
            self._lag_s = max(late, 0.5 * self._lag_s)
            if not self.admitted:
                self._pulsing, self._lag_s = False, 0.0
                return
            due = loop.time() + _PULSE_S
            loop.call_at(due, beat)

        loop.call_at(due, beat)
