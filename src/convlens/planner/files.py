"""Plans in a file: the same kernels on every machine of a fleet, or in a run that is resumed."""

from __future__ import annotations

import json
from pathlib import Path

from convlens.errors import ArgumentError
from convlens.planner.choose import pin, used
from convlens.planner.keys import from_key

__all__ = ["load_plans", "save_plans"]

_FORMAT = "convlens plans 1"


def save_plans(path: str | Path) -> None:
    """Write every automatic choice of this process to ``path`` as JSON."""
    document = {"format": _FORMAT, "plans": used()}
    Path(path).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_plans(path: str | Path) -> int:
    """Pin the choices of such a file; returns how many there are.

    Raises:
        ArgumentError: not a file of plans, or plans for kernels that this version lacks.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        plans = document["plans"] if document["format"] == _FORMAT else None
        if not isinstance(plans, dict):
            raise TypeError
    except (ValueError, TypeError, KeyError) as error:
        raise ArgumentError("path", f"a JSON file whose format is {_FORMAT!r}", str(path)) from error
    for key in plans:
        from_key(key)
    pin(plans)
    return len(plans)
