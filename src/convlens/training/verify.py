"""Proof on a user's own run that stopping loses nothing: replay between two checkpoints, with one stop more."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convlens import data, planner
from convlens.errors import TrainingError
from convlens.modelfile.container import read_container
from convlens.training.checkpoint import FORMAT_VERSION, KIND, Checkpoint, checkpoint_files
from convlens.training.defaults import build
from convlens.training.events import Events
from convlens.training.loop import Trainer
from convlens.training.machine import choose_machine
from convlens.training.rundir import RunDirectory
from convlens.training.session import make_trainer
from convlens.training.transfer import start_weights

__all__ = ["Verification", "verify_resume"]

_TIMES = ("seconds", "epoch_seconds", "samples_per_second")
"""Measured, so they differ between any two executions."""


@dataclass(frozen=True)
class Verification:
    """Outcome of a replay.

    Attributes:
        from_step: where the replay began (0: from fresh weights).
        stopped_at: steps at which the replay was stopped and resumed.
        to_step: the checkpoint with which it was compared.
        tensors: number of tensors compared, bit for bit.
        different: names of those that differ, and of other values that do.
    """

    run: str
    from_step: int
    stopped_at: int
    to_step: int
    tensors: int
    different: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """True where every bit agrees."""
        return not self.different


def verify_resume(path: str | Path, events: Events | None = None) -> Verification:
    """Train again from a run's last checkpoint but one to its last, stop half-way, and compare every bit.

    The run itself is not changed.

    Raises:
        PathError: no such run.
        TrainingError: it has no checkpoint yet, its data changed, or a time budget makes it unrepeatable.
    """
    run = RunDirectory.open(Path(path))
    recipe = run.recipe
    if recipe.time_budget:
        raise TrainingError(f"{path}: was trained to a time budget, so no two executions are the same.")
    checkpoints = [_read(file) for file in reversed(checkpoint_files(run.checkpoints))]
    if not checkpoints or not checkpoints[-1].step:
        raise TrainingError(f"{path}: no checkpoint after its first step yet.")
    start = checkpoints[0] if len(checkpoints) > 1 else None
    target = checkpoints[-1]
    dataset = data.open(recipe.data or "", recipe.data_options)
    if dataset.fingerprint != target.record["fingerprint"]:
        raise TrainingError(f"{path}: its data changed since it was trained.")
    machine = choose_machine(recipe)
    planner.pin(target.record["plans"])

    def replay(begin: Checkpoint | None, end: _End) -> Checkpoint:
        torch.manual_seed(recipe.seed)
        trainer = make_trainer(
            _Replay, recipe, dataset, build(recipe, dataset), machine, events or Events(), lambda _: None
        )
        if begin is not None:
            trainer.restore(begin)
        else:
            start_weights(trainer.network, recipe, trainer.events.note)
        return trainer.until(end)

    first = start.step if start else 0
    middle = first + (target.step - first) // 2
    halfway = replay(start, _End(middle, inside_epoch=True)) if middle > first else start
    again = replay(halfway, _End(target.step, inside_epoch=target.record["position"] > 0))
    return Verification(
        str(path), first, middle, target.step, len(target.tensors), tuple(_differences(target, again))
    )


@dataclass(frozen=True)
class _End:
    step: int
    inside_epoch: bool
    """True: the state right after the step; False: after the epoch was closed."""


class _Reached(Exception):
    """The state to compare with has been made."""


class _Replay(Trainer):
    """A trainer that saves nothing and ends at a given state."""

    _end = _End(0, inside_epoch=True)
    _state: Checkpoint | None = None

    def until(self, end: _End) -> Checkpoint:
        """Train to ``end`` and give the state there."""
        self._end = end
        with suppress(_Reached):
            self.run()
        if self._state is None:
            raise TrainingError(f"the replay ended before step {end.step}")
        return self._state

    def _persist(self) -> None:
        progress = self.progress
        if progress.step == self._end.step and (progress.position > 0) == self._end.inside_epoch:
            self._state = self.checkpoint()
            raise _Reached

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        super()._step(inputs, labels)
        if self.progress.step + 1 == self._end.step and self._end.inside_epoch:
            self.stop.ask()

    def _close_epoch(self) -> None:
        self._last_save = float("-inf")
        super()._close_epoch()


def _read(path: Path) -> Checkpoint:
    tensors, record = read_container(path, KIND, FORMAT_VERSION)
    return Checkpoint({name: tensor.clone() for name, tensor in tensors.items()}, record)


def _differences(first: Checkpoint, second: Checkpoint) -> list[str]:
    names = sorted(first.tensors.keys() | second.tensors.keys())
    different = [name for name in names if not _same_bits(first.tensors.get(name), second.tensors.get(name))]
    wanted = {key: value for key, value in first.record.items() if key in second.record}
    return different + [
        key for key, value in wanted.items() if _timeless(value, key) != _timeless(second.record[key], key)
    ]


def _same_bits(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None or first.dtype != second.dtype or first.shape != second.shape:
        return False
    return (
        first.detach().cpu().contiguous().numpy().tobytes() == second.detach().cpu().contiguous().numpy().tobytes()
    )


def _timeless(value: Any, key: str = "") -> Any:
    if key in _TIMES:
        return None
    if isinstance(value, dict):
        return {name: _timeless(item, name) for name, item in value.items()}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
