"""Values of a program while it is built: which slot, who reads them last, what memory they lie in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from convlens.kernels.cpu.memory import empty
from convlens.layers.program.lower import Call, Step, constants, used

__all__ = ["Values"]

aten = torch.ops.aten

_IN_PLACE: dict[Any, Any] = {
    aten.relu.default: aten.relu_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.silu.default: aten.silu_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.gelu.default: aten.gelu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
}


class Values:
    """Slots, lifetimes and memory.

    Attributes:
        slots: place in the environment, by name; the input has 0.
        held: the example's values, by slot.
    """

    def __init__(self, steps: list[Step], entry: str, result: Any) -> None:
        self.slots: dict[str, int] = {entry: 0}
        self.held: list[Any] = [None]
        self._last: dict[str, int] = {}
        for place, step in enumerate(steps):
            self._slot(step.name)
            for name in used(step):
                self._last[name] = place
        self._kept: set[str] = set()
        torch.fx.node.map_arg(result, lambda node: self._kept.add(node.name))
        self._memory: dict[int, int] = {}  # slot → storage its value lies in
        self._alive: dict[int, set[int]] = {}  # storage → slots alive in it
        self._own: dict[int, torch.Tensor] = {}  # storage → buffer of the program
        self._free: list[torch.Tensor] = []
        self._extra: dict[int, list[int]] = {}
        self._foreign = {c.untyped_storage().data_ptr() for step in steps for c in constants(step)}

    def _slot(self, name: str) -> int:
        if name not in self.slots:
            self.slots[name] = len(self.held)
            self.held.append(None)
        return self.slots[name]

    def at(self, name: str) -> Any:
        """The example's value of that name."""
        return self.held[self.slots[name]]

    def enter(self, name: str, x: torch.Tensor) -> None:
        """The input, which is not ours to write to."""
        self.held[0] = x
        self._note(0)
        self._foreign.add(self._memory[0])

    def extra(self, name: str, place: int) -> int:
        """A slot for a copy that only the step at ``place`` reads."""
        slot = self._slot(f"{name}@{place}")
        self._extra.setdefault(place, []).append(slot)
        return slot

    def run(self, action: Callable[[list[Any]], None], name: str, place: int) -> None:
        """Run an action on the example and see what its value shares memory with."""
        action(self.held)
        slot = self.slots.get(f"{name}@{place}", self.slots.get(name))
        if slot is not None:
            self._note(slot)

    def _note(self, slot: int) -> None:
        value = self.held[slot]
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().data_ptr()
                self._memory[slot] = storage
                self._alive.setdefault(storage, set()).add(slot)

    def _is_dead(self, name: str, place: int) -> bool:
        return name not in self._kept and self._last.get(name, -1) <= place

    def released(self, place: int) -> list[int]:
        """Slots whose values no step after ``place`` reads; their memory may be used again."""
        names = [n for n, s in self.slots.items() if self.held[s] is not None and "@" not in n]
        gone = [self.slots[n] for n in names if self._is_dead(n, place) and self._last.get(n, place) <= place]
        gone += self._extra.pop(place, [])
        freed = []
        for slot in gone:
            if slot == 0:
                continue
            storage = self._memory.pop(slot, None)
            self.held[slot] = None
            if storage not in self._own:
                freed.append(slot)
            if storage is not None:
                alive = self._alive[storage]
                alive.discard(slot)
                if not alive and storage in self._own:
                    self._free.append(self._own[storage])
        return freed

    def buffer(self, name: str, place: int, shape: tuple[int, ...], layout: str) -> torch.Tensor:
        """Memory of the program's own for a value, dense in ``layout``, used before if some is free."""
        count = math.prod(shape)
        fitting = [b for b in self._free if count <= b.numel() <= 2 * count + 4096]
        if fitting:
            flat = min(fitting, key=torch.numel)
            self._free = [b for b in self._free if b is not flat]
        else:
            flat = empty((count,))
            self._own[flat.untyped_storage().data_ptr()] = flat
        part = flat[:count]
        if layout == "channels_last" and len(shape) > 3:
            batch, channels, *spatial = shape
            return part.view(batch, *spatial, channels).movedim(-1, 1)
        return part.view(shape)

    def give_back(self, part: torch.Tensor) -> None:
        """A buffer that was asked for and is not used after all."""
        self._free.append(self._own[part.untyped_storage().data_ptr()])

    def is_static(self, name: str) -> bool:
        """Whether a value lies in memory that the next run writes to."""
        return self._memory.get(self.slots[name]) in self._own

    def may_overwrite(self, slot: int, place: int) -> bool:
        """Whether nobody reads the memory of a value after the step at ``place``, the caller least of all."""
        storage = self._memory.get(slot)
        if storage is None or storage in self._foreign or not _is_dense(self.held[slot]):
            return False
        names = {s: n for n, s in self.slots.items()}
        return all("@" in names[s] or self._is_dead(names[s], place) for s in self._alive[storage])

    def in_place(self, step: Call, place: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
        """The operator that writes its first operand, where that is not needed any more."""
        twin = _IN_PLACE.get(step.operator)
        if twin is None or not isinstance(step.args[0], Node):
            return None
        first = self.at(step.args[0].name)
        others = [self.at(a.name) if isinstance(a, Node) else a for a in step.args[1:]]
        if not isinstance(first, torch.Tensor) or not first.is_floating_point():
            return None
        for other in others:
            if isinstance(other, torch.Tensor) and (
                torch.broadcast_shapes(first.shape, other.shape) != first.shape or other.dtype != first.dtype
            ):
                return None
        return (twin, step.args, step.kwargs) if self.may_overwrite(self.slots[step.args[0].name], place) else None


def _is_dense(value: torch.Tensor) -> bool:
    """Whether a tensor's places are all different and without gaps."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
