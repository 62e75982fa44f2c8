"""The record every other room works on: inputs, labels, names and where each sample belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from convlens.data.preprocessing import Array, Preprocessing
from convlens.errors import ArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["SPLITS", "Dataset", "Indices", "Report", "SkippedFile"]

Indices = npt.NDArray[np.int64]
SPLITS = ("train", "dev", "test")


class SkippedFile(BaseModel):
    """One file that was left out."""

    model_config = ConfigDict(frozen=True)

    path: str
    reason: str


class Report(BaseModel):
    """What was found, what was left out and why, and what was decided from the data."""

    model_config = ConfigDict(frozen=True)

    found: int
    used: int
    skipped: tuple[SkippedFile, ...] = ()
    ignored: int = 0
    duplicates: int = 0
    crossing_duplicates: int = 0
    fit_losses: dict[str, float] = {}
    split_rule: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples ready for batching.

    Attributes:
        inputs: ``[N, channels, *size]``, uint8 or float32, resident or memory-mapped, read-only.
        labels: int64 ``[N]``; for multi-label data uint8 ``[N, classes]`` of 0 and 1.
        class_names: name of each label number.
        splits: ``train``, ``dev`` and ``test`` → increasing int64 sample numbers; a part may be empty.
        names: path (relative to the source) or other identifier of each sample.
        preprocessing: how a raw input becomes one of `inputs`, and how a batch is normalised.
        fingerprint: hash of all contents, labels, the split and the preprocessing.
        source: what was opened, as the user wrote it.
        digests: 16 bytes of content hash per sample, uint8 ``[N, 16]``.
        groups: number of the group (patient, video) of each sample, int64 ``[N]``, or None.
        report: what was skipped and why.
    """

    inputs: Array
    labels: Array
    class_names: tuple[str, ...]
    splits: Mapping[str, Indices]
    names: Sequence[str]
    preprocessing: Preprocessing
    fingerprint: str
    source: str
    digests: npt.NDArray[np.uint8]
    groups: Indices | None = None
    report: Report = field(default_factory=lambda: Report(found=0, used=0))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        parts = "/".join(str(len(self.splits[name])) for name in SPLITS)
        shape = "×".join(map(str, self.preprocessing.shape))
        plural = "spectra" if self.kind == "spectral" else f"{self.kind}s"
        what = f"{len(self)} {plural} {shape}, {self.num_classes} classes"
        return f"Dataset({self.source!r}, {what}, split {parts})"

    @property
    def kind(self) -> str:
        """``image``, ``signal``, ``sequence``, ``volume`` or ``spectral``."""
        return self.preprocessing.kind

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def multilabel(self) -> bool:
        """True where a sample may have several labels or none."""
        return self.labels.ndim == 2

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return int(self.inputs.nbytes)

    def indices(self, split: str) -> Indices:
        """Sample numbers of a part, increasing."""
        if split not in self.splits:
            raise ArgumentError("split", f"one of {', '.join(SPLITS)}", split)
        return self.splits[split]

    def tensors(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Resident copies ``(inputs, labels)`` of one part in storage form: uint8 or float32, and int64."""
        import torch

        chosen = self.indices(split)
        return torch.from_numpy(self.inputs[chosen]), torch.from_numpy(self.labels[chosen])

    def class_counts(self, split: str = "train") -> Indices:
        """Samples of each class in a part, int64 ``[classes]``."""
        labels = self.labels[self.indices(split)]
        if self.multilabel:
            sums: Indices = labels.sum(axis=0, dtype=np.int64)
            return sums
        return np.bincount(labels, minlength=self.num_classes).astype(np.int64)
