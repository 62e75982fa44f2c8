"""A model as the server holds it: batch-invariant, replaced by a newer file only if that answers rightly."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convlens import planner
from convlens.data import Preprocessing
from convlens.errors import ConvlensError, ModelFileError
from convlens.modelfile import Predictor, load
from convlens.modelfile.card import model_path

__all__ = ["RowLinear", "ServedModel", "batch_invariant_twin"]

_TOLERANCE = 1e-4
_GATE_INPUTS = 5


class RowLinear(nn.Module):
    """A dense layer that computes each row by itself, so that a row's bits don't depend on its company.

    A matrix product of many rows at once sums in an order that depends on how many there are.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, features)`` → ``(batch, out_features)``."""
        rows = input.reshape(-1, 1, input.shape[-1])
        weight = self.weight.t().expand(len(rows), -1, -1)
        out = torch.bmm(rows, weight).reshape(*input.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def batch_invariant_twin(model: nn.Module) -> nn.Module:
    """A twin over the same weights whose dense layers compute row by row.

    Convolutions follow `convlens.set_batch_invariant`; other layers work on each image alone as it is.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).eval()
    for name, module in list(twin.named_modules()):
        if type(module) is nn.Linear and name:
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, RowLinear(module))
    return twin


@dataclass(frozen=True)
class _Loaded:
    predictor: Predictor
    net: nn.Module
    stamp: tuple[int, int]


class ServedModel:
    """One model by name.

    Args:
        name: how requests call it.
        path: run directory or model file.

    Raises:
        PathError, ModelFileError: it cannot be loaded.
    """

    def __init__(self, name: str, path: Path) -> None:
        planner.set_batch_invariant(True)
        self.name = name
        self.path = path
        self.reloads = 0
        self.last_error: str | None = None
        self._refused: tuple[int, int] | None = None
        self._loaded = self._load()

    @property
    def predictor(self) -> Predictor:
        """The model that answers now."""
        return self._loaded.predictor

    @property
    def preprocessing(self) -> Preprocessing:
        """How a raw input becomes the net's."""
        return self.predictor.preprocessing

    def describe(self) -> dict[str, Any]:
        """What `/v1/models` says."""
        card = self.predictor.card
        return {
            "name": self.name,
            "architecture": card.architecture.get("name"),
            "classes": list(card.class_names),
            "input": {"kind": card.preprocessing.kind, "shape": list(card.preprocessing.shape)},
            "test_accuracy": card.test_accuracy,
            "fingerprint": card.data.get("fingerprint"),
            "created": card.created,
            "reloads": self.reloads,
            "last_error": self.last_error,
        }

    @torch.inference_mode()
    def compute(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Stored inputs ``[n, channels, *size]`` → probabilities ``[n, classes]``."""
        loaded = self._loaded
        return _answers(loaded.net, loaded.predictor, stored)

    def reload_if_changed(self) -> bool:
        """Take a newer file if there is one and it passes the gate; keep the present model otherwise.

        Returns:
            Whether the model was replaced. What went wrong is kept in ``last_error``.
        """
        try:
            stamp = _stamp(self.path)
        except (OSError, ConvlensError) as error:
            self.last_error = str(error)
            return False
        if stamp in (self._loaded.stamp, self._refused):
            return False
        try:
            fresh = self._load()
        except (ConvlensError, OSError, RuntimeError, ValueError) as error:
            self._refused, self.last_error = stamp, str(error)
            return False
        self._loaded, self.last_error, self._refused = fresh, None, None
        self.reloads += 1
        return True

    def _load(self) -> _Loaded:
        stamp = _stamp(self.path)
        predictor = load(self.path)
        net = batch_invariant_twin(predictor.model)
        _gate(predictor, net)
        return _Loaded(predictor, net, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    found = model_path(path).stat()
    return found.st_mtime_ns, found.st_size


def _answers(net: nn.Module, predictor: Predictor, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    logits = net(predictor.preprocessing.normalise(torch.from_numpy(stored))).float()
    answers = logits.sigmoid() if predictor.card.multilabel else logits.softmax(1)
    values: npt.NDArray[np.float32] = answers.numpy()
    return values


def _gate(predictor: Predictor, net: nn.Module) -> None:
    """The served twin answers as `load(...).predict` does, and alike alone and in a batch, or it isn't served."""
    rng = np.random.default_rng(0)
    shape = (_GATE_INPUTS, *predictor.preprocessing.shape)
    if predictor.preprocessing.dtype == "uint8":
        stored = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        stored = rng.standard_normal(shape).astype(np.float32)
    expected = predictor.probabilities(torch.from_numpy(stored)).numpy()
    with torch.inference_mode():
        together = _answers(net, predictor, stored)
        alone = np.concatenate([_answers(net, predictor, stored[i : i + 1]) for i in range(len(stored))])
    if not np.isfinite(expected).all():
        raise ModelFileError(f"{predictor.path}: its answers are not numbers (NaN); it is not served.")
    if np.abs(together - expected).max() > _TOLERANCE:
        raise ModelFileError(f"{predictor.path}: served answers would differ from predict; it is not served.")
    if not np.array_equal(together, alone):
        raise ModelFileError(f"{predictor.path}: an input's answer depends on its batch; it is not served.")
