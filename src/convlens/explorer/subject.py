"""What is explored: a net with its preprocessing, from a run, a model or ONNX file, or ``module:function``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convlens.data import Dataset, Preprocessing
from convlens.errors import ArgumentError, ConvlensError, PathError
from convlens.explain import Excitation, effective_field, opened
from convlens.explorer.payload import plain, thumbnail
from convlens.explorer.run_record import data_of
from convlens.modelfile import load

__all__ = ["Subject", "open_subject"]

_SAMPLES = 48
_JUDGED = 512  # samples answered in search of wrong answers
_JUDGED_S = 1.0
_AT_ONCE = 8
_WRONG = 12
# mean and deviation of ImageNet's training pictures, which most published nets expect
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}


@dataclass(frozen=True)
class Subject:
    """A net and how raw inputs become its input."""

    title: str
    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    data: Dataset | None = None

    multilabel: bool = False

    def samples(self) -> list[dict[str, Any]]:
        """Some samples of the dev part to begin with, wrong answers first; none where the data are not here."""
        if self.data is None:
            return []
        part = "dev" if len(self.data.indices("dev")) else "train"
        numbers = [int(number) for number in self.data.indices(part)[:_JUDGED]]
        answers = self._answers(numbers)
        wrong = [n for n in numbers if n in answers and answers[n] != self.label(n)][:_WRONG]
        chosen = wrong + [n for n in numbers if n not in wrong][: _SAMPLES - len(wrong)]
        return [
            {
                "number": number,
                "name": str(self.data.names[number]),
                "truth": None if self.label(number) is None else self.class_names[self.label(number) or 0],
                "answer": self.class_names[answers[number]] if number in answers else None,
                "wrong": number in wrong,
                **thumbnail(self.data.inputs[number], self.data.kind, 64),
            }
            for number in chosen
        ]

    def _answers(self, numbers: Sequence[int]) -> dict[int, int]:
        """The net's answer to some samples, as many as a second allows."""
        if self.data is None or self.multilabel:
            return {}
        answers: dict[int, int] = {}
        begun = time.perf_counter()
        for start in range(0, len(numbers), _AT_ONCE):
            some = list(numbers[start : start + _AT_ONCE])
            stored = torch.from_numpy(np.ascontiguousarray(self.data.inputs[some]))
            with torch.no_grad():
                scores = self.model(self.preprocessing.normalise(stored)).flatten(1)
            answers.update(zip(some, scores.argmax(1).tolist(), strict=True))
            # the first pass plans and compiles
            begun = time.perf_counter() if start == 0 else begun
            if time.perf_counter() - begun > _JUDGED_S:
                break
        return answers

    def label(self, number: int) -> int | None:
        """Number of the class that sample ``number`` belongs to; None where there are several or no data."""
        if self.data is None or self.multilabel or self.data.multilabel:
            return None
        return int(self.data.labels[number])

    def excitations(
        self, layer: str, channel: int, found: Sequence[Excitation], numbers: Any, boxes_s: float
    ) -> list[dict[str, Any]]:
        """Strongest samples as pictures, with the box that the unit sees in each, as far as the time allows.

        Args:
            layer, channel: the unit.
            found: from `explain.exciting_samples` over the samples ``numbers``.
            numbers: sample numbers in the order searched.
            boxes_s: seconds that boxes may take.
        """
        if self.data is None:
            return []
        begun = time.perf_counter()
        drawn = []
        for one in found:
            number = int(numbers[one.sample])
            box = None
            if one.position and time.perf_counter() - begun < boxes_s:
                normalised = self.preprocessing.normalise(self.stored(number))
                box = effective_field(self.model, normalised, layer, channel, one.position).reach
            truth = self.label(number)
            drawn.append(
                {
                    "number": number,
                    "value": one.value,
                    "truth": None if truth is None else self.class_names[truth],
                    "box": plain(box),
                    "size": list(self.preprocessing.size),
                    **thumbnail(self.data.inputs[number], self.data.kind, 96),
                }
            )
        return drawn

    def stored(self, number: int) -> torch.Tensor:
        """Sample ``number`` in storage form ``[1, channels, *size]``."""
        if self.data is None or not 0 <= number < len(self.data):
            raise ArgumentError("number", "the number of a sample", number)
        return torch.from_numpy(np.array(self.data.inputs[number]))[None]


def open_subject(source: str, input_shape: Sequence[int] | None = None) -> Subject:
    """Open what a user named.

    Args:
        source: a run, a ``.safetensors`` file of ours, an ``.onnx`` file, or ``module:function`` whose function
            returns a ``torch.nn.Module``. Such a function is code of yours that runs here; no file can name one.
        input_shape: ``(channels, *size)`` for ``module:function`` (default 3×224×224) and for ONNX files that
            leave their sizes open.

    Raises:
        PathError: no such run or file.
        ModelFileError: not a model file of ours, an ONNX file that is damaged or has an operator that isn't read.
        ArgumentError: the module or function is not there, or returns something else.
    """
    module, colon, function = source.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return _from_function(source, module, function, tuple(input_shape or (3, 224, 224)))
    title = Path(source).resolve().name
    if Path(source).suffix.lower() == ".onnx":
        return _from_onnx(source, title, input_shape)
    predictor = load(source)
    data, _ = data_of(predictor.card.data, predictor.card.recipe)
    return Subject(
        title,
        opened(predictor.model),
        predictor.preprocessing,
        predictor.class_names,
        data,
        predictor.card.multilabel,
    )


def _from_function(source: str, module: str, function: str, shape: tuple[int, ...]) -> Subject:
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            "source", "module:function that can be imported here", f"{source} ({error})"
        ) from error
    try:
        model = build()
    except ConvlensError:
        raise
    except Exception as error:
        raise ArgumentError(
            "source", "a function without arguments that returns a torch.nn.Module", f"{source} ({error})"
        ) from error
    if not isinstance(model, nn.Module):
        raise ArgumentError("source", "a function that returns a torch.nn.Module", type(model).__name__)
    return _bare(source, model, shape)


def _from_onnx(source: str, title: str, input_shape: Sequence[int] | None) -> Subject:
    from convlens.explorer.onnx_subject import open_onnx

    read = open_onnx(source, input_shape)
    if read.preprocessing is None:
        return _bare(title, read.net, read.input_shape)
    data, _ = data_of(read.data, {})
    return Subject(title, read.net, read.preprocessing, read.class_names, data)


def _bare(title: str, model: nn.Module, shape: tuple[int, ...]) -> Subject:
    """A net that comes without preprocessing and class names."""
    kinds = {2: "signal", 3: "image", 4: "volume"}
    if len(shape) not in kinds or min(shape) < 1:
        raise ArgumentError("input_shape", "channels and 1 to 3 sizes, e.g. 3,224,224", shape)
    is_picture = len(shape) == 3 and shape[0] in (1, 3)
    statistics = _IMAGENET if is_picture and shape[0] == 3 else {"scale": 1 / 255} if is_picture else {}
    kind = "spectral" if len(shape) == 3 and not is_picture else kinds[len(shape)]
    preprocessing = Preprocessing.model_validate(
        {
            "kind": kind,
            "channels": shape[0],
            "size": shape[1:],
            "dtype": "uint8" if is_picture else "float32",
            **statistics,
        }
    )
    with torch.no_grad():
        try:
            answers = model.eval()(torch.zeros(1, *shape))
        except (RuntimeError, ValueError, TypeError) as error:
            raise PathError(f"{title}: cannot compute an input of shape {shape}: {error}") from error
    classes = tuple(f"class {number}" for number in range(answers.shape[1] if answers.ndim == 2 else 1))
    return Subject(title, opened(model), preprocessing, classes)
