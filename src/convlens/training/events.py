"""What a run tells while it goes on; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Events", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """Where training is; at most ten times a second."""

    epoch: int
    """Number of the present epoch, from 0."""
    progress: float
    """Part of the whole run that is done, 0–1."""
    loss: float
    """Mean training loss of this epoch so far, nats."""
    accuracy: float
    """Training accuracy of this epoch so far, 0–1."""
    samples_per_second: float


class Events:
    """Listener that ignores everything; override what you want to hear."""

    def note(self, text: str) -> None:
        """A remark for the reader: a choice with its reason, a damaged file that was set aside."""

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Training starts: ``epochs``, ``steps_per_epoch``, ``samples``, ``parameters``, ``run`` …"""

    def step(self, step: Step) -> None:
        """Some steps were done."""

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """An epoch ended; ``metrics`` is its line of ``metrics.jsonl``."""

    def end(self) -> None:
        """The last epoch ended, or training stopped for any reason."""
