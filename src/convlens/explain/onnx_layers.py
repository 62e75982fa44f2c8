"""ONNX nodes that hold weights or windows as layers of torch, or of convlens where a padding differs on two sides.

So everything that explains a layer knows them. `onnx_operators` has the rest, and the table of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convlens import layers
from convlens.errors import ModelFileError

__all__ = ["LAYERS", "Node", "Operator", "operator"]


@dataclass(frozen=True)
class Node:
    """One node of the graph: its kind, attributes, inputs by name, and those of them whose values are stored."""

    kind: str
    name: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stored: dict[str, Tensor] = field(repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def constant(self, place: int) -> Tensor | None:
        """The stored value of input ``place``; None where there is none."""
        return self.stored.get(self.inputs[place]) if place < len(self.inputs) else None

    def needed(self, place: int, what: str) -> Tensor:
        """The stored value of input ``place``.

        Raises:
            ModelFileError: it is computed in the graph.
        """
        value = self.constant(place)
        if value is None:
            raise ModelFileError(
                f"ONNX: {self.kind} {self.name!r} computes its {what}; only stored ones are read."
            )
        return value


class Operator(nn.Module):
    """A function as a layer; its subclasses carry the ONNX operator's name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """Compute it."""
        return self.function(*inputs)


def operator(kind: str, function: Callable[..., Any]) -> nn.Module:
    """A function as a layer whose class is called ``kind``."""
    made: nn.Module = type(kind, (Operator,), {"__doc__": f"ONNX {kind}."})(function)
    return made


def _pads(node: Node, kernel: list[int], sizes_known: bool = True) -> list[tuple[int, int]] | str:
    """Pairs per axis, or ``"same"``."""
    auto = node.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * len(kernel)
    if auto == "SAME_UPPER":
        return "same"
    if auto == "SAME_LOWER":
        raise ModelFileError(f"ONNX: {node.kind} {node.name!r}: auto_pad SAME_LOWER is not read.")
    flat = node.get("pads") or [0] * 2 * len(kernel)
    half = len(flat) // 2
    return list(zip(flat[:half], flat[half:], strict=True))


def _even(pads: list[tuple[int, int]] | str) -> tuple[int, ...] | None:
    """One number per axis where both sides agree."""
    if isinstance(pads, str) or any(a != b for a, b in pads):
        return None
    return tuple(a for a, _ in pads)


def _conv(node: Node) -> nn.Module:
    weight = node.needed(1, "weights")
    bias = node.constant(2)
    axes = weight.ndim - 2
    groups = node.get("group", 1)
    pads = _pads(node, list(weight.shape[2:]))
    even = _even(pads)
    if axes not in (1, 2, 3):
        raise ModelFileError(f"ONNX: Conv {node.name!r} has {axes} axes; 1 to 3 are read.")
    plain: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    ours: tuple[Any, ...] = (layers.Conv1d, layers.Conv2d, layers.Conv3d)
    made = (plain if even is not None else ours)[axes - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(node.get("strides") or (1,) * axes),
        padding=even if even is not None else pads if isinstance(pads, str) else tuple(pads),
        dilation=tuple(node.get("dilations") or (1,) * axes),
        groups=groups,
        bias=bias is not None,
    )
    return _with(made, weight=weight, bias=bias)


def _conv_transpose(node: Node) -> nn.Module:
    weight, bias = node.needed(1, "weights"), node.constant(2)
    axes = weight.ndim - 2
    even = _even(_pads(node, list(weight.shape[2:])))
    if even is None or axes not in (1, 2, 3) or node.get("output_shape"):
        raise ModelFileError(f"ONNX: ConvTranspose {node.name!r}: only equal padding on both sides is read.")
    groups = node.get("group", 1)
    kinds: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    made = kinds[axes - 1](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=tuple(node.get("strides") or (1,) * axes),
        padding=even,
        output_padding=tuple(node.get("output_padding") or (0,) * axes),
        dilation=tuple(node.get("dilations") or (1,) * axes),
        groups=groups,
        bias=bias is not None,
    )
    return _with(made, weight=weight, bias=bias)


def _with(layer: Any, **values: Tensor | None) -> nn.Module:
    for name, value in values.items():
        if value is not None:
            setattr(layer, name, nn.Parameter(value.float(), requires_grad=True))
    module: nn.Module = layer
    return module


def _batch_norm(node: Node) -> nn.Module:
    scale, shift, mean, variance = (node.needed(place, "statistics") for place in (1, 2, 3, 4))
    made = _BatchNorm(len(scale), eps=node.get("epsilon", 1e-5))
    made.running_mean, made.running_var = mean.float(), variance.float()
    return _with(made, weight=scale, bias=shift)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


_BatchNorm.__name__ = "BatchNorm"


def _gemm(node: Node) -> nn.Module:
    weight, bias = node.constant(1), node.constant(2)
    scales = node.get("alpha", 1.0), node.get("beta", 1.0)
    if weight is None or node.get("transA", 0) or (len(node.inputs) > 2 and node.inputs[2] and bias is None):
        transposed = node.get("transA", 0), node.get("transB", 0)

        def product(a: Tensor, b: Tensor, c: Tensor | float = 0.0) -> Tensor:
            a, b = a.mT if transposed[0] else a, b.mT if transposed[1] else b
            found: Tensor = scales[0] * (a @ b) + scales[1] * c
            return found

        return operator("Gemm", product)
    weight = (weight if node.get("transB", 0) else weight.T) * scales[0]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _with(made, weight=weight.contiguous(), bias=None if bias is None else bias.flatten() * scales[1])


def _matmul(node: Node) -> nn.Module:
    weight = node.constant(1)
    if weight is None or weight.ndim != 2:
        return operator("MatMul", torch.matmul)
    return _with(nn.Linear(weight.shape[0], weight.shape[1], bias=False), weight=weight.T.contiguous())


def _pool(node: Node) -> nn.Module:
    kernel = list(node.get("kernel_shape"))
    axes = len(kernel)
    pads = _pads(node, kernel)
    even = _even(pads)
    stride = tuple(node.get("strides") or (1,) * axes)
    if even is None:
        maximum: tuple[Any, ...] = (layers.MaxPool1d, layers.MaxPool2d, layers.MaxPool3d)
        average: tuple[Any, ...] = (layers.AvgPool1d, layers.AvgPool2d, layers.AvgPool3d)
        padding: Any = pads if isinstance(pads, str) else tuple(pads)
    else:
        maximum = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
        average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
        padding = even
    ceil = bool(node.get("ceil_mode", 0))
    if node.kind == "MaxPool":
        dilation = tuple(node.get("dilations") or (1,) * axes)
        made: nn.Module = maximum[axes - 1](tuple(kernel), stride, padding, dilation, False, ceil)
        return made
    counted = bool(node.get("count_include_pad", 0))
    made = average[axes - 1](tuple(kernel), stride, padding, ceil_mode=ceil, count_include_pad=counted)
    return made


def _global(node: Node) -> nn.Module:
    if node.kind == "GlobalMaxPool":
        return operator(node.kind, lambda x: x.flatten(2).amax(2).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)))
    return operator(node.kind, lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True))


LAYERS: dict[str, Callable[[Node], nn.Module]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global,
    "GlobalMaxPool": _global,
}
"""How each of these is built from its node."""
