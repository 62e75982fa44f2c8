"""Samples a second of the whole training loop, with augmentation, against the best loop in plain PyTorch.

    python benchmarks/training_loop.py --mnist FOLDER --cifar FOLDER --photos FOLDER [--out benchmarks/results]

Three cases: 28×28 grey (LeNet-5; turned, scaled, slanted, shifted), 32×32 colour (convnet-m; mirrored, shifted)
and 128×128 photos (convnet-m; random crop, stretched, mirrored, recoloured), each with the augmentation and the
settings that ``convlens train`` chooses by itself, and without augmentation.

``ours``   `convlens.training`'s trainer, as a run uses it, without checkpoints
``torch``  the same net of torch.nn's layers, float inputs resident and normalised beforehand, the same changes on
           whole batches with torch's operators (one affine grid and ``grid_sample``; gathered crops; colours as
           one matrix product per picture), fused AdamW; once in NCHW and once in channels_last, of which the
           faster counts

Slices of a few steps alternate in one process; medians and quartiles of samples per second of process time (CPU
seconds, so that other work on the machine falls out), and of wall time.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from convlens import data, models
from convlens.bench.results import environment
from convlens.data.augmentation import Augmentation
from convlens.training import Events, Recipe
from convlens.training.defaults import build, complete
from convlens.training.loop import Trainer
from convlens.training.machine import choose_machine
from convlens.training.session import make_trainer

CASES = {"28×28 lenet5": ("mnist", "lenet5", 28), "32×32 convnet-m": ("cifar", "convnet-m", 32)}
CASES |= {"128×128 convnet-m": ("photos", "convnet-m", 128)}


def plain_twin(name: str, channels: int, classes: int, size: int) -> nn.Module:
    """The same network from torch.nn alone."""
    if name == "lenet5":
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
        )  # fmt: skip
    parts = []
    for layer in [*models.create(name, channels, classes, size).modules()]:
        kind = type(layer).__name__
        if kind == "Conv2d":
            parts.append(nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=False))
        elif kind == "MaxPool2d":
            parts.append(nn.MaxPool2d(2))
        elif kind == "BatchNorm2d":
            parts.append(nn.BatchNorm2d(layer.num_features))
        elif kind == "ReLU":
            parts.append(nn.ReLU(inplace=True))
        elif kind == "AdaptiveMaxPool2d":
            parts += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        elif kind == "Linear":
            parts.append(nn.Linear(layer.in_features, classes))
    return nn.Sequential(*parts)


def uniform(count: int, low: float, high: float) -> torch.Tensor:
    return torch.empty(count).uniform_(low, high)


def changed(pictures: torch.Tensor, choice: Augmentation) -> torch.Tensor:
    """`Augmentation` on a normalised batch ``[N, C, side, side]``, as a practised user would write it."""
    count, channels, side, _ = pictures.shape
    if choice.resamples:
        zoom = torch.exp(-uniform(count, -1, 1) * math.log1p(choice.scale)) * uniform(count, choice.crop, 1).sqrt()
        aspect = torch.exp(uniform(count, -0.5, 0.5) * math.log1p(choice.stretch))
        angle = torch.deg2rad(uniform(count, -choice.rotate, choice.rotate))
        slant = torch.tan(torch.deg2rad(uniform(count, -choice.shear, choice.shear)))
        mirror = (torch.rand(count) < 0.5) * -2.0 + 1 if choice.mirror else torch.ones(count)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        theta = torch.empty(count, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = cos * aspect * mirror, (cos * slant - sin) * aspect
        theta[:, 1, 0], theta[:, 1, 1] = sin / aspect * mirror, (sin * slant + cos) / aspect
        spare = 2 * choice.shift + (1 - zoom).clamp(min=0)
        theta[:, 0, 2], theta[:, 1, 2] = uniform(count, -1, 1) * spare, uniform(count, -1, 1) * spare
        grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
        border = {"reflect": "reflection", "edge": "border", "zeros": "zeros"}[choice.border]
        pictures = functional.grid_sample(pictures, grid, padding_mode=border, align_corners=False)
    elif choice.shift or choice.mirror:
        reach = int(side * choice.shift)
        padded = functional.pad(pictures, (reach,) * 4, mode="reflect")
        rows = torch.arange(side)[None] + torch.randint(0, 2 * reach + 1, (count, 1))
        columns = torch.arange(side)[None] + torch.randint(0, 2 * reach + 1, (count, 1))
        if choice.mirror:
            columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
        sample = torch.arange(count)[:, None, None]
        pictures = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    if choice.saturation:
        grey = torch.tensor([0.299, 0.587, 0.114])
        amount = 1 + uniform(count, -choice.saturation, choice.saturation)
        matrix = amount[:, None, None] * torch.eye(3) + (1 - amount)[:, None, None] * grey.expand(3, 3)
        matrix = matrix * (1 + uniform(count, -choice.contrast, choice.contrast))[:, None, None]
        shift = uniform(count, -choice.brightness, choice.brightness)[:, None, None].expand(count, 3, 1) * 4
        pictures = torch.baddbmm(shift, matrix, pictures.flatten(2)).view(count, channels, side, side)
    return pictures


class Ours:
    def __init__(self, dataset, recipe):
        machine = choose_machine(recipe)
        network = build(recipe, dataset)
        self.trainer = make_trainer(Trainer, recipe, dataset, network, machine, Events(), lambda checkpoint: None)
        self.trainer.network.train()
        self.batch, self.epoch, self.batches = recipe.batch_size, 0, iter(())

    def steps(self, count):
        done = 0
        for _ in range(count):
            pair = next(self.batches, None)
            if pair is None:
                self.epoch += 1
                self.batches = self.trainer.train_source.shuffled(self.batch, 0, self.epoch)
                pair = next(self.batches)
            self.trainer._step(*pair)
            done += len(pair[1])
        return done


class Plain:
    def __init__(self, dataset, recipe, layout):
        stored, self.labels = dataset.tensors("train")
        self.layout, self.choice, self.batch = layout, recipe.augment, recipe.batch_size
        self.inputs = dataset.preprocessing.normalise(stored).contiguous(memory_format=layout)
        channels, side, _ = dataset.preprocessing.shape
        self.network = plain_twin(recipe.model, channels, dataset.num_classes, side).to(memory_format=layout)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 0.003, betas=(0.9, 0.99), fused=True)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16")
        self.smoothing, self.order = recipe.label_smoothing, torch.empty(0, dtype=torch.int64)

    def steps(self, count):
        done = 0
        for _ in range(count):
            if len(self.order) < self.batch:
                self.order = torch.randperm(len(self.labels))
            chosen, self.order = self.order[: self.batch], self.order[self.batch :]
            inputs = changed(self.inputs[chosen], self.choice).contiguous(memory_format=self.layout)
            with self.autocast:
                logits = self.network(inputs)
            loss = functional.cross_entropy(logits.float(), self.labels[chosen], label_smoothing=self.smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            done += len(chosen)
        return done


def measure(dataset, model, precision, rounds, augmentation):
    recipe = Recipe(data="x", model=model, precision=precision, checkpoint_seconds=0, augmentation=augmentation)
    recipe = complete(recipe, dataset)
    ways = {"ours": Ours(dataset, recipe)}
    for name, layout in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        ways[f"torch {name}"] = Plain(dataset, recipe, layout)
    count = max(2, 4096 // recipe.batch_size // (1 + dataset.preprocessing.size[0] // 33 * 8))
    rates = {name: {"process": [], "wall": []} for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            process, wall = time.process_time(), time.perf_counter()
            done = way.steps(count)
            if number > 1:  # plans, allocations
                rates[name]["process"].append(done / (time.process_time() - process))
                rates[name]["wall"].append(done / (time.perf_counter() - wall))
    return recipe, rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("mnist", "cifar", "photos"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for case, (source, model, size) in CASES.items():
        if getattr(options, source) is None:
            continue
        dataset = data.open(getattr(options, source), size=size)
        for precision in ("float32", "bfloat16"):
            for augmentation in ("auto", "none"):
                recipe, rates = measure(dataset, model, precision, options.rounds, augmentation)
                row = {
                    "case": case,
                    "precision": precision,
                    "augment": recipe.augment.model_dump(exclude_defaults=True),
                }
                for clock in ("process", "wall"):
                    medians = {name: statistics.median(found[clock]) for name, found in rates.items()}
                    best = max(value for name, value in medians.items() if name != "ours")
                    row[clock] = {
                        name: [round(q) for q in statistics.quantiles(found[clock], n=4)]
                        for name, found in rates.items()
                    }
                    row[f"ours_is_faster_by_{clock}"] = round(medians["ours"] / best, 3)
                rows.append(row)
                print(json.dumps(row), flush=True)
    if options.out:
        document = {"rounds": options.rounds, "unit": "samples/s", "rows": rows, "environment": environment()}
        (options.out / "training_loop.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
