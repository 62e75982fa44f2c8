"""Steps between convolutions that generated code computes, so that Python is left out of them too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from convlens.kernels.cpu.elementwise import MOST_AXES, copied, scaled, zeroed
from convlens.layers.program.lower import Call, Scaling

if TYPE_CHECKING:
    from convlens.layers.program.emit import Emitter

__all__ = ["emit_element", "emit_scaling"]

aten = torch.ops.aten


def emit_scaling(emitter: Emitter, step: Scaling, place: int) -> None:
    """A batch norm that stands alone, with the activation behind it."""
    source = emitter.laid_out(step.source, place)
    x = emitter.values.held[source]
    scale, shift = (t.detach().float().contiguous() for t in (step.scale, step.shift))
    _scale(emitter, source, x, scale, shift, step.activation, step.name, place)


def emit_element(emitter: Emitter, step: Call, place: int) -> bool:
    """The action of an operator that there is generated code for; whether it is one."""
    emit = _OPERATORS.get(step.operator)
    return emit is not None and emit(emitter, step, place)


def _scale(
    emitter: Emitter, source: int, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None,
    activation: str, name: str, place: int,
) -> None:  # fmt: skip
    values = emitter.values
    free = source in emitter.fixed and values.may_overwrite(source, place)
    dest = emitter.fixed[source] if free else values.buffer(name, place, tuple(x.shape), emitter.layout_of(x))
    emitter.native_call(scaled(x, scale, shift, activation), source, dest, name, place)


def _gate(emitter: Emitter, step: Call, place: int) -> bool:
    """A product with a number for each channel of each image, as squeeze-and-excitation has it."""
    first, second = step.args[:2]
    if not (isinstance(first, Node) and isinstance(second, Node)) or step.kwargs:
        return False
    values = emitter.values
    for one, other in ((first, second), (second, first)):
        x, gate = values.at(one.name), values.at(other.name)
        slot = values.slots[other.name]
        if not _is_image(x) or not isinstance(gate, torch.Tensor) or slot not in emitter.fixed:
            continue
        if gate.dtype == torch.float32 and gate.shape == (*x.shape[:2], *(1,) * (x.dim() - 2)):
            held = emitter.fixed[slot]
            if held.is_contiguous() and x.shape != gate.shape:
                source = emitter.laid_out(one.name, place)
                _scale(emitter, source, values.held[source], held, None, "none", step.name, place)
                return True
    return False


def _pad(emitter: Emitter, step: Call, place: int) -> bool:
    """Zeros around a value."""
    source, amounts, *rest = step.args
    if not isinstance(source, Node) or step.kwargs or any(rest) or min(amounts) < 0:
        return False
    values = emitter.values
    x = values.at(source.name)
    if not _is_plain(x):
        return False
    before = [0] * (x.dim() - len(amounts) // 2) + list(amounts[-2::-2])
    after = [0] * (x.dim() - len(amounts) // 2) + list(amounts[-1::-2])
    shape = tuple(low + n + high for low, n, high in zip(before, x.shape, after, strict=True))
    out = values.buffer(step.name, place, shape, emitter.layout)
    inner = out
    for axis, (low, n) in enumerate(zip(before, x.shape, strict=True)):
        inner = inner.narrow(axis, low, n)
    slot = values.slots[source.name]
    emitter.native_call(zeroed(out), slot, out, step.name, place)
    emitter.native_call(copied(x, inner), slot, inner, step.name, place, shown=out)
    return True


def _join(emitter: Emitter, step: Call, place: int) -> bool:
    """Values beside each other."""
    parts: Any = step.args[0]
    axis: Any = step.args[1] if len(step.args) > 1 else 0
    if step.kwargs or not all(isinstance(part, Node) for part in parts):
        return False
    values = emitter.values
    held = [values.at(part.name) for part in parts]
    if not all(_is_plain(x) and x.dim() == held[0].dim() for x in held):
        return False
    axis %= held[0].dim()
    shape = list(held[0].shape)
    shape[axis] = sum(x.shape[axis] for x in held)
    out = values.buffer(step.name, place, tuple(shape), emitter.layout)
    start = 0
    for part, x in zip(parts, held, strict=True):
        piece = out.narrow(axis, start, x.shape[axis])
        emitter.native_call(copied(x, piece), values.slots[part.name], piece, step.name, place, shown=out)
        start += x.shape[axis]
    return True


def _is_plain(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.dim() <= MOST_AXES and x.numel() > 0


def _is_image(x: Any) -> bool:
    return _is_plain(x) and x.dim() >= 3


_OPERATORS: dict[Any, Any] = {
    aten.mul.Tensor: _gate,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _join,
}
