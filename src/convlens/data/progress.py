"""Progress on the error stream, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Track", "silent", "visible"]

Track = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""``with track(total, what) as step: step(n)``."""


@contextmanager
def silent(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """No progress."""
    yield lambda steps: None


@contextmanager
def visible(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A Rich bar with count, rate and time left; nothing for work of no steps."""
    if total == 0:
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)
