"""From a recipe to a trained network: the loop, its checkpoints, and the run directory.

==================  ==========================================================================
``recipe.py``       every setting; file, flags and help derive from it
``session.py``      `train`
``defaults.py``     what a recipe leaves open, chosen from the data
``looks.py``        `evaluate`: counted looks at the test part
``loop.py``         steps, dev evaluation, saving
``batches.py``      batches cut from resident samples
``checkpoint.py``   the state of a run on disk
``rundir.py``       the run directory and its listing
==================  ==========================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.training.events import Events, Step
    from convlens.training.interrupt import Interrupted
    from convlens.training.looks import evaluate
    from convlens.training.recipe import Recipe, read_recipe
    from convlens.training.rundir import RunDirectory, list_runs
    from convlens.training.session import Result, train

__all__ = [
    "Events",
    "Interrupted",
    "Recipe",
    "Result",
    "RunDirectory",
    "Step",
    "evaluate",
    "list_runs",
    "read_recipe",
    "train",
]

_HOMES = {
    "Events": "events",
    "Interrupted": "interrupt",
    "Recipe": "recipe",
    "Result": "session",
    "RunDirectory": "rundir",
    "Step": "events",
    "evaluate": "looks",
    "list_runs": "rundir",
    "read_recipe": "recipe",
    "train": "session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convlens.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convlens.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
