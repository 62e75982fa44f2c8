"""ONNX operators as torch modules: what `onnx_net` builds its layers from.

Each entry of `BUILDERS` takes a `Node` and gives a ``torch.nn.Module`` whose inputs are those inputs of the node
that are not weights: a layer (`onnx_layers`), or a function with a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens.errors import ModelFileError
from convlens.explain.onnx_layers import LAYERS, Node, operator

__all__ = ["BUILDERS", "Node"]


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    sizes = [int(n) for n in shape.tolist()]
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(sizes)])


def _axes_of(node: Node, given: Tensor | None) -> list[int] | None:
    axes = node.get("axes") if given is None else given.tolist()
    return None if axes is None else [int(axis) for axis in axes]


def _reduce(function: Callable[..., Tensor]) -> Callable[[Node], nn.Module]:
    def build(node: Node) -> nn.Module:
        keep = bool(node.get("keepdims", 1))

        def reduced(x: Tensor, given: Tensor | None = None) -> Tensor:
            axes = _axes_of(node, given)
            if axes is None and node.get("noop_with_empty_axes", 0):
                return x
            return function(x, tuple(range(x.ndim)) if axes is None else tuple(axes), keep)

        return operator(node.kind, reduced)

    return build


def _slice(node: Node) -> nn.Module:
    def sliced(x: Tensor, *rest: Tensor) -> Tensor:
        given = [part.tolist() for part in rest]
        starts, ends = given[:2] if given else (node.get("starts"), node.get("ends"))
        axes = given[2] if len(given) > 2 else node.get("axes") or list(range(len(starts)))
        steps = given[3] if len(given) > 3 else [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            chosen = list(range(x.shape[axis]))[slice(start, None if end < -x.shape[axis] else end, step)]
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
        return x

    return operator("Slice", sliced)


def _unsqueezed(node: Node) -> nn.Module:
    def unsqueezed(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = _axes_of(node, given) or []
        for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return operator("Unsqueeze", unsqueezed)


def _squeezed(node: Node) -> nn.Module:
    def squeezed(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = _axes_of(node, given)
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return operator("Squeeze", squeezed)


def _pad(node: Node) -> nn.Module:
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    mode = modes[node.get("mode", "constant")]

    def padded(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None) -> Tensor:
        flat = [int(n) for n in (node.get("pads") if pads is None else pads.tolist())]
        half = len(flat) // 2
        pairs = [(0, 0)] * x.ndim
        chosen = range(x.ndim) if axes is None else axes.tolist()
        for axis, before, after in zip(chosen, flat[:half], flat[half:], strict=True):
            pairs[axis] = (before, after)
        if mode == "constant":
            level = float(node.get("value", 0.0)) if value is None else float(value)
            return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=level)
        return F.pad(x, [n for pair in reversed(pairs[2:]) for n in pair], mode)

    return operator("Pad", padded)


def _clip(node: Node) -> nn.Module:
    low, high = node.get("min"), node.get("max")

    def clipped(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
        bounds = [low if least is None else float(least), high if most is None else float(most)]
        return x if bounds == [None, None] else x.clamp(*bounds)

    return operator("Clip", clipped)


def _resize(node: Node) -> nn.Module:
    mode = node.get("mode", "nearest")
    where = node.get("coordinate_transformation_mode", "half_pixel")
    aligned = where == "align_corners"
    usable = {"nearest": ("asymmetric",), "linear": ("half_pixel", "pytorch_half_pixel", "align_corners")}
    if node.kind == "Resize" and where not in usable.get(mode, ()):
        raise ModelFileError(f"ONNX: Resize {node.name!r}: mode {mode} with {where} is not read.")

    def resized(x: Tensor, *rest: Tensor | None) -> Tensor:
        scales = rest[0] if node.kind == "Upsample" else rest[1] if len(rest) > 1 else None
        sizes = rest[2] if len(rest) > 2 else None
        if sizes is not None and sizes.numel():
            size = [int(n) for n in sizes.tolist()][2:]
        elif scales is not None and scales.numel():
            size = [int(n * s) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
        else:
            raise ModelFileError(f"ONNX: {node.kind} {node.name!r} says no size.")
        if mode == "nearest":
            return F.interpolate(x, size, mode="nearest")
        kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
        return F.interpolate(x, size, mode=kind, align_corners=aligned)

    return operator(node.kind, resized)


def _split(node: Node) -> nn.Module:
    axis, count = node.get("axis", 0), len(node.outputs)

    def parts(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = node.get("split") if sizes is None else sizes.tolist()
        found: tuple[Tensor, ...] = x.split([int(n) for n in given] if given else -(-x.shape[axis] // count), axis)
        return found

    return operator("Split", parts)


def _layer_norm(node: Node) -> nn.Module:
    axis, eps = node.get("axis", -1), node.get("epsilon", 1e-5)
    return operator(
        "LayerNorm", lambda x, scale, shift=None: F.layer_norm(x, x.shape[axis % x.ndim :], scale, shift, eps)
    )


def _instance_norm(node: Node) -> nn.Module:
    eps = node.get("epsilon", 1e-5)
    return operator("InstanceNorm", lambda x, scale, shift: F.instance_norm(x, weight=scale, bias=shift, eps=eps))


def _softmax(node: Node) -> nn.Module:
    return nn.Softmax(node.get("axis", -1)) if node.kind == "Softmax" else nn.LogSoftmax(node.get("axis", -1))


def _flatten(node: Node) -> nn.Module:
    axis = node.get("axis", 1)
    if axis == 1:
        return nn.Flatten()
    return operator("Flatten", lambda x: x.reshape(x.shape[:axis].numel(), -1))


def _gathered(node: Node) -> nn.Module:
    axis = node.get("axis", 0)

    def gathered(x: Tensor, places: Tensor) -> Tensor:
        chosen = torch.where(places < 0, places + x.shape[axis], places)
        taken = x.index_select(axis, chosen.flatten())
        return taken.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))

    return operator("Gather", gathered)


def _cast(node: Node) -> nn.Module:
    types = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool,
             10: torch.float16, 11: torch.float64}  # fmt: skip
    kind = types.get(node.get("to"))
    if kind is None:
        raise ModelFileError(f"ONNX: Cast {node.name!r} to type {node.get('to')} is not read.")
    return operator("Cast", lambda x: x.to(kind))


def _named(function: Callable[..., Any]) -> Callable[[Node], nn.Module]:
    return lambda node: operator(node.kind, function)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], nn.Module]:
    """An operator of any number of inputs from one of two."""

    def folded(first: Tensor, *rest: Tensor) -> Tensor:
        for one in rest:
            first = function(first, one)
        return first

    return _named(folded)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


BUILDERS: dict[str, Callable[[Node], nn.Module]] = {
    **LAYERS,
    "Relu": lambda node: nn.ReLU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.get("alpha", 0.01)),
    "Elu": lambda node: nn.ELU(node.get("alpha", 1.0)),
    "Selu": _named(F.selu),
    "PRelu": _named(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Tanh": lambda node: nn.Tanh(),
    "Softplus": lambda node: nn.Softplus(),
    "Gelu": lambda node: nn.GELU(node.get("approximate", "none")),
    "HardSwish": lambda node: nn.Hardswish(),
    "HardSigmoid": lambda node: operator(
        "HardSigmoid", lambda x: (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0, 1)
    ),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Flatten": _flatten,
    "Reshape": _named(_reshape),
    "Transpose": lambda node: operator(
        "Transpose", lambda x: x.permute(node.get("perm") or tuple(reversed(range(x.ndim))))
    ),
    "Concat": lambda node: operator("Concat", lambda *parts: torch.cat(parts, node.get("axis", 0))),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gathered,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Expand": _named(lambda x, shape: x * torch.ones(shape.tolist(), dtype=x.dtype, device=x.device)),
    "Shape": _named(lambda x: torch.tensor(x.shape, dtype=torch.int64, device="cpu")),
    "Cast": _cast,
    "Identity": lambda node: nn.Identity(),
    "Dropout": lambda node: operator("Dropout", lambda x, *rest: x),
    "Pad": _pad,
    "Clip": _clip,
    "Resize": _resize,
    "Upsample": _resize,
    "LRN": lambda node: nn.LocalResponseNorm(
        node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    ),
    "InstanceNormalization": lambda node: operator(
        "InstanceNorm",
        lambda x, scale, shift: F.instance_norm(x, weight=scale, bias=shift, eps=node.get("epsilon", 1e-5)),
    ),
    "LayerNormalization": _layer_norm,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "Add": _named(torch.add),
    "Sub": _named(torch.sub),
    "Mul": _named(torch.mul),
    "Div": _named(_divided),
    "Pow": _named(torch.pow),
    "Sum": _folded(torch.add),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Sqrt": _named(torch.sqrt),
    "Exp": _named(torch.exp),
    "Log": _named(torch.log),
    "Erf": _named(torch.erf),
    "Abs": _named(torch.abs),
    "Neg": _named(torch.neg),
    "Floor": _named(torch.floor),
    "Ceil": _named(torch.ceil),
    "Where": _named(torch.where),
    "Equal": _named(torch.eq),
    "ConstantOfShape": lambda node: operator(
        "ConstantOfShape", lambda size: node.get("value", torch.zeros(1)).expand(size.tolist()).clone()
    ),
}
"""How each ONNX operator is built; `onnx_net` refuses a file with another, by name."""
