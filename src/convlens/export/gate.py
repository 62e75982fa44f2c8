"""The parity gate: real inputs through every route, and the first stage that differs named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from convlens.data import DataOptions, Preprocessing, open_dataset
from convlens.data.pictures import upright_picture
from convlens.data.series import DNA
from convlens.errors import ConvlensError
from convlens.modelfile import Predictor

__all__ = [
    "TOLERANCE",
    "Route",
    "RouteAnswers",
    "agree",
    "gate_inputs",
    "labelled_inputs",
    "predictor_routes",
    "raw_form",
]

TOLERANCE = 1e-4
"""Largest difference of a probability between two routes."""

_INPUTS = 24
_LABELLED = 1000
_UNKNOWN_LETTER = "?"
Probabilities = npt.NDArray[np.float32]
Route = Callable[[Sequence[npt.NDArray[Any]]], Probabilities]
"""Inputs as `gate_inputs` gives them to probabilities ``(inputs, classes)``."""


@dataclass(frozen=True, slots=True)
class RouteAnswers:
    """Probabilities of the gate's inputs by one route, float32 ``(inputs, classes)``."""

    route: str
    probabilities: Probabilities


def gate_inputs(predictor: Predictor) -> list[npt.NDArray[Any]]:
    """Real inputs as an exported file takes them, one array each.

    Pictures are upright uint8 ``(height, width, channels)``: files of the training data where they are, the data's
    stored samples else, and a few of them at other sizes, so that crop, padding and resampling are tried.
    Other kinds are storage-form ``(channels, *size)``. Without data, seeded noise stands in.
    """
    preprocessing = predictor.preprocessing
    stored = _stored_samples(predictor)
    if preprocessing.kind != "image":
        return list(stored)
    pictures = [Image.fromarray(_picture(one)) for one in stored]
    others = [one.resize((one.width * 3 // 2 + 5, one.height + 9)) for one in pictures[:4]]
    others += [one.resize((one.width + 3, one.height * 3)) for one in pictures[4:8]]
    upright = [upright_picture(preprocessing, one) for one in (*pictures, *others)]
    return [np.atleast_3d(np.asarray(one)) for one in upright]


def predictor_routes(predictor: Predictor, inputs: Sequence[npt.NDArray[Any]]) -> list[RouteAnswers]:
    """The two routes inside this package: what evaluation computes, and ``load(...).predict``."""
    raw = [raw_form(predictor.preprocessing, one) for one in inputs]
    stored = np.stack([predictor.preprocessing.decode(one) for one in raw])
    evaluated = predictor.probabilities(torch.from_numpy(stored)).numpy()
    predicted = predictor.predict(raw).probabilities
    return [RouteAnswers("evaluate", evaluated), RouteAnswers("predict", predicted)]


def agree(answers: Sequence[RouteAnswers], tolerance: float = TOLERANCE) -> str | None:
    """None if all routes agree with the first; else one sentence naming the first that differs, and where."""
    first, *others = answers
    for other in others:
        if other.probabilities.shape != first.probabilities.shape:
            return f"{other.route} answers {other.probabilities.shape}, {first.route} {first.probabilities.shape}"
        gaps = np.abs(other.probabilities - first.probabilities).max(axis=1)
        labels = other.probabilities.argmax(1) != first.probabilities.argmax(1)
        bad = np.flatnonzero(~(gaps <= tolerance) | (labels & (gaps > 0)))
        if len(bad):
            place = int(bad[0])
            return (
                f"{other.route} differs from {first.route} on input {place}: probability off by "
                f"{gaps[place]:.2g} (allowed {tolerance:g}), class {int(other.probabilities[place].argmax())} "
                f"instead of {int(first.probabilities[place].argmax())}"
            )
    return None


def raw_form(preprocessing: Preprocessing, one: npt.NDArray[Any]) -> Any:
    """A gate input as `Preprocessing.decode` takes it: grey pictures without channels, sequences as letters."""
    if preprocessing.kind == "image":
        return one[:, :, 0] if one.shape[2] == 1 else one
    if preprocessing.kind != "sequence":
        return one
    letters = (preprocessing.alphabet or DNA) + _UNKNOWN_LETTER
    known = one.max(axis=0) > 0
    return "".join(letters[place] for place in np.where(known, one.argmax(axis=0), len(letters) - 1))


def _picture(stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return stored[0] if len(stored) == 1 else np.ascontiguousarray(np.moveaxis(stored, 0, -1))


def labelled_inputs(predictor: Predictor) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.int64]] | None:
    """Up to 1,000 inputs of the dev part with their classes; None without data, or with several labels each.

    The test part is not touched: every look at it is counted.
    """
    found = _own_samples(predictor, _LABELLED)
    if found is None or found[1].ndim != 1:
        return None
    stored, labels = found
    if predictor.preprocessing.kind == "image":
        return [np.atleast_3d(_picture(one)) for one in stored], labels
    return list(stored), labels


def _stored_samples(predictor: Predictor) -> npt.NDArray[Any]:
    found = _own_samples(predictor, _INPUTS)
    if found is not None:
        return found[0]
    # the data are not here: noise is the best there is
    noise = np.random.default_rng(0)
    form = predictor.preprocessing
    shape = (_INPUTS, *form.shape)
    if form.kind == "sequence":
        return np.eye(form.channels, dtype=np.uint8)[
            :, noise.integers(0, form.channels, (_INPUTS, *form.size))
        ].swapaxes(0, 1)
    if form.dtype == "uint8":
        return noise.integers(0, 256, shape, dtype=np.uint8)
    return noise.standard_normal(shape).astype(np.float32)


def _own_samples(predictor: Predictor, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Stored samples of the run's own dev (else train) part and their labels; None where the data are gone."""
    card = predictor.card
    try:
        options = DataOptions(**card.recipe.get("data_options", {}))
        data = open_dataset(str(card.data.get("source")), **options.model_dump(exclude_unset=True))
    except (ConvlensError, OSError, TypeError, ValueError):
        return None
    if data.preprocessing.shape != predictor.preprocessing.shape or data.class_names != predictor.class_names:
        return None  # other data lie there now
    part = "dev" if len(data.indices("dev")) else "train"
    chosen = data.indices(part)[:count]
    return np.array(data.inputs[chosen]), np.array(data.labels[chosen])
