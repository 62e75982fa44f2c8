"""`load`: a model file as something that predicts; preprocessing and class names come from the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from convlens.data import Preprocessing
from convlens.errors import ShapeError
from convlens.modelfile.card import ModelCard, build_network, model_path, read_model

__all__ = ["Predictions", "Predictor", "load"]


class Predictions(NamedTuple):
    """Answers for N inputs; unpacks as ``labels, probabilities = model.predict(images)``.

    Attributes:
        labels: the most probable class's name for each input; multi-label: names over 0.5 joined by ``|``.
        probabilities: float32 ``[N, classes]``; rows sum to 1 (multi-label: each entry stands alone).
    """

    labels: list[str]
    probabilities: npt.NDArray[np.float32]


def load(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Open a trained model; nothing in the file is executed.

    Args:
        path: a run directory or a ``.safetensors`` file that convlens wrote.
        device: where to compute.

    Raises:
        PathError: no such file, or a run that has not finished.
        ModelFileError: not ours, newer, truncated or damaged; the text says which.
    """
    state, card = read_model(path)
    return Predictor(build_network(state, card, path).to(device), card, model_path(path))


class Predictor:
    """A trained network with what it needs to take raw inputs.

    Attributes:
        model: the network, in evaluation mode.
        card: the file's record.
        path: the file.
    """

    def __init__(self, model: nn.Module, card: ModelCard, path: Path) -> None:
        self.model = model
        self.card = card
        self.path = path

    def __repr__(self) -> str:
        name = self.card.architecture.get("name")
        return f"Predictor({str(self.path)!r}, {name}, {len(self.class_names)} classes)"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the probabilities' columns."""
        return self.card.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """How a raw input becomes the network's."""
        return self.card.preprocessing

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's record as plain values, with ``test_accuracy`` and ``test_evaluations``."""
        return self.card.model_dump(mode="json")

    def predict(self, images: Any, batch_size: int = 64) -> Predictions:
        """Classify raw inputs.

        Args:
            images: one or many of: path, bytes of a file, ``PIL.Image``, array or tensor. A picture as an array
                is uint8 0–255, ``[height, width]``, ``[height, width, channels]`` or ``[channels, height,
                width]``; an array with one axis more is a batch of them.
            batch_size: inputs computed at a time.

        Raises:
            BadFileError: an input that cannot be decoded.
            ShapeError: an array that is not an input of this model's kind.
        """
        probabilities = [self._probabilities(chunk) for chunk in _chunks(self._inputs(images), batch_size)]
        table = (
            np.concatenate(probabilities) if probabilities else np.empty((0, len(self.class_names)), np.float32)
        )
        return Predictions([self.label_of(row) for row in table], table)

    def label_of(self, probabilities: npt.NDArray[np.float32]) -> str:
        """The label of one row of probabilities."""
        if self.card.multilabel:
            return "|".join(n for n, p in zip(self.class_names, probabilities, strict=True) if p > 0.5)
        return self.class_names[int(probabilities.argmax())]

    def top(self, probabilities: npt.NDArray[np.float32], count: int = 5) -> list[tuple[str, float]]:
        """The ``count`` most probable classes of one row, best first."""
        best = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(probabilities[i])) for i in best]

    @torch.inference_mode()
    def probabilities(self, stored: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 ``[N, classes]`` on the CPU, of inputs as stored, ``[N, channels, *size]``."""
        device = next(self.model.parameters()).device
        logits = self.model(self.preprocessing.normalise(stored.to(device))).float()
        answers: torch.Tensor = logits.sigmoid() if self.card.multilabel else logits.softmax(dim=1)
        return answers.cpu()

    def _probabilities(self, chunk: Sequence[Any]) -> npt.NDArray[np.float32]:
        stored = np.stack([self.preprocessing.decode(raw) for raw in chunk])
        values: npt.NDArray[np.float32] = self.probabilities(torch.from_numpy(stored)).numpy()
        return values

    def _inputs(self, images: Any) -> Iterator[Any]:
        """One raw input after the other, whatever ``images`` is."""
        if isinstance(images, torch.Tensor):
            images = images.detach().cpu().numpy()
        if isinstance(images, np.ndarray):
            yield from self._split_batch(images)
        elif isinstance(images, (str, Path, bytes)) or not isinstance(images, Iterable):
            yield images
        else:
            for image in images:
                yield image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image

    def _split_batch(self, array: npt.NDArray[Any]) -> Iterable[npt.NDArray[Any]]:
        """An array is one input or a batch of them, told apart by its axes and the model's own input shape."""
        spatial = len(self.preprocessing.size)
        if array.ndim == spatial + 2:
            return array
        if array.ndim == spatial:
            return [array]
        if array.ndim != spatial + 1:
            expected = f"{spatial}, {spatial + 1} or {spatial + 2} axes"
            raise ShapeError("images", expected, f"shape {array.shape}")
        return [array] if self._has_channel_axis(array.shape) else array

    def _has_channel_axis(self, shape: tuple[int, ...]) -> bool:
        channels = {self.preprocessing.channels}
        if self.preprocessing.kind == "image":
            channels |= {1, 3, 4}
            return shape[-1] in channels or shape[0] in channels
        return shape[0] in channels


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk
