"""oneDNN with weights in its own order and what follows fused in: torch's operators for inference."""

from __future__ import annotations

import math
from typing import Any

import torch

from convlens.kernels.contract import Prepared
from convlens.window import ConvProblem

__all__ = ["prepare_packed"]

_FUSED: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "sigmoid": ("sigmoid", [], ""),
    "tanh": ("tanh", [], ""),
    "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""),
    "hardsigmoid": ("hardsigmoid", [], ""),
    "gelu": ("gelu", [], "none"),
}
"""Activations as the operators know them: name, numbers, variant."""

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def prepare_packed(problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
    """A forward problem on oneDNN's packed weights; None where torch was built without it, or it cannot.

    One axis is computed as two, of which the first has one place.
    """
    activation = problem.epilogue.activation
    if not torch.backends.mkldnn.is_available() or problem.dtype != "float32" or problem.device != "cpu":
        return None
    if activation not in _FUSED or problem.epilogue.pool or problem.macs == 0:
        return None
    if (problem.epilogue.residual and activation not in ("none", "relu")) or problem.ndim > 2:
        return None
    if any(before != after for before, after in problem.padding):
        return None
    flat = problem.ndim == 1
    lead = (1,) if flat else ()
    padding = [*(0 for _ in lead), *(before for before, _ in problem.padding)]
    stride, dilation = [*lead, *problem.stride], [*lead, *problem.dilation]
    last = problem.layout == "channels_last" and not flat
    order = _FORMATS[4] if last else torch.contiguous_format
    shaped = (weight.unsqueeze(2) if flat else weight).contiguous(memory_format=order)
    size = [problem.batch, problem.in_channels, *lead, *problem.input_size]
    try:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            shaped, padding, stride, dilation, problem.groups, size
        )
    except RuntimeError:
        return None
    window = (padding, stride, dilation, problem.groups)
    if problem.epilogue.residual:
        return _adding(window, packed, bias, activation, flat)
    return _plain(window, packed, bias, activation, flat, order, math.prod(problem.output_size) > 1)


def _plain(
    window: tuple[Any, ...], packed: torch.Tensor, bias: torch.Tensor | None, activation: str, flat: bool,
    order: torch.memory_format, several: bool,
) -> Prepared:  # fmt: skip
    name, numbers, variant = _FUSED[activation]
    operator = torch.ops.mkldnn._convolution_pointwise.default

    def run(input: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = operator(
            input.unsqueeze(2) if flat else input, packed, bias, *window, name, numbers, variant
        )
        if several and not result.is_contiguous(memory_format=order):
            result = result.contiguous(memory_format=order)
        return result.squeeze(2) if flat else result

    return Prepared(run)


def _adding(
    window: tuple[Any, ...], packed: torch.Tensor, bias: torch.Tensor | None, activation: str, flat: bool
) -> Prepared:
    operator = torch.ops.mkldnn._convolution_pointwise_.binary
    after = None if activation == "none" else activation

    def run(input: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        assert out is not None  # noqa: S101
        held = out.unsqueeze(2) if flat else out
        result: torch.Tensor = operator(
            held, input.unsqueeze(2) if flat else input, packed, bias, *window, "add", 1.0, after, [], ""
        )
        if result.data_ptr() != out.data_ptr():
            out.copy_(result.squeeze(2) if flat else result)
        return out

    return Prepared(run)
