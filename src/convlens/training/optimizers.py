"""The recipe's update rule as a torch optimizer, and what happens to weights around a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from convlens.training.muon import Muon
from convlens.training.recipe import Recipe

__all__ = ["WeightAverage", "build_optimizer", "limit_norms"]


def build_optimizer(recipe: Recipe, trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``recipe`` names, over ``trained``.

    Vectors (biases, norms' gains) are not decayed: shrinking them limits no function class and hurts norms.
    With ``layer_decay`` below 1 each matrix, with the vectors that follow it, is a layer with a rate of its own
    (``rate_scale`` of its groups).
    """
    layers: list[list[nn.Parameter]] = []
    for parameter in trained:
        if not layers or (recipe.layer_decay < 1 and parameter.dim() > 1):
            layers.append([])
        layers[-1].append(parameter)
    groups: list[dict[str, Any]] = []
    for place, layer in enumerate(layers):
        scale = recipe.layer_decay ** (len(layers) - 1 - place)
        matrices, vectors = [p for p in layer if p.dim() > 1], [p for p in layer if p.dim() <= 1]
        for parameters, decay in ((matrices, recipe.weight_decay_in_use), (vectors, 0.0)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "rate_scale": scale})
    rate = recipe.peak_learning_rate
    match recipe.optimizer:
        case "sgd":
            nesterov = recipe.nesterov and recipe.momentum > 0
            return torch.optim.SGD(groups, rate, recipe.momentum, nesterov=nesterov, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, rate, momentum=recipe.momentum, foreach=True)
        case "adamw":
            return torch.optim.AdamW(groups, rate, betas=(0.9, 0.99), fused=True)
        case "muon":
            return Muon(_muon_groups(groups, trained), rate, recipe.momentum, nesterov=recipe.nesterov)


def _muon_groups(groups: list[dict[str, Any]], trained: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """The groups with the hidden layers' matrices apart; the first and the last layer stay with AdamW."""
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    hidden = {id(parameter) for parameter in matrices[1:-1]}
    parts = []
    for group in groups:
        for turned in (True, False):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in hidden) == turned]
            if chosen:
                parts.append({**group, "params": chosen, "muon": turned})
    return parts


@torch.no_grad()
def limit_norms(parameters: Iterable[torch.Tensor], longest: float) -> None:
    """Shorten, in place, the weight vector of each output unit to at most ``longest`` (row I8)."""
    for parameter in parameters:
        if parameter.dim() > 1:
            parameter.copy_(torch.renorm(parameter, 2, 0, longest))


class WeightAverage:
    """Exponential moving average of parameters.

    Args:
        parameters: the live parameters, in a fixed order.
        decay: weight of the past in each update, 0–1; smaller during the first updates, so that the random
            initial weights are soon forgotten.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = list(parameters)
        self.values = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.data for p in self._live], 1 - decay)

    def swap(self) -> None:
        """Exchange live and averaged values; a second call undoes it. Copies nothing."""
        for place, parameter in enumerate(self._live):
            parameter.data, self.values[place] = self.values[place], parameter.data
