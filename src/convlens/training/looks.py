"""`evaluate`: a trained model's accuracy on labelled data; every look at its own test part is counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from convlens import data, planner
from convlens.errors import ArgumentError, DataError
from convlens.modelfile.card import ModelCard, TestEvaluation, add_evaluation, build_network, now, read_model
from convlens.training.batches import BatchSource
from convlens.training.evaluation import Scores, score
from convlens.training.machine import choose_machine
from convlens.training.recipe import Recipe
from convlens.training.team import join

__all__ = ["evaluate", "evaluation_of", "use_plans"]


def evaluate(path: str | Path, source: str | None = None, device: str = "auto") -> tuple[Scores, ModelCard, str]:
    """Evaluate a trained model on labelled data; a look at its own test part is counted in the model file.

    Args:
        path: run directory or model file.
        source: data to evaluate on; the run's own when None. Its test part is used when it is the run's own
            data or brings a test part of its own, else all of it.
        device: where to compute.

    Processes that ``torchrun`` started share the samples; each gets the scores of all,
    and the first one counts the look.

    Returns:
        The scores, the model's record afterwards, and which part was evaluated.
    """
    team = join()
    state, card = read_model(path)
    recipe = Recipe.from_settings(card.recipe, source=str(path))
    machine = choose_machine(recipe.with_settings(device=device))
    dataset = _open_as_trained(source or recipe.data or "", recipe, card)
    own = dataset.fingerprint == card.data.get("fingerprint")
    part = "test" if own or _brings_test_part(dataset) else "all"
    splits = ("test",) if part == "test" else data.SPLITS
    network = build_network(state, card, path).to(machine.device)
    use_plans(card.plans)
    scores = score(network, BatchSource(dataset, splits, machine.device), team=team)
    if not scores.samples:
        raise DataError(f"{dataset.source}: its test part is empty.")
    if own and team.is_first:
        card = add_evaluation(path, evaluation_of(dataset, scores))
    return scores, card, part


def evaluation_of(dataset: data.Dataset, scores: Scores) -> TestEvaluation:
    """The dated record of one look at the test part."""
    return TestEvaluation(
        date=now(),
        data=dataset.source,
        fingerprint=dataset.fingerprint,
        samples=scores.samples,
        accuracy=scores.accuracy,
        loss=scores.loss,
    )


def use_plans(plans: Mapping[str, str]) -> None:
    """Compute with the kernels that a run used, where this version has them: then the bits agree."""
    with suppress(ArgumentError):
        planner.pin(plans)


def _open_as_trained(source: str, recipe: Recipe, card: ModelCard) -> data.Dataset:
    """Data decoded and normalised as the model's training data was."""
    wanted = card.preprocessing
    options = recipe.data_options.model_copy(
        update={"size": wanted.size, "channels": wanted.channels, "fit": wanted.fit}
    )
    dataset = data.open(source, options)
    if dataset.preprocessing.shape != wanted.shape:
        raise DataError(
            f"{source}: expected inputs of shape {wanted.shape} as in training, "
            f"received {dataset.preprocessing.shape}."
        )
    if dataset.class_names != card.class_names:
        raise DataError(
            f"{source}: expected the model's classes ({_some(card.class_names)}), "
            f"received {_some(dataset.class_names)}."
        )
    return replace(dataset, preprocessing=wanted)


def _brings_test_part(dataset: data.Dataset) -> bool:
    """True where the layout of the source says which samples are for testing."""
    kept, _, _ = dataset.report.split_rule.partition("as the source says")
    given = dataset.report.split_rule.endswith("as the source says")
    return len(dataset.indices("test")) > 0 and (given or "test" in kept)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
