"""The self-describing model file: weights, architecture, preprocessing, class names, evaluations.

=================  ====================================================================================
``atomic.py``      a file is either the old one or the new one, never half of each
``container.py``   safetensors with a JSON record and a checksum over every byte; reads hostile files safely
``card.py``        the record of a model file
``predictor.py``   `load`: a model file as something that predicts
=================  ====================================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.modelfile.card import ModelCard, TestEvaluation
    from convlens.modelfile.predictor import Predictions, Predictor, load

__all__ = ["ModelCard", "Predictions", "Predictor", "TestEvaluation", "load"]

_HOMES = {
    "ModelCard": "card",
    "TestEvaluation": "card",
    "Predictions": "predictor",
    "Predictor": "predictor",
    "load": "predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convlens.modelfile' has no attribute {name!r}")
    return getattr(importlib.import_module(f"convlens.modelfile.{_HOMES[name]}"), name)
