"""Files on disk to inputs and labels, decoded once and described by one record.

::

    dataset = convlens.data.open("digits")              # or a path; options: size=, fit=, split=(.6, .2, .2) …
    dataset.inputs, dataset.labels                      # uint8 or float32 [N, C, *size] (maybe mapped), int64 [N]
    dataset.splits["train"]                             # increasing int64 sample numbers; also "dev", "test"
    inputs, labels = dataset.tensors("train")           # resident torch tensors, still uint8
    x = dataset.preprocessing.normalise(inputs[:128])   # float32, mean 0 and deviation 1 per channel of train
    dataset.preprocessing.model_dump_json()             # goes into the model file …
    sample = preprocessing.decode("photo.jpg")          # … and turns any raw input into [C, *size] there
    dataset.fingerprint, dataset.class_names, dataset.report

Augmentation lives in `convlens.data.augment`: ``Augmenter(...).batch(inputs, labels, chosen, epoch)``.

The same `Preprocessing` is used in training, evaluation, prediction, export and serving; nothing else touches
pixels between the file and the net. `DataOptions` is the record behind the options: flags and recipe fields derive
from it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.data.augmentation import Augmentation, default_augmentation
    from convlens.data.dataset import SPLITS, Dataset, Report, SkippedFile
    from convlens.data.opening import open_dataset
    from convlens.data.opening import open_dataset as open
    from convlens.data.options import DataOptions
    from convlens.data.preprocessing import Preprocessing

__all__ = [
    "SPLITS",
    "Augmentation",
    "DataOptions",
    "Dataset",
    "Preprocessing",
    "Report",
    "SkippedFile",
    "default_augmentation",
    "open",
    "open_dataset",
]

# The command line reads `options` for --help, which must not wait for numpy.
_HOMES = {
    "SPLITS": "dataset",
    "Augmentation": "augmentation",
    "default_augmentation": "augmentation",
    "DataOptions": "options",
    "Dataset": "dataset",
    "Preprocessing": "preprocessing",
    "Report": "dataset",
    "SkippedFile": "dataset",
    "open_dataset": "opening",
}


def __getattr__(name: str) -> Any:
    original = "open_dataset" if name == "open" else name
    if original not in _HOMES:
        raise AttributeError(f"module 'convlens.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convlens.data.{_HOMES[original]}"), original)
    globals()[name] = value
    return value
