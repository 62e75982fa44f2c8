"""Convolutional networks you can see through.

Nothing heavy is imported until it is used: ``import convlens`` compiles nothing and touches no device.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "accelerate": "convlens.layers",
    "plan": "convlens.planner",
    "Plan": "convlens.planner",
    "fully_convolutional": "convlens.layers",
    "load": "convlens.modelfile",
    "summary": "convlens.models.summary",
    "restore": "convlens.layers",
    "get_precision": "convlens.planner",
    "set_batch_invariant": "convlens.planner",
    "set_precision": "convlens.planner",
    "set_workspace_limit": "convlens.planner",
}
_ROOMS = ("data", "errors", "explain", "export", "layers", "models", "ops", "training", "window")

__all__ = [
    "Plan",
    "accelerate",
    "data",
    "errors",
    "explain",
    "export",
    "fully_convolutional",
    "get_precision",
    "layers",
    "load",
    "models",
    "ops",
    "plan",
    "restore",
    "set_batch_invariant",
    "set_precision",
    "set_workspace_limit",
    "summary",
    "training",
    "window",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"convlens.{name}")
    else:
        raise AttributeError(f"module 'convlens' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
