"""What is explored: a net with its preprocessing, from a run, a model file, or ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convlens.data import Dataset, Preprocessing
from convlens.errors import ArgumentError, ConvlensError, PathError
from convlens.explain import opened
from convlens.explorer.payload import thumbnail
from convlens.modelfile import load

__all__ = ["Subject", "open_subject"]

_SAMPLES = 48
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

    def samples(self) -> list[dict[str, Any]]:
        """Some samples of the dev part to begin with; none where the data are not here."""
        if self.data is None:
            return []
        part = "dev" if len(self.data.indices("dev")) else "train"
        numbers = [int(number) for number in self.data.indices(part)[:_SAMPLES]]
        return [
            {
                "number": number,
                "name": str(self.data.names[number]),
                **thumbnail(self.data.inputs[number], self.data.kind, 64),
            }
            for number in numbers
        ]

    def stored(self, number: int) -> torch.Tensor:
        """Sample ``number`` in storage form ``[1, channels, *size]``."""
        if self.data is None or not 0 <= number < len(self.data):
            raise ArgumentError("number", "the number of a sample", number)
        return torch.from_numpy(np.array(self.data.inputs[number]))[None]


def open_subject(source: str, input_shape: Sequence[int] | None = None) -> Subject:
    """Open what a user named.

    Args:
        source: a run, a ``.safetensors`` file of ours, or ``module:function`` whose function returns a
            ``torch.nn.Module``. Such a function is code of yours that runs here; no model file can name one.
        input_shape: ``(channels, *size)`` for ``module:function``; default 3×224×224.

    Raises:
        PathError: no such run or file.
        ModelFileError: not a model file of ours, or damaged.
        ArgumentError: the module or function is not there, or returns something else.
    """
    module, colon, function = source.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return _from_function(source, module, function, tuple(input_shape or (3, 224, 224)))
    predictor = load(source)
    from convlens.explorer.run_record import data_of

    data, _ = data_of(predictor)
    title = Path(source).resolve().name
    return Subject(title, opened(predictor.model), predictor.preprocessing, predictor.class_names, data)


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
    kinds = {2: "signal", 3: "image", 4: "volume"}
    if len(shape) not in kinds or min(shape) < 1:
        raise ArgumentError("input_shape", "channels and 1 to 3 sizes, e.g. 3,224,224", shape)
    statistics = _IMAGENET if shape[0] == 3 and len(shape) == 3 else {}
    preprocessing = Preprocessing(
        kind=kinds[len(shape)],
        channels=shape[0],
        size=shape[1:],
        dtype="uint8" if len(shape) == 3 else "float32",
        **statistics,
    )
    with torch.no_grad():
        try:
            answers = model.eval()(torch.zeros(1, *shape))
        except (RuntimeError, ValueError, TypeError) as error:
            raise PathError(f"{source}: cannot compute an input of shape {shape}: {error}") from error
    classes = tuple(f"class {number}" for number in range(answers.shape[1] if answers.ndim == 2 else 1))
    return Subject(source, opened(model), preprocessing, classes)
