"""Libraries of networks without torchvision, of which they use nothing that a network computes."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["without_torchvision"]


@contextlib.contextmanager
def without_torchvision() -> Iterator[None]:
    """Imports of torchvision meanwhile find empty classes, where torchvision itself is not installed.

    timm and others import picture transforms and data sets, which no network uses, from torchvision, whose wheels
    fit only the torch that they were built for.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    stand_in = _StandIn()
    sys.meta_path.append(stand_in)
    try:
        yield
    finally:
        sys.meta_path.remove(stand_in)
        for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[module]


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of torchvision in which every name is an empty class."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Anything(types.ModuleType):
    """See `_StandIn`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _Named(type):
    """An empty class whose members are their names, as an enumeration's are."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name
