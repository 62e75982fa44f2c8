"""The recorded public surface: names and signatures that others build on. A change here is a decision.

After a wanted change: ``python tests/surface/test_public_surface.py`` writes the record again.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("public_surface.txt")
ROOMS = ("convlens.layers", "convlens.ops")


def described(room: str) -> list[str]:
    """One line for each public name of ``room``: names, order and defaults of its arguments."""
    module = importlib.import_module(room)
    lines = []
    for name in module.__all__:
        item = getattr(module, name)
        if getattr(item, "__module__", "").startswith("torch"):
            lines.append(f"{room}.{name} is torch's {item.__qualname__}")
            continue
        signature = inspect.signature(item)
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        plain = signature.replace(parameters=bare, return_annotation=signature.empty)
        lines.append(f"{room}.{name}{plain}")
    return lines


@pytest.mark.parametrize("room", ["convlens", *ROOMS])
def test_all_is_sorted_and_every_name_is_there(room):
    module = importlib.import_module(room)
    assert list(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert hasattr(module, name), name


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_recorded_has_not_changed(room):
    recorded = {line for line in RECORD.read_text(encoding="utf-8").splitlines() if line.startswith(f"{room}.")}
    assert recorded, "nothing recorded"
    assert not recorded - set(described(room)), "wanted? then: python tests/surface/test_public_surface.py"


@pytest.mark.parametrize("room", ROOMS)
def test_public_functions_and_classes_are_documented(room):
    module = importlib.import_module(room)
    for name in module.__all__:
        item = getattr(module, name)
        if not getattr(item, "__module__", "").startswith("torch"):
            assert inspect.getdoc(item), name


if __name__ == "__main__":
    RECORD.write_text("\n".join(line for room in ROOMS for line in described(room)) + "\n", encoding="utf-8")
