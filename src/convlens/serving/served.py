"""A model as the server holds it: batch-invariant, replaced by a newer file only if that answers rightly."""

from __future__ import annotations

import copy
import json
import time
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
from convlens.layers import accelerate
from convlens.modelfile import Predictor, load
from convlens.modelfile.card import model_path

__all__ = ["Loaded", "RowLinear", "ServedModel", "batch_invariant_twin"]

_TOLERANCE = 1e-4
_GATE_INPUTS = 5
_ROWS = 16
_TRIES = 3
_LONGEST_BATCH_S = 0.1  # larger batches keep their first input waiting for too long
_WORTH_COMPANY = 0.95  # of the time for each input alone: below it, waiting for company pays


class RowLinear(nn.Module):
    """A dense layer whose rows get the same bits in any company.

    A matrix product of many rows sums in an order that depends on how many there are. Here there are always
    `_ROWS`, filled up with zeros; that a row's place among them does not matter is tried once, and where it
    does, each row is computed by itself.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_groups = self._places_are_alike()

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, features)`` → ``(batch, out_features)``."""
        rows = input.reshape(-1, input.shape[-1])
        out = self._grouped(rows) if self.in_groups else self._one_by_one(rows)
        return out.reshape(*input.shape[:-1], -1)

    def _grouped(self, rows: Tensor) -> Tensor:
        count = len(rows)
        if beyond := -count % _ROWS:
            rows = torch.cat([rows, rows.new_zeros(beyond, rows.shape[1])])
        groups = [nn.functional.linear(group, self.weight, self.bias) for group in rows.split(_ROWS)]
        return (groups[0] if len(groups) == 1 else torch.cat(groups))[:count]

    def _one_by_one(self, rows: Tensor) -> Tensor:
        weight = self.weight.t().expand(len(rows), -1, -1)
        out = torch.bmm(rows[:, None], weight)[:, 0]
        return out if self.bias is None else out + self.bias

    @torch.inference_mode()
    def _places_are_alike(self) -> bool:
        drawn = torch.Generator().manual_seed(0)
        rows = torch.randn(_ROWS, self.weight.shape[1], generator=drawn).to(self.weight)
        alone = torch.cat([self._grouped(row[None]) for row in rows])
        return all(torch.equal(self._grouped(rows.roll(n, 0)), alone.roll(n, 0)) for n in range(_ROWS))


@torch.inference_mode()
def batch_invariant_twin(model: nn.Module, example: Tensor) -> nn.Module:
    """A twin over the same weights for answering alone: accelerated, its dense layers blind to their batch.

    Convolutions follow `convlens.set_batch_invariant`; other layers work on each image alone as it is.

    Args:
        model: the net.
        example: normalised inputs, ``(batch, channels, *size)``. They go through the twin once, because its fused
            layers prove themselves in their first pass and compute from the second on.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).eval()
    for name, module in list(twin.named_modules()):
        if type(module) is nn.Linear and name:
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, RowLinear(module))
    accelerate(twin, report=False)(example)
    return twin


@dataclass(frozen=True, eq=False)
class Loaded:
    """One state of a model file, and what answers with it.

    Attributes:
        predictor: the model as it was loaded.
        net: its batch-invariant twin.
        stamp: time and size of the file.
        seconds: batch sizes that are computed, and what each takes.
        quoted: class names as JSON.
    """

    predictor: Predictor
    net: nn.Module
    stamp: tuple[int, int]
    seconds: dict[int, float]
    quoted: tuple[str, ...]

    @torch.inference_mode()
    def compute(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Stored inputs ``[n, channels, *size]`` → probabilities ``[n, classes]``."""
        # only sizes that were planned and tried while loading are computed
        parts, rest = [], stored
        while len(rest):
            size = max(size for size in self.seconds if size <= len(rest))
            parts.append(_answers(self.net, self.predictor, rest[:size]))
            rest = rest[size:]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ServedModel:
    """One model by name.

    Args:
        name: how requests call it.
        path: run directory or model file.
        largest: inputs computed together at most.

    Raises:
        PathError, ModelFileError: it cannot be loaded.
    """

    def __init__(self, name: str, path: Path, largest: int = 32) -> None:
        planner.set_batch_invariant(True)
        self.name = name
        self.path = path
        self.largest = largest
        self.reloads = 0
        self.last_error: str | None = None
        self._refused: tuple[int, int] | None = None
        self._loaded = self._load()

    @property
    def now(self) -> Loaded:
        """What is loaded now; a request keeps to it from decoding to its answer."""
        return self._loaded

    @property
    def predictor(self) -> Predictor:
        """The model that answers now."""
        return self._loaded.predictor

    @property
    def preprocessing(self) -> Preprocessing:
        """How a raw input becomes the net's."""
        return self.predictor.preprocessing

    @property
    def batch(self) -> int:
        """Inputs worth computing together: more than that takes no less time for each."""
        return max(self._loaded.seconds)

    @property
    def batch_seconds(self) -> float:
        """What a batch of `batch` inputs takes."""
        return self._loaded.seconds[self.batch]

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

    def compute(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Stored inputs ``[n, channels, *size]`` → probabilities ``[n, classes]``, by what is loaded now."""
        return self._loaded.compute(stored)

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

    def _load(self) -> Loaded:
        stamp = _stamp(self.path)
        predictor = load(self.path)
        example = predictor.preprocessing.normalise(torch.from_numpy(_noise(predictor, 1)))
        net = batch_invariant_twin(predictor.model, example)
        quoted = tuple(json.dumps(name) for name in predictor.class_names)
        return Loaded(predictor, net, stamp, _gate(predictor, net, self.largest), quoted)


def _stamp(path: Path) -> tuple[int, int]:
    found = model_path(path).stat()
    return found.st_mtime_ns, found.st_size


def _answers(net: nn.Module, predictor: Predictor, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    logits = net(predictor.preprocessing.normalise(torch.from_numpy(stored))).float()
    answers = logits.sigmoid() if predictor.card.multilabel else logits.softmax(1)
    values: npt.NDArray[np.float32] = answers.numpy()
    return values


@torch.inference_mode()
def _gate(predictor: Predictor, net: nn.Module, largest: int) -> dict[int, float]:
    """The served twin answers as `load(...).predict` does, and alike alone and in a batch, or it isn't served.

    Returns:
        Batch sizes worth computing, with the seconds each takes: powers of two up to the one in which an input is
        cheapest. One slow measurement does not end the search, as the machine may have been busy.
    """
    stored = _noise(predictor, largest)
    some = stored[:_GATE_INPUTS]
    alone = np.concatenate([_answers(net, predictor, one[None]) for one in some])
    expected = predictor.probabilities(torch.from_numpy(some)).numpy()
    if not np.isfinite(expected).all():
        raise ModelFileError(f"{predictor.path}: its answers are not numbers (NaN); it is not served.")
    if np.abs(alone - expected).max() > _TOLERANCE:
        raise ModelFileError(f"{predictor.path}: served answers would differ from predict; it is not served.")
    seconds = {1: _seconds(net, predictor, stored[:1])}
    size = 2
    while size <= largest:
        batch = stored[:size]
        together = _answers(net, predictor, batch)
        alone = np.concatenate([alone, *(_answers(net, predictor, one[None]) for one in batch[len(alone) :])])
        if not np.array_equal(together, alone[:size]):
            break  # an input's answer would depend on its batch
        seconds[size] = _seconds(net, predictor, batch)
        if seconds[size] > _LONGEST_BATCH_S:
            break
        size *= 2
    # a size is worth it if an input costs clearly less than in the best smaller one
    best = 1
    for size in sorted(seconds)[1:]:
        if seconds[size] / size < _WORTH_COMPANY * seconds[best] / best:
            best = size
    return {size: taken for size, taken in seconds.items() if size <= best}


def _seconds(net: nn.Module, predictor: Predictor, stored: npt.NDArray[Any]) -> float:
    def once() -> float:
        started = time.perf_counter()
        _answers(net, predictor, stored)
        return time.perf_counter() - started

    return min(once() for _ in range(_TRIES))


def _noise(predictor: Predictor, count: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    shape = (max(count, _GATE_INPUTS), *predictor.preprocessing.shape)
    if predictor.preprocessing.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32)
