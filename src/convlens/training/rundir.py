"""The run directory: where a run's files lie, how runs are named, found and listed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convlens.errors import ConvlensError, PathError, TrainingError
from convlens.modelfile.atomic import storage_errors, write_text
from convlens.modelfile.card import ModelCard, read_card
from convlens.training.recipe import Recipe, read_recipe, write_recipe

__all__ = ["RunDirectory", "RunSummary", "list_runs"]

DEFAULT_ROOT = Path("runs")
_LAUNCH = "launch"


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run: ``recipe.toml``, ``metrics.jsonl``, ``checkpoints/``, ``model.safetensors``."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The settings, with everything that was chosen automatically."""
        return self.path / "recipe.toml"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch and line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """The trained model; only a finished run has it."""
        return self.path / "model.safetensors"

    @property
    def launch(self) -> str:
        """Which launch of ``torchrun`` began the run; empty for one process alone."""
        with suppress(OSError):
            return (self.checkpoints / _LAUNCH).read_text(encoding="utf-8")
        return ""

    @classmethod
    def create(cls, out: Path | None, recipe: Recipe, launch: str = "") -> RunDirectory:
        """Make the directory of a new run: ``out``, or the next free ``runs/DATA-MODEL-N``.

        Args:
            out: where.
            recipe: written into it.
            launch: tells the launch of ``torchrun`` that begins the run from others.

        Raises:
            TrainingError: ``out`` holds a run already.
            StorageError: no space, or no permission.
        """
        run = cls(out) if out is not None else _next_free(DEFAULT_ROOT, recipe)
        with storage_errors(run.path):
            if run.path.exists() and not run.path.is_dir():
                raise PathError(f"{run.path}: expected a folder for the run, received a file. Use another --out.")
            if run.recipe_file.exists() or run.model_file.exists():
                raise TrainingError(
                    f"{run.path}: holds a run already. Continue it with --resume, or choose another --out."
                )
            run.checkpoints.mkdir(parents=True, exist_ok=True)
        if launch:
            write_text(run.checkpoints / _LAUNCH, launch)
        write_text(run.recipe_file, write_recipe(recipe))
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            PathError: nothing there, or not a run directory.
        """
        run = cls(path)
        if not run.recipe_file.is_file():
            what = "is not a run directory (it has no recipe.toml)" if path.exists() else "no such run"
            raise PathError(f"{path}: {what}. `convlens runs` lists the runs.")
        return run

    @property
    def recipe(self) -> Recipe:
        """The run's settings.

        Raises:
            RecipeError: the file was damaged or edited to something impossible.
        """
        return Recipe.from_settings(read_recipe(self.recipe_file), source=str(self.recipe_file))

    def metrics(self) -> list[dict[str, Any]]:
        """The epochs so far, oldest first; none where there is no file yet."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines() if line]

    def write_metrics(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Replace the metrics file by ``history``, so that it always agrees with the newest checkpoint."""
        write_text(self.metrics_file, "".join(json.dumps(dict(epoch)) + "\n" for epoch in history))


@dataclass(frozen=True)
class RunSummary:
    """One line of ``convlens runs``."""

    run: str
    status: str
    """``finished``, ``unfinished``, or ``damaged: REASON``."""
    data: str | None = None
    model: str | None = None
    epochs: int = 0
    seconds: float | None = None
    dev_accuracy: float | None = None
    test_accuracy: float | None = None
    test_evaluations: int = 0
    created: str | None = None


def list_runs(root: Path = DEFAULT_ROOT) -> list[RunSummary]:
    """Every run in ``root`` (or ``root`` itself), by name; a damaged one is listed with what is wrong.

    Raises:
        PathError: no such folder, unless it is the default one, which is merely empty.
    """
    if not root.is_dir():
        if root == DEFAULT_ROOT:
            return []
        raise PathError(f"{root}: no such folder of runs.")
    candidates = [root, *sorted(root.iterdir(), key=lambda path: _natural(path.name))]
    found = [
        path for path in candidates if (path / "recipe.toml").is_file() or (path / "model.safetensors").is_file()
    ]
    return [_summary(RunDirectory(path)) for path in found]


def _summary(run: RunDirectory) -> RunSummary:
    try:
        if run.model_file.exists():
            return _finished(run, read_card(run.model_file))
        history = run.metrics()
        recipe = run.recipe
    except (ConvlensError, ValueError) as error:
        return RunSummary(str(run.path), f"damaged: {error}")
    last = history[-1] if history else {}
    return RunSummary(
        str(run.path), "unfinished", recipe.data, recipe.model, len(history), None, last.get("dev_accuracy")
    )


def _finished(run: RunDirectory, card: ModelCard) -> RunSummary:
    return RunSummary(
        run=str(run.path),
        status="finished",
        data=card.data.get("source"),
        model=card.architecture.get("name"),
        epochs=card.training.get("epochs", 0),
        seconds=card.training.get("seconds"),
        dev_accuracy=card.training.get("dev_accuracy"),
        test_accuracy=card.test_accuracy,
        test_evaluations=len(card.test_evaluations),
        created=card.created,
    )


def _next_free(root: Path, recipe: Recipe) -> RunDirectory:
    stem = f"{_slug(Path(recipe.data or 'data').name)}-{_slug(recipe.model)}"
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            try:
                (root / f"{stem}-{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return RunDirectory(root / f"{stem}-{number}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "data"


def _natural(name: str) -> list[Any]:
    """Sort key that puts ``run-10`` after ``run-9``."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]
