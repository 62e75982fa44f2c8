"""Draws a training run: a live line while it goes on, one line per epoch that matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convlens.training import Events, Step

__all__ = ["TrainDisplay"]

_MOST_EPOCH_LINES = 15
"""A terminal shows about this many epochs of a long run, evenly spaced; metrics.jsonl has them all."""


class TrainDisplay(Events):
    """Shows the events of a run on ``console``; without a terminal only notes and epoch lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run = ""
        self._epochs = 1
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        """Print a remark."""
        self.console.print(f"  {text}", style="dim", markup=False, soft_wrap=True)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Print what will be trained and start the live line."""
        self.run = plan["run"]
        self._epochs = plan["epochs"]
        samples = plan["samples"]
        self.console.print(
            f"Training [bold]{plan['model']}[/] ({plan['parameters']:,} parameters) "
            f"on {samples['train']:,} samples (dev {samples['dev']:,}, test {samples['test']:,}): "
            f"{self._epochs} epochs of {plan['steps_per_epoch']:,} steps",
            soft_wrap=True,
        )
        if self.console.is_terminal:
            self._start_live_line()

    def step(self, step: Step) -> None:
        """Move the live line."""
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                completed=step.progress,
                description=f"epoch {step.epoch + 1}/{self._epochs}",
                loss=f"{step.loss:.4f}",
                accuracy=f"{100 * step.accuracy:.2f} %",
                speed=f"{step.samples_per_second:,.0f}/s",
            )

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Print the epoch, unless there are so many that a selection tells more."""
        number = metrics["epoch"]
        every = -(-self._epochs // _MOST_EPOCH_LINES)
        if number != 1 and number != self._epochs and number % every:
            return
        dev = ""
        if metrics["dev_accuracy"] is not None:
            dev = f"   dev loss {metrics['dev_loss']:.4f}  accuracy {100 * metrics['dev_accuracy']:6.2f} %"
        self.console.print(
            f"  epoch {number:>{len(str(self._epochs))}}   train loss {metrics['train_loss']:.4f}  "
            f"accuracy {100 * metrics['train_accuracy']:6.2f} %{dev}   "
            f"{metrics['samples_per_second']:,.0f} samples/s",
            soft_wrap=True,
        )

    def end(self) -> None:
        """Remove the live line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start_live_line(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("start", total=1.0, loss="-", accuracy="-", speed="-")
        self._progress.start()
