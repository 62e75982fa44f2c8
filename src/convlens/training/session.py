"""`train`: from a recipe to a finished run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from convlens import data, planner
from convlens.data.augment import Augmenter
from convlens.environment import launch_id, restarts
from convlens.errors import RecipeError, TrainingError
from convlens.modelfile.card import ModelCard, now, write_model
from convlens.training.batches import BatchSource
from convlens.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from convlens.training.defaults import build, complete
from convlens.training.diagnosis import diagnose
from convlens.training.evaluation import EVALUATION_BATCH, Scores, score
from convlens.training.events import Events
from convlens.training.interrupt import stop_on_signals
from convlens.training.looks import evaluation_of, use_plans
from convlens.training.loop import Trainer
from convlens.training.machine import Machine, choose_machine
from convlens.training.rate_finder import find_learning_rate
from convlens.training.recipe import Recipe
from convlens.training.regularise import add_dropout
from convlens.training.rundir import RunDirectory, list_runs
from convlens.training.team import ALONE, Team, check_for_team, explained, join, synchronise_norms
from convlens.training.transfer import start_weights

__all__ = ["Result", "make_trainer", "train"]

_T = TypeVar("_T", bound=Trainer)
DIAGNOSIS_SAMPLES = 5000


@dataclass(frozen=True)
class Result:
    """A finished run."""

    run: RunDirectory
    recipe: Recipe
    card: ModelCard
    best: Mapping[str, Any]
    """``epoch``, ``dev_accuracy`` and ``dev_loss`` of the weights that were kept."""
    test: Scores
    seconds: float
    """Training time over all resumes, without reading the data."""


def train(
    recipe: Recipe, out: str | Path | None = None, resume: bool = False, events: Events | None = None
) -> Result:
    """Train a network and write its run directory.

    Args:
        recipe: settings; ``recipe.data`` says on what.
        out: the run directory; the next free ``runs/DATA-MODEL-N`` when None.
        resume: go on with the run in ``out`` (or the newest unfinished run of this data) where it stopped.
        events: told what happens.

    Raises:
        ConvlensError: any of its kinds, for data, settings, device, disk, or a loss that diverged.
        Interrupted: Ctrl-C or SIGTERM; everything is saved.
    """
    events = events or Events()
    team = join()
    check_for_team(recipe, team)
    if not team.is_first:
        events = Events()
    if recipe.data is None:
        raise RecipeError("data: expected what to train on (digits, or a path), received nothing.")
    if restarts() and not resume:
        begun = team.tell(str(_begun_before_restart(out) or "") if team.is_first else "")
        out, resume = (begun, True) if begun else (out, False)
    if resume:
        run = RunDirectory.open(Path(out) if out is not None else _newest_unfinished(recipe.data))
        if run.model_file.exists():
            raise TrainingError(f"{run.path}: this run has finished. Train anew with another --out.")
        recipe = run.recipe
    dataset = data.open(recipe.data or "", recipe.data_options)
    _tell_data(dataset, events)
    if not resume:
        recipe = complete(recipe, dataset)
    check_for_team(recipe, team)  # again: the batch size is known now
    machine = choose_machine(recipe)
    for reason in machine.reasons:
        events.note(reason)
    torch.manual_seed(recipe.seed)
    network = build(recipe, dataset)
    if not resume:
        start_weights(network, recipe, events.note)
        recipe = _with_found_rate(recipe, network, dataset, machine, events)
        launch = launch_id() if team.world > 1 else ""
        made = str(RunDirectory.create(Path(out) if out else None, recipe, launch).path) if team.is_first else ""
        run = RunDirectory(Path(team.tell(made)))
    with explained(team):
        return _Session(run, recipe, dataset, machine, events, team).go(network, resume)


def _with_found_rate(
    recipe: Recipe, network: nn.Module, dataset: data.Dataset, machine: Machine, events: Events
) -> Recipe:
    """``recipe`` with the rate that the finder advises, if it is asked for; the run's file then holds the rate."""
    if not recipe.find_rate:
        return recipe
    source = BatchSource(dataset, ("train",), machine.device)
    found = find_learning_rate(recipe, network.to(machine.device), source)
    lowest = min(found.losses)
    best = found.rates[found.losses.index(lowest)]
    events.note(
        f"learning rate {found.advised:g}: a tenth of {best:.2g}, where the loss was lowest ({lowest:.3f})"
    )
    return recipe.with_settings(learning_rate=found.advised, find_rate=False)


def make_trainer(
    kind: type[_T],
    recipe: Recipe,
    dataset: data.Dataset,
    network: nn.Module,
    machine: Machine,
    events: Events,
    save: Callable[[Checkpoint], None],
    team: Team = ALONE,
) -> _T:
    """A trainer of class ``kind`` on the train and dev parts, all on the device in its fastest layout."""
    network = network.to(machine.device)
    if _is_flat(dataset):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    add_dropout(network, recipe.dropout)
    augmenter = None
    if not recipe.augment.changes_nothing:
        augmenter = Augmenter(recipe.augment, dataset.preprocessing, dataset.num_classes, recipe.seed)
    train_part = _part(dataset, "train", machine, augmenter=augmenter, balance=recipe.balance)
    dev_part = _part(dataset, "dev", machine)
    if team.world > 1:
        synchronise_norms(network)
        train_part.least = max(2, team.world)
    return kind(recipe, network, train_part, dev_part, machine, events, save, team)


def _is_flat(dataset: data.Dataset) -> bool:
    """Whether samples have two spatial axes, which are computed fastest in channels_last."""
    return dataset.preprocessing.kind in ("image", "spectral")


def _part(dataset: data.Dataset, split: str, machine: Machine, **options: Any) -> BatchSource:
    return BatchSource(dataset, (split,), machine.device, channels_last=_is_flat(dataset), **options)


def diagnosis_of(
    network: nn.Module,
    dataset: data.Dataset,
    machine: Machine,
    best: Mapping[str, Any],
    test: Scores,
    batch_size: int | None,
) -> dict[str, Any]:
    """``errors`` of the parts, ``findings`` and the health of each layer, as JSON values.

    The train error is measured without augmentation, on at most `DIAGNOSIS_SAMPLES` samples.
    """
    chosen = dataset.indices("train")
    chosen = chosen[:: -(-len(chosen) // DIAGNOSIS_SAMPLES)]
    part = _part(replace(dataset, splits={**dataset.splits, "train": chosen}), "train", machine)
    errors = {"train": 1 - score(network, part).accuracy}
    counts = {"train": len(chosen), "dev": len(dataset.indices("dev")), "test": test.samples}
    if best.get("dev_accuracy") is not None:
        errors["dev"] = 1 - best["dev_accuracy"]
    if test.samples:
        errors["test"] = 1 - test.accuracy
    inputs, labels = next(part.ordered(EVALUATION_BATCH))
    findings, health = diagnose(network, inputs, labels, errors, counts, dataset.multilabel, batch_size)
    return {
        "errors": errors,
        "findings": [finding.model_dump() for finding in findings],
        "layers": [layer.model_dump() for layer in health],
    }


class _Session:
    """One run from its first or next step to its model file."""

    def __init__(
        self,
        run: RunDirectory,
        recipe: Recipe,
        dataset: data.Dataset,
        machine: Machine,
        events: Events,
        team: Team,
    ) -> None:
        self.team = team
        self.run = run
        self.recipe = recipe
        self.dataset = dataset
        self.machine = machine
        self.events = events

    def go(self, network: nn.Module, resume: bool) -> Result:
        with stop_on_signals() as stop:
            trainer = make_trainer(
                Trainer, self.recipe, self.dataset, network, self.machine, self.events, self._save, self.team
            )
            trainer.stop = stop
            if resume:
                self._restore(trainer)
            self._begin(trainer)
            try:
                trainer.run()
            finally:
                self.events.end()
        return self._finish(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self.events.begin(
            {
                "run": str(self.run.path),
                "model": self.recipe.model,
                "parameters": sum(p.numel() for p in trainer.network.parameters()),
                "epochs": self.recipe.epochs,
                "first_epoch": trainer.progress.epoch,
                "batch_size": self.recipe.batch_size,
                "steps_per_epoch": trainer.train_source.steps(self.recipe.batch_size or 1),
                "samples": {name: len(self.dataset.indices(name)) for name in data.SPLITS},
            }
        )

    def _save(self, checkpoint: Checkpoint) -> None:
        if not self.team.is_first:
            return
        checkpoint.record["fingerprint"] = self.dataset.fingerprint
        checkpoint.record["plans"] = planner.used()
        save_checkpoint(self.run.checkpoints, checkpoint)
        self.run.write_metrics(checkpoint.record["history"])

    def _restore(self, trainer: Trainer) -> None:
        if self.team.is_first:
            for leftover in self.run.path.rglob(".*.tmp"):  # half-written when the process was killed
                leftover.unlink(missing_ok=True)
        else:
            self.team.wait()  # until damaged files are set aside
        checkpoint = load_newest(self.run.checkpoints, self.events.note)
        if self.team.is_first:
            self.team.wait()
        if checkpoint is None:
            self.events.note("no checkpoint yet: the run begins again from its first step, with the same result")
            start_weights(trainer.network, self.recipe, self.events.note)
            return
        if checkpoint.record["fingerprint"] != self.dataset.fingerprint:
            raise TrainingError(
                f"{self.run.path}: its data ({self.dataset.source}) changed since the run began, so it cannot go "
                f"on where it stopped. Restore the data, or train anew with another --out."
            )
        use_plans(checkpoint.record["plans"])
        trainer.restore(checkpoint)
        progress = trainer.progress
        self.events.note(f"resumed after step {progress.step} (epoch {progress.epoch + 1})")

    def _finish(self, trainer: Trainer) -> Result:
        """Keep the best weights, write the model, then look at the test part once and count it."""
        network = trainer.network
        network.load_state_dict(trainer.best_state)
        card = self._card(trainer)
        if self.team.is_first:
            self.run.write_metrics(trainer.progress.history)
            write_model(self.run.model_file, network.state_dict(), card)
        test = score(network, _part(self.dataset, "test", self.machine), team=self.team)
        evaluations = (evaluation_of(self.dataset, test),) if test.samples else ()
        card = card.model_copy(
            update={
                "test_evaluations": evaluations,
                "test_accuracy": test.accuracy if evaluations else None,
                "diagnosis": diagnosis_of(
                    network, self.dataset, self.machine, trainer.progress.best, test, self.recipe.batch_size
                ),
            }
        )
        if self.team.is_first:
            write_model(self.run.model_file, network.state_dict(), card)
        self.team.wait()
        return Result(self.run, self.recipe, card, trainer.progress.best, test, trainer.progress.seconds)

    def _card(self, trainer: Trainer) -> ModelCard:
        progress = trainer.progress
        channels, *size = self.dataset.preprocessing.shape
        architecture = {
            "name": self.recipe.model,
            "in_channels": channels,
            "num_classes": self.dataset.num_classes,
            "input_size": size,
            **self.recipe.model_options,
        }
        return ModelCard(
            architecture=architecture,
            preprocessing=self.dataset.preprocessing,
            class_names=self.dataset.class_names,
            multilabel=self.dataset.multilabel,
            data={
                "source": self.dataset.source,
                "fingerprint": self.dataset.fingerprint,
                **{name: len(self.dataset.indices(name)) for name in data.SPLITS},
            },
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            training={
                "epochs": progress.epoch,
                "steps": progress.step,
                "seconds": progress.seconds,
                **{f"best_{key}" if key == "epoch" else key: value for key, value in progress.best.items()},
                **self.machine.describe(),
            },
            plans=planner.used(),
            created=now(),
        )


def _newest_unfinished(source: str) -> Path:
    unfinished = [run for run in list_runs() if run.status == "unfinished" and run.data == source]
    if not unfinished:
        raise TrainingError(f"no unfinished run of {source} under runs/. Name one with --out DIR.")
    newest = max(unfinished, key=lambda run: Path(run.run).stat().st_mtime)
    return Path(newest.run)


def _begun_before_restart(out: str | Path | None) -> Path | None:
    """The unfinished run that this launch of ``torchrun`` was at when a process was lost, if it has begun one."""
    runs = [RunDirectory(Path(out))] if out is not None else [RunDirectory(Path(run.run)) for run in list_runs()]
    unfinished = [run for run in runs if run.recipe_file.exists() and not run.model_file.exists()]
    return next((run.path for run in unfinished if out is not None or run.launch == launch_id()), None)


def _tell_data(dataset: data.Dataset, events: Events) -> None:
    events.note(repr(dataset))
    report = dataset.report
    for note in report.notes:
        events.note(note)
    for skipped in report.skipped[:5]:
        events.note(f"skipped {skipped.path}: {skipped.reason}")
    if len(report.skipped) > 5:
        events.note(f"… and {len(report.skipped) - 5} more files were skipped")
