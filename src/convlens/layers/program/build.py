"""Steps bound to a shape: a layout for the whole chain, kernel and packed weights of each convolution, memory.

Everything is decided while the steps run once on an example, see `emit`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from convlens.kernels.cpu.memory import sharing_workspaces
from convlens.layers.program.emit import Action, Emitter, Environment, Layout, replayed
from convlens.layers.program.in_place import choose_in_place
from convlens.layers.program.lower import Step
from convlens.layers.program.values import Values
from convlens.layers.program.watch import Samples
from convlens.planner import Bound

__all__ = ["Built", "build"]


class Built:
    """Actions over an environment of values, ready to run again and again (one thread at a time).

    Attributes:
        layout: of images inside.
        kernels: name of each convolution's kernel, in order.
    """

    def __init__(
        self, lowered: tuple[list[Step], str, Any], x: torch.Tensor, like: list[torch.Tensor], layout: Layout,
        known: dict[Any, list[Bound]],
    ) -> None:  # fmt: skip
        """See `build`."""
        steps, entry, result = lowered
        values = Values(steps, entry, result)
        values.enter(entry, x)
        emitter = Emitter(steps, values, layout, known)
        emitter.emit()
        self.layout = layout
        self.environment: Environment = [emitter.fixed.get(slot) for slot in range(len(values.held))]
        self.environment[0] = x
        choose_in_place(emitter, self.environment)
        self.environment[0] = None
        self.kernels = [bound.kernel for bound in emitter.bounds]
        self.flags = [bound.spoilt for bound in emitter.bounds if bound.spoilt is not None]
        self.actions = _joined(emitter)
        self.leave = _exits(values, result, like)
        self._blind = not {"vendor", "packed"}.isdisjoint(self.kernels)
        self._alarm = Samples(self.flags, every=True)

    def run(self, x: torch.Tensor) -> Any:
        """The result for another input like the one it was prepared on; `spoilt` says whether it is good."""
        environment = self.environment
        environment[0] = x
        for action in self.actions:
            action(environment)
        result = self.leave(environment)
        environment[0] = None
        return result

    def spoilt(self) -> bool:
        """Whether a kernel met numbers that it cannot compute with in the last run; forgets it."""
        if self._alarm.same():
            return False
        for flag in self.flags:
            flag.zero_()
        self._alarm.same()
        return True

    def takes(self, x: torch.Tensor) -> bool:
        """Whether an input may be run: oneDNN's fused ReLU turns NaN to 0, so none may come in there."""
        return not self._blind or math.isfinite(x.sum().item())


def _joined(emitter: Emitter) -> list[Action]:
    """The actions, with each run of calls of generated code as one."""
    actions, native, joined = emitter.actions, emitter.native, list[Action]()
    for is_native, run in itertools.groupby(range(len(actions)), native.__contains__):
        if is_native:
            joined.append(replayed([native[at] for at in run]))
        else:
            joined += [actions[at] for at in run]
    return joined


def _exits(values: Values, result: Any, like: list[torch.Tensor]) -> Callable[[Environment], Any]:
    """How what is returned leaves: memory of the program's own is copied, strides are those of ``like``."""

    def take(node: Node, shown: torch.Tensor) -> Callable[[Environment], torch.Tensor]:
        slot, shape, stride = values.slots[node.name], shown.shape, shown.stride()
        if values.at(node.name).stride() != stride:
            return lambda e: torch.empty_strided(shape, stride).copy_(e[slot])
        if values.is_static(node.name):
            return lambda e: e[slot].clone()
        return lambda e: e[slot]

    nodes = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Node)]
    takers = [take(node, shown) for node, shown in zip(nodes, like, strict=True)]
    if isinstance(result, Node):
        return takers[0]
    _, structure = tree_flatten(result)
    return lambda e: tree_unflatten([taker(e) for taker in takers], structure)


def build(
    lowered: tuple[list[Step], str, Any],
    x: torch.Tensor,
    like: list[torch.Tensor],
    layout: Layout,
    known: dict[Any, list[Bound]],
) -> Built:
    """What `lower` gave for inputs like ``x``.

    Args:
        lowered: steps, name of the input, what is returned.
        x: an input.
        like: tensors with the shapes and strides to be returned.
        layout: of images inside.
        known: bound convolutions that another program has already.
    """
    with sharing_workspaces():
        return Built(lowered, x, like, layout, known)
