"""What is explored: a net with its preprocessing, from a run, a model or ONNX file, or ``module:function``."""

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
from convlens.explorer.run_record import data_of
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
