"""Search for good settings (LECTURES.md row I7) with Optuna; judged on the dev part, the test part stays closed.

Ways of use: *panda*, one model tended: ``--method coarse-to-fine`` with few trials, looking at each report.
*Caviar*, many in parallel: start the same command on many machines with one ``--storage`` URL of a database; the
number of trials is that of the whole study.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from convlens import data
from convlens.errors import MissingExtraError, RecipeError, TrainingError
from convlens.modelfile.atomic import storage_errors, write_text
from convlens.training.defaults import build, complete
from convlens.training.events import Events
from convlens.training.loop import Trainer
from convlens.training.machine import choose_machine
from convlens.training.recipe import Recipe, write_recipe
from convlens.training.session import make_trainer
from convlens.training.transfer import start_weights

__all__ = ["DEFAULT_SPACE", "Method", "Range", "SearchResult", "parse_space", "search"]

Method = Literal["tpe", "random", "grid", "coarse-to-fine"]
GRID_STEPS = 4
"""Values per number in a grid."""
FINE_PART = 0.25
"""Part of the coarse trials whose ranges the fine trials search."""


@dataclass(frozen=True)
class Range:
    """Values to try for one setting: ``choices``, or all numbers from ``low`` to ``high``."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def grid(self) -> list[Any]:
        """`GRID_STEPS` values from end to end, evenly spaced (on the log scale where it is one)."""
        if self.choices:
            return list(self.choices)
        space = np.geomspace if self.log else np.linspace
        values = [float(value) for value in space(self.low, self.high, GRID_STEPS)]
        return sorted({round(value) for value in values}) if self.whole else values

    def suggest(self, trial: Any, name: str) -> Any:
        """One value, chosen by Optuna."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


DEFAULT_SPACE: dict[str, Range] = {
    "learning_rate": Range(low=3e-4, high=3e-2, log=True),
    "weight_decay": Range(low=1e-4, high=1e-1, log=True),
    "dropout": Range(low=0.0, high=0.5),
    "label_smoothing": Range(low=0.0, high=0.2),
    "batch_size": Range(choices=(32, 64, 128)),
}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: where ``best.toml`` and the study lie.
        best: settings of the best trial, by name.
        dev_accuracy: of the best trial.
        baseline: dev accuracy of the recipe as it was given.
        seeds: dev accuracies of the best settings with other seeds.
        trials: every complete trial, best first: ``number``, ``dev_accuracy``, ``settings``.
        pruned: trials ended early because they fell behind.
        importance: part of the variation that each setting explains; empty for few trials.
    """

    folder: Path
    best: Mapping[str, Any]
    dev_accuracy: float
    baseline: float
    seeds: tuple[float, ...]
    trials: tuple[Mapping[str, Any], ...]
    pruned: int
    importance: Mapping[str, float]

    @property
    def noise(self) -> float | None:
        """Standard deviation between seeds: a smaller gain may be luck. None with fewer than two seeds."""
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else None

    @property
    def is_gain(self) -> bool | None:
        """Whether the mean over seeds beats the baseline by more than two deviations; None with too few seeds."""
        if self.noise is None:
            return None
        return statistics.mean(self.seeds) - self.baseline > 2 * self.noise


def parse_space(texts: Sequence[str]) -> dict[str, Range]:
    """``NAME=LOW:HIGH``, ``NAME=LOW:HIGH:log`` or ``NAME=A,B,C`` for each setting to search.

    Raises:
        RecipeError: an unknown setting or a range that is none.
    """
    space = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        found = _range(values, text)
        for value in found.grid():
            Recipe.from_settings({name: value}, source=f"--search {text}")
        space[name] = found
    return space


def _range(values: str, text: str) -> Range:
    parts = [part.strip() for part in values.split(":")]
    if len(parts) == 1 and values:
        return Range(choices=tuple(_number(part.strip()) for part in values.split(",")))
    numbers = [_number(part) for part in parts[:2]]
    log = parts[2:] == ["log"]
    plain = all(isinstance(number, (int, float)) for number in numbers)
    if (
        not plain
        or len(parts) > 3
        or (parts[2:] and not log)
        or numbers[0] >= numbers[1]
        or (log and numbers[0] <= 0)
    ):
        raise RecipeError(f"--search {text}: expected NAME=LOW:HIGH, NAME=LOW:HIGH:log (LOW > 0) or NAME=A,B,C.")
    whole = all(isinstance(number, int) for number in numbers)
    return Range(low=float(numbers[0]), high=float(numbers[1]), log=log, whole=whole)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def search(
    recipe: Recipe,
    folder: Path,
    *,
    space: Mapping[str, Range] | None = None,
    trials: int = 20,
    method: Method = "tpe",
    storage: str | None = None,
    seeds: int = 3,
    events: Events | None = None,
) -> SearchResult:
    """Search settings for ``recipe``; a killed search goes on when called again with the same folder or storage.

    Args:
        recipe: what is not searched.
        folder: where the study and ``best.toml`` go.
        space: settings to search; `DEFAULT_SPACE` when None.
        trials: trials of the whole study, those of earlier and other processes included.
        method: how settings are chosen.
        storage: an Optuna database URL, for many machines; a SQLite file in ``folder`` when None.
        seeds: further seeds with which the best settings are trained, to know the noise.
        events: told what happens.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConvlensError: as `convlens.training.train`.
    """
    optuna = _optuna()
    events = events or Events()
    space = dict(space or DEFAULT_SPACE)
    dataset = _without_test(data.open(recipe.data or "", recipe.data_options))
    if not len(dataset.indices("dev")):
        raise TrainingError(f"{dataset.source}: a search needs a dev part; none is there (--split 80,20,0).")
    recipe = complete(recipe, dataset)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="convlens",
        storage=storage or f"sqlite:///{folder / 'study.db'}",
        sampler=_sampler(optuna, method, space, recipe.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        direction="maximize",
        load_if_exists=True,
    )
    _tidy(optuna, study, own=storage is None)

    def objective(trial: Any) -> float:
        narrowed = _narrowed(study, space, trials) if method == "coarse-to-fine" else space
        settings = {name: choice.suggest(trial, name) for name, choice in narrowed.items()}
        trial.set_user_attr("settings", settings)

        def watch(metrics: Mapping[str, Any]) -> None:
            trial.report(metrics["dev_accuracy"], metrics["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

        accuracy = _train_once(recipe.with_settings(**settings), dataset, watch)
        events.note(f"trial {trial.number}: dev accuracy {100 * accuracy:.2f} %  {_shown(settings)}")
        return accuracy

    if "baseline" not in study.user_attrs:
        study.set_user_attr("baseline", _train_once(recipe, dataset, None))
        events.note(f"the recipe as it is: dev accuracy {100 * study.user_attrs['baseline']:.2f} %")
    left = trials - len([t for t in study.trials if t.state.is_finished()])
    study.optimize(objective, n_trials=max(0, left), catch=(TrainingError,))
    return _result(optuna, study, recipe, dataset, folder, seeds, events)


class _Watch(Events):
    """Passes each epoch's metrics on."""

    def __init__(self, watch: Callable[[Mapping[str, Any]], None] | None) -> None:
        self._watch = watch

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        if self._watch is not None:
            self._watch(metrics)


def _train_once(recipe: Recipe, dataset: data.Dataset, watch: Callable[[Mapping[str, Any]], None] | None) -> float:
    """Dev accuracy of the best epoch."""
    listener = _Watch(watch)
    torch.manual_seed(recipe.seed)
    machine = choose_machine(recipe)
    network = build(recipe, dataset)
    start_weights(network, recipe, listener.note)
    trainer = make_trainer(Trainer, recipe, dataset, network, machine, listener, lambda checkpoint: None)
    trainer.run()
    return float(trainer.progress.best["dev_accuracy"])


def _result(
    optuna: Any, study: Any, recipe: Recipe, dataset: data.Dataset, folder: Path, seeds: int, events: Events
) -> SearchResult:
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        raise TrainingError("no trial of the search succeeded; see the notes above.")
    done.sort(key=lambda trial: -trial.value)
    best = dict(done[0].user_attrs["settings"])
    chosen = recipe.with_settings(**best)
    others = []
    for seed in range(recipe.seed + 1, recipe.seed + 1 + seeds):
        others.append(_train_once(chosen.with_settings(seed=seed), dataset, None))
        events.note(f"best settings, seed {seed}: dev accuracy {100 * others[-1]:.2f} %")
    write_text(folder / "best.toml", write_recipe(chosen))
    return SearchResult(
        folder=folder,
        best=best,
        dev_accuracy=done[0].value,
        baseline=study.user_attrs["baseline"],
        seeds=tuple(others),
        trials=tuple(
            {"number": t.number, "dev_accuracy": t.value, "settings": t.user_attrs["settings"]} for t in done
        ),
        pruned=sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials),
        importance=_importance(optuna, study, len(done)),
    )


def _importance(optuna: Any, study: Any, complete_trials: int) -> dict[str, float]:
    if complete_trials < 8:
        return {}
    with warnings.catch_warnings():
        # Optuna warns that few trials tell little; the number of trials is printed beside the figures.
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (ValueError, RuntimeError):  # settings that some trials lack, or all results equal
            return {}


def _sampler(optuna: Any, method: Method, space: Mapping[str, Range], seed: int) -> Any:
    samplers = optuna.samplers
    if method == "grid":
        return samplers.GridSampler({name: choice.grid() for name, choice in space.items()}, seed=seed)
    if method == "tpe":
        return samplers.TPESampler(seed=seed, multivariate=False)
    return samplers.RandomSampler(seed=seed)


def _narrowed(study: Any, space: Mapping[str, Range], trials: int) -> Mapping[str, Range]:
    """The whole space for the first half of the trials, then what the best quarter of them spans."""
    done = [trial for trial in study.trials if trial.value is not None and trial.params]
    if len(study.trials) <= trials // 2 or len(done) < 4:
        return space
    done.sort(key=lambda trial: -trial.value)
    top = done[: max(2, int(FINE_PART * len(done)))]
    fine = {}
    for name, choice in space.items():
        values = [trial.params[name] for trial in top if name in trial.params]
        if choice.choices or len(set(values)) < 2:
            fine[name] = choice
        else:
            fine[name] = replace(choice, low=min(values), high=max(values))
    return fine


def _tidy(optuna: Any, study: Any, own: bool) -> None:
    """Trials that a killed process left "running" will never end; only in a study of our own may we say so."""
    if own:
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _without_test(dataset: data.Dataset) -> data.Dataset:
    return replace(dataset, splits={**dataset.splits, "test": dataset.splits["test"][:0]})


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise MissingExtraError("optuna", "tune", "convlens tune") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
