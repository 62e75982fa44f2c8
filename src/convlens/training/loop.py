"""The training loop: steps, dev evaluation, checkpoints; its whole state can be saved between any two steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import TrainingError
from convlens.training.batches import BatchSource
from convlens.training.checkpoint import Checkpoint, flat, nested
from convlens.training.divergence import explain_divergence, has_diverged
from convlens.training.evaluation import Scores, count_correct, loss_of, score
from convlens.training.events import Events, Step
from convlens.training.interrupt import Interrupted, StopFlag
from convlens.training.machine import Machine, random_state, restore_random_state
from convlens.training.optimizers import DirectStep, WeightAverage, build_optimizer, limit_norms
from convlens.training.recipe import Recipe, seconds_of
from convlens.training.schedule import learning_rate_factor
from convlens.training.team import ALONE, Team
from convlens.training.transfer import Freezing

__all__ = ["Progress", "Trainer"]

REPORT_SECONDS = 0.1
SAVE_SECONDS = 1.0
"""An epoch's end is saved only so long after the last save: tiny epochs would do nothing else."""

_MOST_UNSETTLED = 32
"""Steps whose answers may wait to be counted."""


@dataclass
class Progress:
    """Where training is; JSON values only, saved in every checkpoint."""

    step: int = 0
    epoch: int = 0
    """Epochs that are complete."""
    position: int = 0
    """Batches done in the present epoch."""
    seconds: float = 0.0
    """Time spent training and evaluating, over all resumes."""
    epoch_seconds: float = 0.0
    """Time spent on the present epoch's steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    """``epoch``, ``dev_accuracy``, ``dev_loss`` of the best state; empty before the first evaluation."""
    finished: bool = False


class Trainer:
    """One run's network, data, optimizer and progress.

    Args:
        recipe: complete settings (`epochs`, `batch_size` and `model` are not None or "auto").
        network: on its device.
        train: training part.
        dev: part that chooses the best epoch; may be empty, then the last epoch is the best.
        machine: where to compute.
        events: who listens.
        save: called with a `Checkpoint` whenever the state should survive.
        team: the processes that train together; all hold the same state after each step.

    Attributes:
        stop: looked at after every step.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        train: BatchSource,
        dev: BatchSource,
        machine: Machine,
        events: Events,
        save: Callable[[Checkpoint], None],
        team: Team = ALONE,
    ) -> None:
        self.recipe = recipe
        self.network = network
        self.train_source = train
        self.dev_source = dev
        self.machine = machine
        self.events = events
        self.progress = Progress()
        self.best_state: dict[str, Tensor] = {}
        self._save = save
        self.stop = StopFlag()
        self.team = team
        self._team_stops = False
        self._freezing = Freezing(network, recipe.train_layers, recipe.unfreeze_epochs)
        self._trained = self._freezing.ever_trained()
        self._optimizer = build_optimizer(recipe, self._trained)
        self._update = DirectStep(self._optimizer)
        self._average = WeightAverage(self._trained, recipe.ema) if recipe.ema else None
        self._epochs = recipe.epochs or 1
        self._batch = recipe.batch_size or 1
        self._budget = seconds_of(recipe.time_budget) if recipe.time_budget else None
        self._steps_per_epoch = train.steps(self._batch)
        # On a CPU reading a number costs nothing; on a GPU it waits for all queued work.
        self._can_look = machine.device.type == "cpu"
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=machine.device)
        self._correct = torch.zeros((), dtype=torch.int64, device=machine.device)
        self._seen = 0
        self._unsettled: list[tuple[float, Tensor, Tensor]] = []
        self._last_save = self._last_report = self._clock = time.perf_counter()

    def run(self) -> None:
        """Train until the epochs, the time budget or the patience are used up.

        Raises:
            Interrupted: the stop flag was set; everything is saved.
            TrainingError: the loss is not finite any more or has exploded; the last good checkpoint stays.
            StorageError: a checkpoint could not be written.
        """
        self._clock = time.perf_counter()
        if not self.progress.step:
            self._persist()
        while not self.progress.finished:
            self._train_epoch()
            self._close_epoch()

    def checkpoint(self) -> Checkpoint:
        """The whole state."""
        self._tick()
        self._settle()
        record = asdict(self.progress)
        record |= {"seen": self._seen, "average_updates": self._average.updates if self._average else 0}
        tensors = {
            "network": self.network.state_dict(),
            "best": self.best_state,
            "optimizer": self._optimizer_tensors(),
            "random": random_state(self.machine.device),
            "sums": {"loss": self._loss_sum, "correct": self._correct},
            "average": {str(i): t for i, t in enumerate(self._average.values)} if self._average else {},
        }
        return Checkpoint(flat(tensors), record)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a state that `checkpoint` gave, bit for bit on a CPU."""
        record = dict(checkpoint.record)
        names = Progress.__dataclass_fields__
        self.progress = Progress(**{name: record[name] for name in names})
        tensors = checkpoint.tensors
        self.network.load_state_dict(nested(tensors, "network"))
        self.best_state = nested(tensors, "best")
        self._load_optimizer(nested(tensors, "optimizer"))
        restore_random_state(nested(tensors, "random"), self.machine.device)
        sums = nested(tensors, "sums")
        self._loss_sum.copy_(sums["loss"])
        self._correct.copy_(sums["correct"])
        self._seen = int(record["seen"])
        self._unsettled.clear()
        if self._average:
            self._average.updates = int(record["average_updates"])
            for place, value in nested(tensors, "average").items():
                self._average.values[int(place)].copy_(value)

    def _train_epoch(self) -> None:
        progress = self.progress
        self._freezing.apply(progress.epoch)
        share = (self.team.rank, self.team.world)
        source = self.train_source.shuffled(
            self._batch, self.recipe.seed, progress.epoch, progress.position, share
        )
        for inputs, labels in source:
            self._step(inputs, labels)
            progress.step += 1
            progress.position += 1
            now = time.perf_counter()
            if now - self._last_report > REPORT_SECONDS:
                self._report(now)
            if self._stops():
                self._persist()
                raise Interrupted(
                    f"Stopped after step {progress.step} (epoch {progress.epoch + 1}); all is saved."
                )
            if self.recipe.checkpoint_seconds and now - self._last_save > self.recipe.checkpoint_seconds:
                self._persist()
            if self._budget_is_spent():
                break
        self._tick()

    def _step(self, inputs: Tensor, labels: Tensor) -> None:
        rate = self.recipe.peak_learning_rate * self._rate_factor()
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        with self.machine.autocast():
            logits = self.network(inputs)
        multilabel = self.train_source.multilabel
        weights = self.train_source.class_weights
        loss = loss_of(
            logits.float(), labels, self.recipe.label_smoothing, multilabel=multilabel, class_weights=weights
        )
        if self._can_look and not math.isfinite(loss.item()):
            raise self._diverged(inputs)
        in_all = self._samples_of_step()
        # Each process adds its part of the mean over the whole batch.
        (loss if self.team.world == 1 else loss * (len(labels) / in_all)).backward()
        # Smoothing and weights change the loss; what is shown compares with the dev loss.
        answers, plain = logits.detach(), loss.detach()
        if self.recipe.label_smoothing or weights is not None:
            plain = loss_of(answers.float(), labels, multilabel=multilabel)
        self._add_up(plain, answers, labels, in_all)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self._trained, self.recipe.clip_norm)
        self._update.take()
        for parameter in self._trained:
            parameter.grad = None
        if self.recipe.max_norm:
            limit_norms(self._trained, self.recipe.max_norm)
        if self._average:
            self._average.update()

    def _stops(self) -> bool:
        """Whether this process, or any of its team, was asked to stop."""
        return self.stop.asked if self.team.world == 1 else self._team_stops

    def _samples_of_step(self) -> int:
        """Samples of the present batch, over all processes."""
        return min(self._batch, len(self.train_source) - self.progress.position * self._batch)

    def _add_up(self, loss: Tensor, answers: Tensor, labels: Tensor, samples: int) -> None:
        """Count the step; in a team also add up gradients, so that every process makes the same update.

        Args:
            loss: mean over this process's samples.
            answers: their scores.
            labels: what they should be.
            samples: of the step, over all processes.
        """
        self._seen += samples
        if self.team.world == 1 and self._can_look:
            self._unsettled.append((loss.item() * len(labels), answers, labels))
            if len(self._unsettled) >= _MOST_UNSETTLED:
                self._settle()
            return
        loss, correct = loss * len(labels), count_correct(answers, labels, self.train_source.multilabel)
        if self.team.world == 1:
            self._loss_sum.add_(loss)
            self._correct.add_(correct)
            return
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        extras = self.team.add_up(
            gradients, torch.stack([loss, correct.float(), loss.new_tensor(self.stop.asked)])
        )
        self._loss_sum.add_(extras[0])
        self._correct.add_(extras[1].round().to(torch.int64))
        self._team_stops = bool(extras[2])

    def _settle(self) -> None:
        """Bring the sums up to date: many steps' answers are looked at together, in a few calls."""
        if not self._unsettled:
            return
        # one after the other, so that the sum does not depend on when it is brought up to date
        self._loss_sum.fill_(sum((loss for loss, _, _ in self._unsettled), float(self._loss_sum)))
        answers = torch.cat([answer for _, answer, _ in self._unsettled])
        labels = torch.cat([label for _, _, label in self._unsettled])
        self._correct.add_(count_correct(answers, labels, self.train_source.multilabel))
        self._unsettled.clear()

    def _rate_factor(self) -> float:
        epoch = self.progress.epoch + self.progress.position / self._steps_per_epoch
        return learning_rate_factor(self.recipe, self._done_part(), epoch)

    def _done_part(self) -> float:
        """Part of the run that is done, 0–1: by steps or, where a time budget is nearer its end, by time."""
        done = self.progress.step / (self._epochs * self._steps_per_epoch)
        if self._budget is not None:
            self._tick()
            done = max(done, self.progress.seconds / self._budget)
        return min(done, 1.0)

    def _budget_is_spent(self) -> bool:
        if self._budget is None:
            return False
        self._tick()
        return self.progress.seconds >= self._budget

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self.progress.epoch_seconds += now - self._clock
        self._clock = now

    def _report(self, now: float) -> None:
        self._last_report = now
        self._tick()
        self._settle()
        seen = max(1, self._seen)
        self.events.step(
            Step(
                epoch=self.progress.epoch,
                progress=self._done_part(),
                loss=float(self._loss_sum) / seen,
                accuracy=int(self._correct) / seen,
                samples_per_second=self._seen / max(self.progress.epoch_seconds, 1e-9),
            )
        )

    def _close_epoch(self) -> None:
        progress = self.progress
        self._settle()
        train_seconds = progress.epoch_seconds
        rate = self.recipe.peak_learning_rate * self._rate_factor()
        dev = self._score_dev()
        self._tick()
        seen = max(1, self._seen)
        metrics: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": float(self._loss_sum) / seen,
            "train_accuracy": int(self._correct) / seen,
            "dev_loss": dev.loss if dev.samples else None,
            "dev_accuracy": dev.accuracy if dev.samples else None,
            "learning_rate": rate,
            "samples_per_second": self._seen / max(train_seconds, 1e-9),
            "seconds": progress.seconds,
        }
        progress.history.append(metrics)
        progress.epoch += 1
        progress.position = 0
        progress.epoch_seconds = 0.0
        self._loss_sum.zero_()
        self._correct.zero_()
        self._seen = 0
        progress.finished = self._is_finished()
        if has_diverged(metrics["train_loss"], self.train_source.classes):
            raise self._diverged(None)
        if progress.finished or time.perf_counter() - self._last_save > SAVE_SECONDS:
            self._persist()
        self.events.epoch(metrics)

    def _score_dev(self) -> Scores:
        """Evaluate the weights that would be kept, and keep them if they are the best so far."""
        if self._average:
            self._average.swap()
        try:
            scores = score(self.network, self.dev_source, team=self.team)
            if self._is_best(scores):
                self.progress.best = {
                    "epoch": self.progress.epoch + 1,
                    "dev_accuracy": scores.accuracy if scores.samples else None,
                    "dev_loss": scores.loss if scores.samples else None,
                }
                self.best_state = {
                    name: value.detach().clone() for name, value in self.network.state_dict().items()
                }
        finally:
            if self._average:
                self._average.swap()
        return scores

    def _is_best(self, scores: Scores) -> bool:
        best = self.progress.best
        if not best or not scores.samples:
            return True
        return (scores.accuracy, -scores.loss) > (best["dev_accuracy"], -best["dev_loss"])

    def _is_finished(self) -> bool:
        progress = self.progress
        patience = self.recipe.early_stop
        if patience and progress.epoch - progress.best.get("epoch", progress.epoch) >= patience:
            self.events.note(f"early stop: no better dev result for {patience} epochs")
            return True
        return progress.epoch >= self._epochs or self._budget_is_spent()

    def _diverged(self, inputs: Tensor | None) -> TrainingError:
        progress = self.progress
        return TrainingError(explain_divergence(self.network, inputs, progress.step, progress.epoch + 1))

    def _persist(self) -> None:
        """Save, unless the weights are already spoilt: what is on disk must stay good."""
        if not all(torch.isfinite(parameter).all() for parameter in self._trained):
            raise self._diverged(None)
        self._save(self.checkpoint())
        self._last_save = time.perf_counter()

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        return {
            f"{place}/{name}": value
            for place, parameter in enumerate(parameters)
            for name, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Put moments back in the memory layout of their parameter, which fused updates rely on."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            place, name = key.split("/")
            parameter = parameters[int(place)]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(place), {})[name] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
