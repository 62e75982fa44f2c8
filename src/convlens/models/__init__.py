"""One file per network, and the register of names.

``create(name, in_channels=, num_classes=, input_size=)`` builds any of ``names()``; `info` says what a
name stands for without building it. Importing this package imports no torch: each network's file is
imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convlens.models.register import ModelInfo, create, info, names, smallest_size

if TYPE_CHECKING:
    from convlens.models.network import Network

__all__ = ["ModelInfo", "Network", "create", "info", "names", "smallest_size"]

_HOMES = {"Network": "convlens.models.network"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convlens.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
