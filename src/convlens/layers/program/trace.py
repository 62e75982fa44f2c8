"""A module's forward as a graph of torch's operators, recorded while it runs on an example."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from convlens.layers.convolution import Conv1d, Conv2d, Conv3d

__all__ = ["Snapshot", "Untraceable", "trace"]


class Untraceable(Exception):
    """Why a forward cannot be a list of calls."""


def trace(module: torch.nn.Module, x: torch.Tensor) -> torch.fx.GraphModule:
    """The operators that ``module(x)`` runs, without their side effects.

    Raises:
        Untraceable: it draws random numbers, writes to its input or its buffers, branches on values, asks for an
            algorithm by name, or computes no tensor.
    """
    if any(
        m.algorithm not in ("auto", "vendor") for m in module.modules() if isinstance(m, (Conv1d, Conv2d, Conv3d))
    ):
        raise Untraceable("a layer asks for an algorithm by name")
    before = Snapshot(module)
    recorder: Any = make_fx(functionalize(lambda value: module(value)), _allow_non_fake_inputs=True)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            graph: torch.fx.GraphModule = recorder(x.detach().clone())
    except Exception as error:  # any code may stand in a forward
        before.restore()
        raise Untraceable(f"{type(error).__name__}: {error}") from error
    if before.restore():
        raise Untraceable("its forward changes the module")
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            if node.target._schema.is_mutable:
                raise Untraceable(f"{node.target} writes to what was there before")
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                raise Untraceable(f"{node.target} draws random numbers")
        elif node.op not in ("placeholder", "get_attr", "output") and node.target is not _GETITEM:
            raise Untraceable(f"{node.op} {node.target}")
    (result,) = (node for node in graph.graph.nodes if node.op == "output")
    leaves = tree_leaves(result.args[0])
    if not leaves or not all(isinstance(leaf, torch.fx.Node) for leaf in leaves):
        raise Untraceable("what it returns is not made of tensors")
    return graph


class Snapshot:
    """What a module's forward may write to: attributes, what they hold, buffers."""

    def __init__(self, module: torch.nn.Module) -> None:
        modules = list(module.modules())
        self._attributes = [(vars(m), dict(vars(m))) for m in modules]
        held = [value for m in modules for value in vars(m).values()]
        self._containers = [(c, copy.copy(c)) for c in held if type(c) in (list, dict, set)]
        self._buffers = [(b, b._version, b.clone()) for b in module.buffers() if not b.is_inference()]

    def restore(self) -> bool:
        """Undo every change; whether there was any."""
        changed = False
        for now, then in self._attributes:
            if list(map(id, now.values())) != list(map(id, then.values())) or list(now) != list(then):
                changed = True
                now.clear()
                now.update(then)
        for container, kept in self._containers:
            if len(container) != len(kept):
                changed = True
                container.clear()
                (container.extend if type(container) is list else container.update)(kept)
        for buffer, version, kept in self._buffers:
            if buffer._version != version:
                changed = True
                with torch.no_grad():
                    buffer.copy_(kept)
        return changed


_GETITEM = operator.getitem
