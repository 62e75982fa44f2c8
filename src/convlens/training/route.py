"""Training's own evaluation as one route of the export gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from convlens.data import Dataset
from convlens.modelfile.card import ModelCard, build_network, read_model
from convlens.training.batches import BatchSource
from convlens.training.evaluation import EVALUATION_BATCH

__all__ = ["evaluation_route"]


def evaluation_route(run: str | Path) -> Callable[[Sequence[Any]], npt.NDArray[np.float32]]:
    """Raw inputs to probabilities through the batches and the network of `convlens.training.evaluate`."""

    @torch.inference_mode()
    def route(raw: Sequence[Any]) -> npt.NDArray[np.float32]:
        state, card = read_model(run)
        network = build_network(state, card, run)
        source = BatchSource(_as_dataset(raw, card), ("test",), torch.device("cpu"))
        logits = torch.cat([network(inputs).float() for inputs, _ in source.ordered(EVALUATION_BATCH)])
        answers: npt.NDArray[np.float32] = (logits.sigmoid() if card.multilabel else logits.softmax(1)).numpy()
        return answers

    return route


def _as_dataset(raw: Sequence[Any], card: ModelCard) -> Dataset:
    inputs = np.stack([card.preprocessing.decode(one) for one in raw])
    count = len(inputs)
    none = np.empty(0, np.int64)
    return Dataset(
        inputs=inputs,
        labels=np.zeros((count, len(card.class_names)), np.uint8)
        if card.multilabel
        else np.zeros(count, np.int64),
        class_names=card.class_names,
        splits={"train": none, "dev": none, "test": np.arange(count)},
        names=[str(number) for number in range(count)],
        preprocessing=card.preprocessing,
        fingerprint="",
        source="export",
        digests=np.zeros((count, 16), np.uint8),
    )
