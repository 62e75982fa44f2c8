"""Ctrl-C and SIGTERM become a flag that the loop looks at between steps, so that the state is whole when saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from convlens.errors import TrainingError

__all__ = ["Interrupted", "StopFlag", "stop_on_signals"]


class Interrupted(TrainingError):
    """Training was stopped by the user or the system after everything was saved."""


class StopFlag:
    """True once somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Stop after the present step."""
        self.asked = True


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Within the block the first Ctrl-C or SIGTERM sets the flag; the second ends the program at once.

    Signals can only be caught in a process's main thread; elsewhere the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def caught(number: int, frame: FrameType | None) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.ask()

    watched = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, caught) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
