"""The net as a graph: which layer's output reaches which layer, through branches and functional calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convlens.explain.capture import layer_names, named_layer, quiet

__all__ = ["INPUT", "between", "layer_graph"]

INPUT = "input"
"""Name of the graph's source: the model's input."""


class _Producers(TorchDispatchMode):
    """Remembers for every tensor which layers it came from; operators between layers hand that on."""

    def __init__(self) -> None:
        super().__init__()
        # tensors are kept, because a freed one's id is used again
        self._known: dict[int, tuple[Tensor, frozenset[str]]] = {}

    def of(self, values: Iterable[Any]) -> frozenset[str]:
        found: set[str] = set()
        for value in values:
            if isinstance(value, Tensor) and id(value) in self._known:
                found |= self._known[id(value)][1]
        return frozenset(found)

    def mark(self, values: Iterable[Any], producers: frozenset[str]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._known[id(value)] = (value, producers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.mark(tree_leaves(result), self.of(tree_leaves((args, kwargs))))
        return result


def layer_graph(model: nn.Module, input: Tensor) -> list[tuple[str, str]]:
    """Edges ``(from, to)`` between layers, found by one pass over ``input``; `INPUT` is the source.

    A layer that runs several times is one node. Layers that a functional call joins (a sum, a concatenation)
    each have an edge to the layer that takes the result.
    """
    edges: dict[tuple[str, str], None] = {}
    with torch.no_grad(), quiet(model), _Producers() as producers:
        producers.mark([input], frozenset({INPUT}))

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any) -> None:
                for source in sorted(producers.of(tree_leaves(inputs))):
                    if source != name:
                        edges[(source, name)] = None

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                producers.mark(tree_leaves(output), frozenset({name}))

            return hook

        handles = []
        try:
            for name in layer_names(model):
                layer = named_layer(model, name)
                handles += [layer.register_forward_pre_hook(enter(name)), layer.register_forward_hook(leave(name))]
            model(input)
        finally:
            for handle in handles:
                handle.remove()
    return list(edges)


def between(edges: list[tuple[str, str]], shown: set[str]) -> list[tuple[str, str]]:
    """Edges between the layers ``shown``; the others (identities) are passed through."""
    sources: dict[str, list[str]] = {}
    for begin, end in edges:
        sources.setdefault(end, []).append(begin)

    def origins(name: str, path: frozenset[str] = frozenset()) -> list[str]:
        if name in shown or name in path:
            return [name] if name in shown else []
        return [one for source in sources.get(name, []) for one in origins(source, path | {name})]

    passed = [(one, end) for begin, end in edges if end in shown for one in origins(begin)]
    return list(dict.fromkeys(passed))
