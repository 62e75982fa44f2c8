"""`convlens bench train`: one epoch of LeNet-5, data handling included, against PyTorch loops from tuned to usual.

``convlens``              `convlens.training`'s loop: samples resident as uint8, batches cut in the process
``torch``                 the best hand-written loop in torch's usual layout: all float and normalised in memory
                          beforehand, indexed by a permutation, fused optimizer, nothing read back before the end
``torch channels_last``   the same in channels_last
``torch.compile``         the same, compiled, where a C++ compiler is installed
``DataLoader``            the script of most tutorials: a Dataset that turns each sample into a picture and a
                          normalised tensor, a DataLoader with 0 or 2 workers

Same network, optimizer, batch size and number of threads; epochs are taken in turn.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import nn
from torch.nn import functional

from convlens import data
from convlens.bench.results import environment
from convlens.planner.timing import Timing
from convlens.training import Events, Recipe
from convlens.training.defaults import build, complete
from convlens.training.loop import Trainer
from convlens.training.machine import choose_machine
from convlens.training.session import make_trainer

__all__ = ["TrainRow", "measure_training", "table", "write", "write_random_digits"]

_BATCH = 128
_MEAN, _DEVIATION = 0.1307, 0.3081
_RATE = 0.003
_USUAL = "DataLoader"


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One way to train. ``ratio``: quartiles of its seconds over ours, round by round; above 1 we are faster."""

    name: str
    seconds: Timing
    """An epoch's time, in microseconds like every `Timing`."""
    samples_per_s: float
    ratio: tuple[float, float, float]
    last_loss: float


class _Way(Protocol):
    def epoch(self) -> float:
        """Train one epoch; returns the mean loss."""


def measure_training(
    folder: Path,
    *,
    rounds: int = 5,
    usual_rounds: int = 1,
    compiled: bool = False,
    done: Callable[[str, int, float], None] = lambda name, number, seconds: None,
) -> list[TrainRow]:
    """Epochs of every way in turn, after one that warms up.

    Args:
        folder: IDX files as MNIST has them.
        rounds: epochs of each way that count.
        usual_rounds: the same for the DataLoader loops, which are slow; 0 for none.
        compiled: also torch.compile.
        done: called with name, round and seconds after every epoch.
    """
    _keep_memory()
    whole = _everything(folder)
    inputs, labels = whole.tensors("train")
    torch.manual_seed(0)
    ways: dict[str, _Way] = {
        "convlens": _Ours(whole, rounds),
        "torch": _Tuned(inputs, labels, torch.contiguous_format),
    }
    ways["torch channels_last"] = _Tuned(inputs, labels, torch.channels_last)
    if compiled and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        ways["torch.compile"] = _Tuned(inputs, labels, torch.channels_last, compiled=True)
    if usual_rounds:
        ways |= {f"{_USUAL}, {workers} workers": _Usual(inputs, labels, workers) for workers in (0, 2)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            usual = name.startswith(_USUAL)
            if usual and not 1 <= number <= usual_rounds:
                continue
            start = time.perf_counter()
            losses[name] = way.epoch()
            seconds = time.perf_counter() - start
            done(name, number, seconds)
            if number:
                taken[name].append(1e6 * seconds)
    return [_row(name, times, taken["convlens"], len(labels), losses[name]) for name, times in taken.items()]


def _keep_memory() -> None:
    """Let the C library keep what is freed, as it does by chance anyway.

    Results of megabytes cost page faults in one process and none in the next, depending on what lies behind them:
    eager NCHW took 2.4 s an epoch alone and 4.1 s beside the other ways.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 32 << 20)


def _row(name: str, times: list[float], ours: list[float], samples: int, loss: float) -> TrainRow:
    seconds = Timing.of(times)
    ratio = Timing.of([theirs / own for theirs, own in zip(times, ours, strict=False)])
    quartiles = (ratio.lower_us, ratio.median_us, ratio.upper_us)
    return TrainRow(name, seconds, samples / (seconds.median_us / 1e6), quartiles, loss)


def _everything(folder: Path) -> data.Dataset:
    """The set with nothing held back, as a loop by hand would take it."""
    dataset = data.open(folder, size=28, split=None)
    every = np.sort(np.concatenate([dataset.splits["train"], dataset.splits["dev"]]))
    return data.Dataset(**{**vars(dataset), "splits": {**dataset.splits, "train": every, "dev": every[:0]}})


def write_random_digits(folder: Path, samples: int = 60_000) -> Path:
    """IDX files of random pictures of 28×28 and random labels: a step's time does not depend on what it shows."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", samples), ("t10k", 256)):
        pictures = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pictures.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return folder


def _lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class _Ours:
    def __init__(self, dataset: data.Dataset, rounds: int) -> None:
        recipe = Recipe(
            data="mnist", model="lenet5", batch_size=_BATCH, epochs=rounds + 5, schedule="constant",
            augmentation="none", label_smoothing=0.0, checkpoint_seconds=0,
        )  # fmt: skip
        recipe = complete(recipe, dataset)
        self.trainer: Any = make_trainer(
            Trainer,
            recipe,
            dataset,
            build(recipe, dataset),
            choose_machine(recipe),
            Events(),
            lambda checkpoint: None,
        )
        self.trainer.network.train()

    def epoch(self) -> float:
        trainer = self.trainer
        trainer._clock = time.perf_counter()
        trainer._train_epoch()
        trainer._settle()
        loss: float = float(trainer._loss_sum) / trainer._seen
        trainer.progress.epoch += 1
        trainer.progress.position = 0
        trainer._loss_sum.zero_()
        trainer._seen = 0
        return loss


class _Tuned:
    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor, layout: torch.memory_format, *, compiled: bool = False
    ) -> None:
        self.inputs = ((inputs.float() / 255 - _MEAN) / _DEVIATION).contiguous(memory_format=layout)
        self.labels = labels
        network: Any = _lenet()
        network.to(memory_format=layout)
        self.network = torch.compile(network) if compiled else network
        self.optimizer = torch.optim.AdamW(network.parameters(), _RATE, fused=True)

    def epoch(self) -> float:
        order = torch.randperm(len(self.labels))
        total = torch.zeros(())
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            self.optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self.network(self.inputs[chosen]), self.labels[chosen])
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(chosen)
        return float(total) / len(order)


class _PictureSet(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs.squeeze(1).numpy(), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.fromarray(self.inputs[index])
        values = torch.from_numpy(np.array(picture)).unsqueeze(0).float().div(255)
        return values.sub(_MEAN).div(_DEVIATION), int(self.labels[index])


class _Usual:
    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor, workers: int) -> None:
        self.loader = torch.utils.data.DataLoader(
            _PictureSet(inputs, labels), _BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        self.network = _lenet()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), _RATE)

    def epoch(self) -> float:
        total, seen = 0.0, 0
        for inputs, labels in self.loader:
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.network(inputs), labels)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        return total / seen


def document(rows: list[TrainRow], samples: int) -> dict[str, Any]:
    """Everything about a run, as plain values: seconds of an epoch and how many times ours it takes."""
    return {
        "benchmark": "train",
        "case": f"LeNet-5, {samples} samples of 28×28, batch {_BATCH}",
        "environment": environment(),
        "rows": list(_plain(rows)),
    }


def _plain(rows: list[TrainRow]) -> Iterator[dict[str, Any]]:
    for row in rows:
        timing = row.seconds
        yield {
            "way": row.name,
            "median_s": timing.median_us / 1e6,
            "quartiles_s": [timing.lower_us / 1e6, timing.upper_us / 1e6],
            "n": timing.repeats,
            "samples_per_s": row.samples_per_s,
            "ours_is_faster_by": row.ratio[1],
            "ratio_quartiles": [row.ratio[0], row.ratio[2]],
            "last_loss": row.last_loss,
        }


def table(rows: list[TrainRow]) -> Table:
    """The rows as a Rich table."""
    shown = Table(title=f"one epoch of LeNet-5, batch {_BATCH}")
    shown.add_column("way")
    for column in ("seconds", "quartiles", "n", "samples/s", "÷ ours", "quartiles", "loss"):
        shown.add_column(column, justify="right")
    for row in rows:
        timing, (lower, middle, upper) = row.seconds, row.ratio
        shown.add_row(
            row.name, f"{timing.median_us / 1e6:.2f}", f"{timing.lower_us / 1e6:.2f}–{timing.upper_us / 1e6:.2f}",
            str(timing.repeats), f"{row.samples_per_s:,.0f}", f"{middle:.2f}", f"{lower:.2f}–{upper:.2f}",
            f"{row.last_loss:.4f}",
        )  # fmt: skip
    return shown


def write(rows: list[TrainRow], samples: int, folder: Path) -> tuple[Path, Path]:
    """Write ``train.json`` and ``train.svg`` into ``folder``; returns their paths."""
    from convlens.bench.results import chart

    folder.mkdir(parents=True, exist_ok=True)
    values, picture = folder / "train.json", folder / "train.svg"
    values.write_text(json.dumps(document(rows, samples), indent=1) + "\n", encoding="utf-8")
    picture.write_text(chart([(row.name, row.ratio[1]) for row in rows[1:]]), encoding="utf-8")
    return values, picture
