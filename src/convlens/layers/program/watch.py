"""Whether a module is still what it was when its program was made: weights, layers, settings, hooks."""

from __future__ import annotations

import ctypes
import operator
import sys
from collections import OrderedDict
from functools import cache
from itertools import chain
from types import SimpleNamespace

import torch

__all__ = ["Samples", "Watch"]

_LOOKS = 17
"""Numbers looked at in each tensor. A change of every tenth weight of ten layers escapes once in 10⁷ times."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


_version, _address = operator.attrgetter("_version"), torch.Tensor.data_ptr


class Watch:
    """What a program depends on, remembered; `same` costs about a fifth of a microsecond for each layer."""

    def __init__(self, module: torch.nn.Module, constants: list[torch.Tensor]) -> None:
        modules = list(module.modules())
        self._hooks = [vars(m)[name] for m in modules for name in _HOOKS if name in vars(m)]
        # what a module holds: settings, layers, tensors
        dicts = [d for m in modules for d in (vars(m), m._modules, m._parameters, m._buffers) if d]
        self._views = [d.values() for d in dicts]
        self._values = [*chain.from_iterable(self._views)]
        self._dicts = [*dicts, *self._hooks]
        tags = _tag_offset()
        self._tags = None if tags is None else Numbers([id(d) + tags for d in self._dicts])
        read = {c.untyped_storage().data_ptr() for c in constants}
        held = [t for m in modules for d in (m._parameters, m._buffers) for t in d.values() if t is not None]
        self._tensors = [t for t in held if t.untyped_storage().data_ptr() in read]
        self._known = {t.untyped_storage().data_ptr() for t in self._tensors}
        self._frozen = any(t.is_inference() for t in self._tensors)
        self._versions = [] if self._frozen else [*map(_version, self._tensors)]
        self._addresses = [*map(_address, self._tensors)]
        self._samples = Samples(self._tensors)

    def covers(self, constants: list[torch.Tensor]) -> bool:
        """Whether every tensor that the program reads is the module's own, and one that counts its changes."""
        return not self._frozen and all(c.untyped_storage().data_ptr() in self._known for c in constants)

    def same(self) -> bool:
        """Whether nothing has changed since."""
        if (self._tags is None or not self._tags.same()) and not self._holds_the_same():
            return False
        if [*map(_version, self._tensors)] != self._versions:
            return False
        if [*map(_address, self._tensors)] != self._addresses:
            return False
        # writing through .data shows nowhere but in the numbers; a single weight may escape
        return self._samples.same()

    def _holds_the_same(self) -> bool:
        if any(self._hooks):
            return False
        try:
            return [*chain.from_iterable(self._views)] == self._values
        except (RuntimeError, TypeError, ValueError):  # something changed to what has no plain comparison
            return False


@cache
def _tag_offset() -> int | None:
    """Where in a dict CPython keeps the number that every change of any dict moves on (PEP 509, until 3.12).

    None where there is none: what the dicts hold is compared then, which takes ten times as long.
    """
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13):
        return None
    offset = 3 * ctypes.sizeof(ctypes.c_void_p)  # behind the reference count, the type and the count of entries
    probes: list[dict[str, int]] = [{"a": 1}, OrderedDict(a=1), vars(SimpleNamespace(a=1))]
    for probe in probes:
        tag = ctypes.c_uint32.from_address(id(probe) + offset)
        seen = [tag.value]
        for change in ("a", "b"):
            if probe.get("a") is None or tag.value != seen[-1]:  # looking is no change
                return None
            probe[change] = 2
            seen.append(tag.value)
        if len(set(seen)) < len(seen):
            return None
    return offset


class Samples:
    """Some numbers of every tensor, or all, compared by compiled code: their addresses must be good."""

    def __init__(self, tensors: list[torch.Tensor], *, every: bool = False) -> None:
        places = []
        for tensor in tensors:
            if tensor.element_size() != 4 or not tensor.numel():
                continue
            count = _span(tensor)
            chosen = range(count) if every else sorted({i * (count - 1) // (_LOOKS - 1) for i in range(_LOOKS)})
            places += [tensor.data_ptr() + 4 * at for at in chosen]
        self._numbers = Numbers(places)

    def same(self) -> bool:
        """Whether the numbers are what they were at the last look."""
        return self._numbers.same()


class Numbers:
    """32-bit numbers at addresses, which must stay good."""

    def __init__(self, places: list[int]) -> None:
        from convlens.kernels.cpu.samples import comparing

        self._count = len(places)
        self._result = torch.zeros(1, dtype=torch.int32)
        self._compare = comparing()
        self._places = torch.tensor(places, dtype=torch.int64)
        self._held = torch.zeros(max(1, self._count), dtype=torch.int32)
        self._arguments = (
            self._places.data_ptr(), self._held.data_ptr(), self._result.data_ptr(), self._count, 1,
        )  # fmt: skip
        self._seen = ctypes.c_int32.from_address(self._result.data_ptr())
        self._compare(*self._arguments)

    def same(self) -> bool:
        """Whether the numbers are what they were at the last look."""
        self._seen.value = 0
        self._compare(*self._arguments)
        return self._seen.value == 0


def _span(tensor: torch.Tensor) -> int:
    """Elements from a tensor's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
