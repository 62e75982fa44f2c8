"""Checkpoints: everything a run needs to go on bit for bit, in one checked file; the newest good one is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convlens.errors import ModelFileError
from convlens.modelfile.container import read_container, write_container

__all__ = ["KEEP", "Checkpoint", "checkpoint_files", "load_newest", "nested", "flat", "save_checkpoint"]

KIND = "convlens-checkpoint"
FORMAT_VERSION = 1
KEEP = 2
"""Good checkpoints that stay on disk, so that one damaged file loses little."""
_NAME = re.compile(r"^step-(\d{9})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """State at the end of a step.

    Attributes:
        tensors: names with ``/`` between groups: ``network/features.0.weight``, ``best/…``, ``average/0``,
            ``optimizer/0/exp_avg``, ``random/cpu``.
        record: JSON values: step, epoch, position in it, sums, history, fingerprint, recipe.
    """

    tensors: dict[str, torch.Tensor]
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done when it was saved."""
        return int(self.record["step"])


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically, then remove all but the newest `KEEP`.

    Raises:
        StorageError: no space, or no permission; older checkpoints are untouched.
    """
    path = folder / f"step-{checkpoint.step:09d}.safetensors"
    write_container(path, KIND, FORMAT_VERSION, checkpoint.tensors, checkpoint.record)
    for old in checkpoint_files(folder)[KEEP:]:
        with suppress(FileNotFoundError):
            old.unlink()
    return path


def checkpoint_files(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, newest first; files set aside as damaged are not among them."""
    return sorted((path for path in folder.glob("step-*") if _NAME.match(path.name)), reverse=True)


def load_newest(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none.

    Args:
        folder: the run's ``checkpoints``.
        tell: called with one line for each damaged file; the file is set aside under the name ``….damaged``.
    """
    for path in checkpoint_files(folder):
        try:
            tensors, record = read_container(path, KIND, FORMAT_VERSION)
        except ModelFileError as error:
            tell(f"{error} It is set aside as {path.name}.damaged and the one before it is used.")
            path.rename(path.with_name(path.name + ".damaged"))
            continue
        # The file may be replaced while its pages are still mapped: own the memory.
        return Checkpoint({name: tensor.clone() for name, tensor in tensors.items()}, record)
    return None


def flat(groups: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """``{"network": {"w": t}}`` → ``{"network/w": t}``."""
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def nested(tensors: Mapping[str, torch.Tensor], group: str) -> dict[str, torch.Tensor]:
    """The tensors of one group, under their own names."""
    start = f"{group}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
