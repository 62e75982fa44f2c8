"""The parity gate: real inputs through every route, and the first stage that differs named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from convlens.data import DataOptions, open_dataset
from convlens.data.pictures import upright_picture
from convlens.errors import ConvlensError
from convlens.modelfile import Predictor

__all__ = ["TOLERANCE", "RouteAnswers", "agree", "gate_inputs", "predictor_routes"]

TOLERANCE = 1e-4
"""Largest difference of a probability between two routes."""

_INPUTS = 24
Probabilities = npt.NDArray[np.float32]


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
    stored = np.stack([predictor.preprocessing.decode(_squeezed(one)) for one in inputs])
    evaluated = predictor.probabilities(torch.from_numpy(stored)).numpy()
    predicted = predictor.predict([_squeezed(one) for one in inputs]).probabilities
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


def _squeezed(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _picture(stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return stored[0] if len(stored) == 1 else np.ascontiguousarray(np.moveaxis(stored, 0, -1))


def _stored_samples(predictor: Predictor) -> npt.NDArray[Any]:
    card = predictor.card
    source = card.data.get("source")
    try:
        options = DataOptions(**card.recipe.get("data_options", {}))
        data = open_dataset(str(source), **options.model_dump(exclude_unset=True))
        part = "dev" if len(data.indices("dev")) else "train"
        return np.array(data.inputs[data.indices(part)[:_INPUTS]])
    except (ConvlensError, OSError, TypeError, ValueError):
        pass  # the data are not here: noise is the best there is
    noise = np.random.default_rng(0)
    shape = (_INPUTS, *predictor.preprocessing.shape)
    if predictor.preprocessing.dtype == "uint8":
        return noise.integers(0, 256, shape, dtype=np.uint8)
    return noise.standard_normal(shape).astype(np.float32)
