"""The recipe's update rule as a torch optimizer, and what happens to weights around a step."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as of_all

from convlens.training.muon import Muon
from convlens.training.recipe import Recipe

__all__ = ["DirectStep", "WeightAverage", "build_optimizer", "limit_norms"]


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
            return _SGD(groups, rate, recipe.momentum, nesterov=nesterov, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, rate, momentum=recipe.momentum, foreach=True)
        case "adamw":
            return _AdamW(groups, rate, betas=(0.9, 0.99), fused=True)
        case "muon":
            return Muon(_muon_groups(groups, trained), rate, recipe.momentum, nesterov=recipe.nesterov)


# To keep a method out of torch.compile its decorator first loads all of the compiler, 0.7 s of every start.
class _AdamW(torch.optim.AdamW):
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)


class _SGD(torch.optim.SGD):
    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)


class DirectStep:
    """Steps of an optimizer with the same kernel, state and bits as its own ``step``, and less around them.

    ``torch.optim`` looks for gradients, states and settings anew in every step, which takes a small network longer
    than the update does. Here the lists are kept, and go to torch's fused kernel. Optimizers and settings that
    are not known, hooks, and steps in which a gradient is missing, take the optimizer's own ``step``.

    Args:
        optimizer: AdamW or SGD; others are only stepped.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._held: Any = None
        self._lists: list[tuple[dict[str, Any], list[torch.Tensor], list[list[torch.Tensor]]]] = []

    @torch.no_grad()
    def take(self) -> None:
        """One step; afterwards the gradients may be dropped."""
        optimizer = self._optimizer
        if self._held is not optimizer.state and not self._collect():
            optimizer.step()
            return
        gradients = [[parameter.grad for parameter in parameters] for _, parameters, _ in self._lists]
        if any(gradient is None for of_group in gradients for gradient in of_group) or _is_hooked(optimizer):
            optimizer.step()
            return
        adamw = isinstance(optimizer, torch.optim.AdamW)
        if adamw:
            torch._foreach_add_([step for _, _, state in self._lists for step in state[0]], 1)
        for (group, parameters, state), of_group in zip(self._lists, gradients, strict=True):
            update = _adamw if adamw else _sgd
            update(group, parameters, of_group, state)

    def _collect(self) -> bool:
        """Lists of every group's parameters and state (zero at first); whether a direct step may use them."""
        optimizer = self._optimizer
        names = next((names for kind, names in _STATES.items() if isinstance(optimizer, kind)), None)
        if names is None or not all(_is_ordinary(group) for group in optimizer.param_groups):
            return False
        everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not optimizer.state and all(parameter.grad is not None for parameter in everything):
            for group in optimizer.param_groups:
                for parameter in group["params"] if group.get("momentum", 1) else ():
                    optimizer.state[parameter] = {name: _zeros(name, parameter) for name in names}
        lists = []
        for group in optimizer.param_groups:
            states = [optimizer.state.get(parameter, {}) for parameter in group["params"]]
            wanted = names if group.get("momentum", 1) else ()
            if any(not isinstance(state.get(name), torch.Tensor) for state in states for name in wanted):
                return False
            lists.append((group, list(group["params"]), [[state[name] for state in states] for name in wanted]))
        self._lists, self._held = lists, optimizer.state
        return True


_STATES: dict[type, tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


def _zeros(name: str, parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros(()) if name == "step" else torch.zeros_like(parameter)


def _is_ordinary(group: dict[str, Any]) -> bool:
    """Whether a group is on the CPU, in float32 and without the settings that a direct step leaves out."""
    unusual = any(group.get(name) for name in ("amsgrad", "maximize", "capturable", "differentiable", "dampening"))
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in group["params"])
    return bool(group["fused"]) and plain and not unusual


def _is_hooked(optimizer: torch.optim.Optimizer) -> bool:
    everywhere = of_all._global_optimizer_pre_hooks or of_all._global_optimizer_post_hooks
    return bool(everywhere or optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def _adamw(group: dict[str, Any], parameters: list[Any], gradients: list[Any], state: list[Any]) -> None:
    beta1, beta2 = group["betas"]
    steps, averages, squares = state
    torch._fused_adamw_(
        parameters, gradients, averages, squares, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
        weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
    )  # fmt: skip


def _sgd(group: dict[str, Any], parameters: list[Any], gradients: list[Any], state: list[Any]) -> None:
    torch._fused_sgd_(
        parameters, gradients, state[0] if state else [], weight_decay=group["weight_decay"],
        momentum=group["momentum"], lr=group["lr"], dampening=0.0, nesterov=group["nesterov"], maximize=False,
        is_first_step=False,
    )  # fmt: skip


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
