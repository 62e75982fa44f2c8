"""Receptive fields of tensors, carried through a run operator by operator, branches included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["WHOLE", "Field", "FieldMap"]


@dataclass(frozen=True, slots=True)
class Axis:
    """Along one axis: unit ``i`` sees input positions ``start + i*stride`` to ``start + i*stride + size - 1``."""

    size: int
    stride: int
    start: int

    def through(self, window: int, stride: int, dilation: int, before: int) -> Axis:
        """The axis after a window that slides over it."""
        reach = dilation * (window - 1) * self.stride
        return Axis(self.size + reach, self.stride * stride, self.start - before * self.stride)

    def joined(self, other: Axis) -> Axis:
        """What sees both; the strides are equal where sizes are."""
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Axis(end - start, self.stride, start)


@dataclass(frozen=True, slots=True)
class Field:
    """Receptive field of each unit of a tensor: one `Axis` per spatial axis; without axes, the whole input."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Input positions seen, per axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def stride(self) -> tuple[int, ...]:
        """Input positions between neighbouring units, per axis."""
        return tuple(axis.stride for axis in self.axes)

    def joined(self, other: Field) -> Field:
        """What sees both; the whole input where the two cannot be compared."""
        if len(self.axes) != len(other.axes) or self.stride != other.stride:
            return WHOLE
        return Field(tuple(a.joined(b) for a, b in zip(self.axes, other.axes, strict=True)))


WHOLE = Field(())


class FieldMap:
    """The field of every tensor that depends on the input. Tensors are kept alive, so that an id names one."""

    def __init__(self, input: Tensor) -> None:
        self._fields = {id(input): Field(tuple(Axis(1, 1, 0) for _ in input.shape[2:]))}
        self._alive: list[Tensor] = [input]

    def of(self, tensor: Tensor) -> Field | None:
        """The field, or None when the tensor does not depend on the input (a weight)."""
        return self._fields.get(id(tensor))

    def share(self, source: Tensor, target: Tensor) -> None:
        """Let ``target`` see what ``source`` sees."""
        self._fields[id(target)] = self._fields[id(source)]
        self._alive.append(target)

    def follow(self, operator: Any, arguments: dict[str, Any], outputs: Sequence[Tensor]) -> None:
        """Give ``outputs`` their fields."""
        inputs = [t for t in _tensors(arguments.values()) if self.of(t) is not None]
        if not inputs:
            return
        field = self._after(operator, arguments, inputs, outputs)
        for output in outputs:
            self._fields[id(output)] = field if output.ndim == len(field.axes) + 2 else WHOLE
            self._alive.append(output)

    def _after(
        self, operator: Any, arguments: dict[str, Any], inputs: list[Tensor], outputs: Sequence[Tensor]
    ) -> Field:
        field = self._fields[id(inputs[0])]
        for tensor in inputs[1:]:
            field = field.joined(self._fields[id(tensor)])
        if not field.axes or not outputs:
            return WHOLE
        rule = _RULES.get(operator.__name__.split(".")[0])
        if rule is None:
            rule = _slide if _slides(arguments) else _keep
        return rule(field, arguments, inputs[0], outputs[0])


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _slides(arguments: dict[str, Any]) -> bool:
    if arguments.get("transposed") or "input_size" in arguments:
        return False
    return "stride" in arguments and ("weight" in arguments or "kernel_size" in arguments)


def _axes(value: Any, ndim: int, default: int) -> list[int]:
    if value is None or value == []:
        return [default] * ndim
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * ndim if len(values) == 1 else values


def _slide(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    ndim = len(field.axes)
    if "kernel_size" in arguments:
        window = _axes(arguments["kernel_size"], ndim, 1)
        stride = window if arguments["stride"] in (None, []) else _axes(arguments["stride"], ndim, 1)
    else:
        window, stride = list(arguments["weight"].shape[2:]), _axes(arguments["stride"], ndim, 1)
    dilation = _axes(arguments.get("dilation"), ndim, 1)
    padding = _axes(arguments.get("padding"), ndim, 0)
    before = padding[::2] if len(padding) == 2 * ndim else padding
    sliding = zip(field.axes, window, stride, dilation, before, strict=True)
    field = Field(tuple(axis.through(*rest) for axis, *rest in sliding))
    if pool := arguments.get("pool"):  # a fused block: pooling comes after
        pools = _axes(pool, ndim, 1)
        field = Field(tuple(axis.through(p, p, 1, 0) for axis, p in zip(field.axes, pools, strict=True)))
    return field


def _keep(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    """An operator unknown here: position by position if the size is kept, else anything may see anything."""
    return field if output.ndim == input.ndim and output.shape[2:] == input.shape[2:] else WHOLE


def _slice(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    dim = arguments.get("dim", 0) % input.ndim
    if dim < 2:
        return field
    first, step = (arguments.get("start") or 0) % max(input.shape[dim], 1), arguments.get("step", 1)
    axis = field.axes[dim - 2]
    moved = Axis(axis.size, axis.stride * step, axis.start + first * axis.stride)
    return Field(field.axes[: dim - 2] + (moved,) + field.axes[dim - 1 :])


def _pad(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    amounts = list(arguments.get("pad", arguments.get("padding")) or [])
    axes = list(field.axes)
    for place, before in enumerate(amounts[::2]):  # torch lists the last axis first
        dim = input.ndim - 1 - place - 2
        if dim >= 0:
            axes[dim] = Axis(axes[dim].size, axes[dim].stride, axes[dim].start - before * axes[dim].stride)
    return Field(tuple(axes))


def _permute(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    """Channels may go last and come back; anything else mixes axes up."""
    last, back = [0, *range(2, input.ndim), 1], [0, input.ndim - 1, *range(1, input.ndim - 1)]
    return field if [d % input.ndim for d in arguments["dims"]] in (last, back) else WHOLE


def _unsqueeze(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    dim = arguments["dim"] % output.ndim
    return Field(field.axes[: dim - 2] + (Axis(1, 1, 0),) + field.axes[dim - 2 :]) if dim >= 2 else WHOLE


def _squeeze(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    dim = arguments.get("dim", 0)
    dim = (dim[0] if isinstance(dim, (list, tuple)) else dim) % input.ndim
    if dim < 2 or output.ndim != input.ndim - 1:
        return WHOLE
    return Field(field.axes[: dim - 2] + field.axes[dim - 1 :])


def _everything(field: Field, arguments: dict[str, Any], input: Tensor, output: Tensor) -> Field:
    return WHOLE


_RULES: dict[str, Any] = {
    "slice": _slice, "constant_pad_nd": _pad, "permute": _permute, "unsqueeze": _unsqueeze, "squeeze": _squeeze,
    "reflection_pad1d": _pad, "reflection_pad2d": _pad, "reflection_pad3d": _pad,
    "replication_pad1d": _pad, "replication_pad2d": _pad, "replication_pad3d": _pad,
    "transpose": _everything, "mm": _everything, "bmm": _everything, "addmm": _everything, "roll": _everything,
}  # fmt: skip


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of these tensors together."""
    return sum(math.prod(t.shape) * t.element_size() for t in tensors)


def named_arguments(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one operator call by the names of its schema, defaults included."""
    schema = operator._schema.arguments
    named = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    named.update(zip((argument.name for argument in schema), args, strict=False))
    return {**named, **kwargs}


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor in an argument or a result, however nested in lists and tuples."""
    return _tensors(value if isinstance(value, (list, tuple)) else [value])
