"""Learning-rate finder (Smith, Cyclical learning rates, 2017): raise the rate until the loss explodes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from convlens.errors import TrainingError
from convlens.training.batches import BatchSource
from convlens.training.evaluation import loss_of
from convlens.training.optimizers import build_optimizer
from convlens.training.recipe import Recipe

__all__ = ["RateSweep", "find_learning_rate"]

STEPS = 120
LOWEST, HIGHEST = 1e-6, 3.0
SMOOTHING = 0.9
EXPLODED = 4.0
"""The sweep ends where the smoothed loss is this many times its lowest value."""
SAFETY = 0.1
"""Part of the rate of lowest loss that is advised as the peak of a schedule."""


@dataclass(frozen=True)
class RateSweep:
    """The loss along the sweep.

    Attributes:
        rates: learning rate of each step, rising evenly on the log scale.
        losses: smoothed training loss after each step, nats.
        advised: a tenth of the rate at which the loss was lowest.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    advised: float


def find_learning_rate(recipe: Recipe, network: nn.Module, source: BatchSource) -> RateSweep:
    """Sweep the learning rate over `STEPS` steps on a copy of ``network``, which itself is not changed.

    Args:
        recipe: its optimizer and batch size are used; its rate and schedule are not.
        network: on its device.
        source: the training part.

    Raises:
        TrainingError: the loss never fell, so no rate can be advised.
    """
    state = torch.get_rng_state()
    trial = copy.deepcopy(network).train()
    optimizer = build_optimizer(recipe, [p for p in trial.parameters() if p.requires_grad])
    rates: list[float] = []
    losses: list[float] = []
    smoothed = 0.0
    for step in range(STEPS):
        inputs, labels = _batch(source, recipe, step)
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        loss = loss_of(trial(inputs).float(), labels, recipe.label_smoothing, multilabel=source.multilabel)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss.item()
        unbiased = smoothed / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(unbiased) or (losses and unbiased > EXPLODED * min(losses)):
            break
        rates.append(rate)
        losses.append(unbiased)
    torch.set_rng_state(state)
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    if not lowest:
        raise TrainingError("find_rate: the loss never fell while the rate rose; set --learning-rate yourself.")
    return RateSweep(tuple(rates), tuple(losses), float(f"{SAFETY * rates[lowest]:.2g}"))


def _batch(source: BatchSource, recipe: Recipe, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of a step, from as many epochs as the sweep takes."""
    size = recipe.batch_size or 1
    epoch, position = divmod(step, source.steps(size))
    return next(source.shuffled(size, recipe.seed, epoch, first=position))
