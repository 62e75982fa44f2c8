"""Start from a trained net and train only some layers (LECTURES.md row I9), other classes or channels allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from convlens.errors import RecipeError
from convlens.modelfile.card import read_model
from convlens.training.recipe import Recipe

__all__ = ["Freezing", "Transfer", "layers_of", "load_initial", "start_weights"]


@dataclass(frozen=True)
class Transfer:
    """What became of each tensor.

    Attributes:
        loaded: taken over as they were.
        adapted: first layer's weights, taken over with their channels repeated or averaged.
        initialised: of the new net, absent from the file or of another shape; fresh weights stay.
        unused: of the file, without a place in the new net.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors"]
        for word, names in (("adapted", self.adapted), ("fresh", self.initialised), ("unused", self.unused)):
            if names:
                parts.append(f"{word}: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
        return "; ".join(parts)


def start_weights(network: nn.Module, recipe: Recipe, tell: Callable[[str], None]) -> None:
    """Load the weights that ``recipe.init`` names, if it names any, and tell what was loaded."""
    if recipe.init is not None:
        tell(f"init from {recipe.init}: {load_initial(network, recipe.init)}")


@torch.no_grad()
def load_initial(network: nn.Module, path: str | Path) -> Transfer:
    """Copy the weights of a run or model file into ``network`` wherever name and shape agree.

    A first layer for another number of channels gets the mean over the old channels for each new one, scaled so
    that a grey picture gives the same sums as before.

    Raises:
        PathError: no such file.
        ModelFileError: it cannot be read.
        RecipeError: nothing in it fits.
    """
    state, _ = read_model(path)
    own = network.state_dict()
    loaded, adapted = [], []
    first = f"{layers_of(network)[0][0]}.weight"
    for name, value in own.items():
        given = state.get(name)
        if given is None:
            continue
        if given.shape == value.shape:
            value.copy_(given)
            loaded.append(name)
        elif name == first and (changed := _other_channels(given, value)) is not None:
            value.copy_(changed)
            adapted.append(name)
    if not loaded:
        raise RecipeError(f"init: nothing in {path} fits this network; take the same --model.")
    taken = {*loaded, *adapted}
    return Transfer(
        tuple(loaded),
        tuple(adapted),
        tuple(name for name in own if name not in taken),
        tuple(name for name in state if name not in taken),
    )


def layers_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers with parameters of their own, first to last; a norm belongs to the layer before it."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, _NormBase)
    ]


class Freezing:
    """Which layers are trained in which epoch.

    Args:
        network: the network; `requires_grad` of its parameters and the mode of its norms are set.
        train_layers: ``"all"``, ``"head"`` (the last layer) or ``"last:N"``.
        unfreeze_epochs: one more layer is trained every so many epochs, from the last to the first; 0 never.

    Raises:
        RecipeError: more layers than there are.
    """

    def __init__(self, network: nn.Module, train_layers: str, unfreeze_epochs: int = 0) -> None:
        self._layers = [name for name, _ in layers_of(network)]
        self._network = network
        self._every = unfreeze_epochs
        self._first_count = self._count(train_layers)

    def ever_trained(self) -> list[nn.Parameter]:
        """Parameters that are trained in some epoch, in the network's order."""
        count = len(self._layers) if self._every else self._first_count
        names = self._names(count)
        return [p for name, p in self._network.named_parameters() if self._layer_of(name) in names]

    def apply(self, epoch: int) -> None:
        """Put the network into training mode for ``epoch`` (from 0), with frozen layers as in evaluation."""
        self._network.train()
        count = self._first_count + (epoch // self._every if self._every else 0)
        names = self._names(count)
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(self._layer_of(name) in names)
        for name, module in self._network.named_modules():
            # A frozen norm keeps its statistics, else the "frozen" layer would still drift.
            if isinstance(module, _NormBase) and self._layer_of(f"{name}.weight") not in names:
                module.eval()

    def _count(self, train_layers: str) -> int:
        if train_layers == "all":
            return len(self._layers)
        count = 1 if train_layers == "head" else int(train_layers.removeprefix("last:"))
        if count > len(self._layers):
            raise RecipeError(
                f"train_layers: expected at most last:{len(self._layers)}, received {train_layers!r}."
            )
        return count

    def _names(self, count: int) -> set[str]:
        return set(self._layers[max(0, len(self._layers) - count) :])

    def _layer_of(self, parameter: str) -> str:
        """The layer to which a parameter belongs: its own module, or for a norm the layer before it."""
        owner = parameter.rpartition(".")[0]
        if owner in self._layers:
            return owner
        before = ""
        for name, _ in self._network.named_modules():
            if name in self._layers:
                before = name
            if name == owner:
                break
        return before or self._layers[0]


def _other_channels(given: Tensor, value: Tensor) -> Tensor | None:
    if not given.dim() == value.dim() > 2:
        return None
    if (given.shape[0], given.shape[2:]) != (value.shape[0], value.shape[2:]):
        return None
    mean = given.mean(dim=1, keepdim=True) * (given.shape[1] / value.shape[1])
    return mean.expand_as(value)
