"""One epoch of LeNet-5 on 60,000 pictures of 28×28, batch 128, *with data handling*, three ways in one process.

``ours``    `convlens.training`'s loop: samples resident as uint8, batches cut in the process
``tuned``   the best hand-written PyTorch loop: everything float and normalised in memory beforehand, indexed by a
            permutation, channels_last, fused optimizer, nothing read back until the epoch ends
``usual``   the script of most tutorials: a Dataset that turns each sample into a picture and a normalised tensor,
            a DataLoader (0 or 2 workers, whichever is faster)

Same network, optimizer, batch size and number of threads; epochs are interleaved; ``usual`` runs fewer of them.

    python benchmarks/train_epoch.py [--mnist FOLDER] [--rounds 7] [--out benchmarks/results]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from convlens import data
from convlens.bench.results import environment
from convlens.training import Events, Recipe
from convlens.training.defaults import build, complete
from convlens.training.loop import Trainer
from convlens.training.machine import choose_machine
from convlens.training.session import make_trainer

BATCH = 128
MEAN, DEVIATION = 0.1307, 0.3081


def torch_lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def mnist(folder):
    """The real set, or random pictures of the same size: the time does not depend on them."""
    if folder is not None:
        return data.open(folder, size=28, split=None)
    raise SystemExit("name the folder of MNIST's IDX files with --mnist")


class Ours:
    def __init__(self, dataset, rounds):
        recipe = Recipe(
            data="mnist", model="lenet5", batch_size=BATCH, epochs=rounds + 5, schedule="constant",
            augmentation="none", label_smoothing=0.0, checkpoint_seconds=0,
        )  # fmt: skip
        recipe = complete(recipe, dataset)
        machine = choose_machine(recipe)
        self.trainer = make_trainer(
            Trainer, recipe, dataset, build(recipe, dataset), machine, Events(), lambda checkpoint: None
        )
        self.trainer.network.train()

    def epoch(self):
        trainer = self.trainer
        trainer._clock = time.perf_counter()
        trainer._train_epoch()
        loss = float(trainer._loss_sum) / trainer._seen
        trainer.progress.epoch += 1
        trainer.progress.position = 0
        trainer._loss_sum.zero_()
        trainer._seen = 0
        return loss


class Tuned:
    def __init__(self, inputs, labels):
        values = (inputs.float() / 255 - MEAN) / DEVIATION
        self.inputs = values.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.network = torch_lenet().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 0.003, fused=True)

    def epoch(self):
        order = torch.randperm(len(self.labels))
        total = torch.zeros(())
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            self.optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self.network(self.inputs[chosen]), self.labels[chosen])
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(chosen)
        return float(total) / len(order)


class PictureSet(torch.utils.data.Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs.squeeze(1).numpy(), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        picture = Image.fromarray(self.inputs[index])
        values = torch.from_numpy(np.array(picture)).unsqueeze(0).float().div(255)
        return values.sub(MEAN).div(DEVIATION), int(self.labels[index])


class Usual:
    def __init__(self, inputs, labels, workers):
        self.loader = torch.utils.data.DataLoader(
            PictureSet(inputs, labels), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        self.network = torch_lenet()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 0.003)

    def epoch(self):
        total, seen = 0.0, 0
        for inputs, labels in self.loader:
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.network(inputs), labels)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        return total / seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of MNIST's IDX files")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--usual-rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dataset = mnist(options.mnist)
    inputs, labels = (
        torch.cat(parts) for parts in zip(dataset.tensors("train"), dataset.tensors("dev"), strict=True)
    )
    every = np.sort(np.concatenate([dataset.splits["train"], dataset.splits["dev"]]))
    whole = data.Dataset(**{**vars(dataset), "splits": {**dataset.splits, "train": every, "dev": every[:0]}})
    torch.manual_seed(0)
    ways = {"ours": Ours(whole, options.rounds), "tuned": Tuned(inputs, labels)}
    ways |= {f"usual, {workers} workers": Usual(inputs, labels, workers) for workers in (0, 2)}
    seconds, losses = {name: [] for name in ways}, {}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            if name.startswith("usual") and number >= options.usual_rounds:
                continue
            start = time.perf_counter()
            losses[name] = way.epoch()
            print(f"round {number} {name}: {time.perf_counter() - start:.2f} s", flush=True)
            # The first round warms up (plans, allocations, workers); usual scripts gain nothing from it.
            if number or name.startswith("usual"):
                seconds[name].append(time.perf_counter() - start)
    report(seconds, losses, len(labels), options.out)


def report(seconds, losses, samples, out):
    rows = []
    for name, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        rows.append(
            {
                "way": name,
                "median_s": statistics.median(times),
                "quartiles_s": [quartiles[0], quartiles[2]],
                "n": len(times),
                "samples_per_s": samples / statistics.median(times),
                "last_loss": losses[name],
            }
        )
    ours = rows[0]["median_s"]
    for row in rows:
        row["ours_is_faster_by"] = row["median_s"] / ours
        low, high = row["quartiles_s"]
        print(
            f"{row['way']:<18} {row['median_s']:7.2f} s  [{low:.2f}, {high:.2f}]"
            f"  n={row['n']}  {row['samples_per_s']:9,.0f} samples/s  {row['ours_is_faster_by']:5.2f}×"
            f"  loss {row['last_loss']:.4f}"
        )
    if out is not None:
        document = {"case": f"LeNet-5, {samples} samples of 28×28, batch {BATCH}", "rows": rows}
        (out / "train_epoch.json").write_text(
            json.dumps({**document, "environment": environment()}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
