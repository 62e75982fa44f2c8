"""Small nets that train as one operator: found by their layers, computed by `ops.conv_chain`.

Whether that may be is looked at anew in every call, so that hooks, other layers and frozen weights take the layers
one by one, as does everything but training.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from convlens.layers.block import ConvBlock2d
from convlens.ops.chain import BlockLayer, DenseLayer, conv_chain

__all__ = ["run_as_chain"]


def run_as_chain(network: torch.nn.Module, parts: Sequence[torch.nn.Module], input: Any) -> torch.Tensor | None:
    """What ``parts``, called one after the other, give; None where they should be so called.

    Args:
        network: the module that holds them; what was found is remembered as long as it lives.
        parts: `ConvBlock2d`, ``Flatten``, ``Linear`` and ``ReLU``, in ``Sequential`` or not.
        input: of the first.
    """
    if not network.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if network not in _known:
        _known[network] = _Structure.of(parts)
    structure = _known[network]
    if structure is None:
        return None
    if not structure.is_current():
        del _known[network]
        return None
    layers = structure.layers()
    return None if layers is None else conv_chain(input, layers, structure.weights())


class _Structure:
    """Layers in their order, and the containers that they were found in."""

    def __init__(self, containers: list[tuple[Any, list[Any]]], leaves: list[Any]) -> None:
        self._containers = containers
        self._kinds = [(leaf, type(leaf)) for leaf in leaves]
        self._blocks = [leaf for leaf in leaves if type(leaf) is ConvBlock2d]
        self._flattens = [leaf for leaf in leaves if type(leaf) is torch.nn.Flatten]
        self._seen: tuple[list[Any], list[Any]] | None = None
        self._layers: tuple[BlockLayer | DenseLayer, ...] | None = None
        linear = [place for place, leaf in enumerate(leaves) if type(leaf) is torch.nn.Linear]
        self._weighted = [*self._blocks, *(leaves[place] for place in linear)]
        self._dense = tuple(
            DenseLayer(place + 1 < len(leaves) and type(leaves[place + 1]) is torch.nn.ReLU) for place in linear
        )

    @classmethod
    def of(cls, parts: Sequence[Any]) -> _Structure | None:
        """The structure of ``parts``, or None where they are not blocks and then dense layers."""
        containers: list[tuple[Any, list[Any]]] = []
        leaves: list[Any] = []
        for part in parts:
            _collect(part, containers, leaves)
        letters = "".join(_LETTERS.get(type(leaf), "?") for leaf in leaves)
        blocks = len(letters) - len(letters.lstrip("b"))
        rest = letters[blocks:]
        if not blocks or not rest.startswith("f") or rest[1:].replace("lr", "l").strip("l") or "l" not in rest:
            return None
        return cls(containers, leaves)

    def is_current(self) -> bool:
        """Whether everything is as it was found, and nothing watches."""
        if _has_any_global_hook():
            return False
        for container, items in self._containers:
            if [*container._modules.values()] != items or _is_watched(vars(container)):
                return False
        for leaf, kind in self._kinds:
            if type(leaf) is not kind or not leaf.training or _is_watched(vars(leaf)):
                return False
        return True

    def layers(self) -> tuple[BlockLayer | DenseLayer, ...] | None:
        """As `conv_chain` takes them; None where a layer's settings are others than it knows."""
        settings = [
            (b.activation, b.pool, b.groups, b.flip, b.padding_mode, b.algorithm, b.stride, b.padding, b.dilation)
            for b in self._blocks
        ]
        flat = [(f.start_dim, f.end_dim) for f in self._flattens]
        if (settings, flat) != self._seen:
            self._seen, self._layers = (settings, flat), self._of_settings()
        return self._layers

    def _of_settings(self) -> tuple[BlockLayer | DenseLayer, ...] | None:
        found = []
        for block in self._blocks:
            usual = block.activation == "relu" and block.pool == 2 and block.groups == 1 and not block.flip
            if not usual or block.padding_mode != "zeros" or block.algorithm not in ("auto", "direct"):
                return None
            found.append(BlockLayer(block.stride, block.padding, block.dilation))
        if any((flatten.start_dim, flatten.end_dim) != (1, -1) for flatten in self._flattens):
            return None
        return (*found, *self._dense)

    def weights(self) -> list[torch.Tensor | None]:
        """Weight and bias of each layer."""
        found = []
        for module in self._weighted:
            own = module._parameters
            found += [own["weight"], own["bias"]]
        return found


_LETTERS: dict[type, str] = {
    ConvBlock2d: "b", torch.nn.Flatten: "f", torch.nn.Linear: "l", torch.nn.ReLU: "r",
}  # fmt: skip
_known: weakref.WeakKeyDictionary[torch.nn.Module, _Structure | None] = weakref.WeakKeyDictionary()


def _is_watched(held: dict[str, Any]) -> bool:
    """`chains.is_watched` of a module's own attributes, for every layer in every step."""
    return bool(
        held["_forward_hooks"]
        or held["_forward_pre_hooks"]
        or held["_backward_hooks"]
        or held["_backward_pre_hooks"]
        or "forward" in held
    )


def _collect(module: Any, containers: list[tuple[Any, list[Any]]], leaves: list[Any]) -> None:
    if type(module) is not torch.nn.Sequential:
        leaves.append(module)
        return
    items = [*module._modules.values()]
    containers.append((module, items))
    for item in items:
        _collect(item, containers, leaves)
