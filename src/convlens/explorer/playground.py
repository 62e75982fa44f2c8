"""One small convolution with numbers that can be changed: sums, shapes, costs, gradients."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from convlens import ops
from convlens.errors import ArgumentError, ShapeError
from convlens.explorer.change import size_formula
from convlens.window import ConvProblem

__all__ = ["Asked", "answer"]

_MOST_VALUES = 1 << 16


class Asked(BaseModel):
    """What the page sends: channels of rows of numbers, and the window's settings."""

    model_config = ConfigDict(extra="forbid")

    input: list[list[list[float]]] = Field(min_length=1, max_length=64)
    weight: list[list[list[list[float]]]] = Field(min_length=1, max_length=64)
    bias: list[float] | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"
    flip: bool = False
    pool: int = Field(default=0, ge=0, le=8)
    upstream: list[list[list[float]]] | None = None
    """Gradient arriving at the output (after pooling); default ones."""


def answer(asked: Asked) -> dict[str, Any]:
    """Output, shapes, costs and both gradients.

    Raises:
        ArgumentError: numbers that make no rectangle, too many, or a window that doesn't fit.
    """
    input = _tensor("input", asked.input, 3)[None].requires_grad_(True)
    weight = _tensor("weight", asked.weight, 4).requires_grad_(True)
    bias = None if asked.bias is None else _tensor("bias", asked.bias, 1)
    output = ops.conv2d(
        input,
        weight,
        bias,
        asked.stride,
        asked.padding,
        asked.dilation,
        padding_mode=asked.padding_mode,
        flip=asked.flip,
    )
    pooled = ops.max_pool2d(output, asked.pool) if asked.pool else output
    upstream = torch.ones_like(pooled) if asked.upstream is None else _tensor("upstream", asked.upstream, 3)[None]
    if upstream.shape != pooled.shape:
        raise ShapeError("upstream", f"the output's shape {tuple(pooled.shape[1:])}", tuple(upstream.shape[1:]))
    grad_input, grad_weight = torch.autograd.grad(pooled, (input, weight), upstream)
    problem = ConvProblem(
        direction="forward",
        batch=1,
        in_channels=input.shape[1],
        input_size=tuple(input.shape[2:]),
        out_channels=len(weight),
        kernel_size=tuple(weight.shape[2:]),
        stride=asked.stride,
        padding=tuple((pad, pad) for pad in asked.padding),
        dilation=asked.dilation,
    )
    return {
        "output": output[0].tolist(),
        "pooled": pooled[0].tolist() if asked.pool else None,
        "grad_input": grad_input[0].tolist(),
        "grad_weight": grad_weight.tolist(),
        "shape": list(output.shape[1:]),
        "macs": problem.macs,
        "weights": weight.numel() + (0 if bias is None else bias.numel()),
        "formula": size_formula(problem),
        "receptive_field": [d * (k - 1) + 1 for k, d in zip(problem.kernel_size, problem.dilation, strict=True)],
    }


def _tensor(name: str, values: Any, axes: int) -> Tensor:
    try:
        made = torch.tensor(values, dtype=torch.float64)
    except (ValueError, TypeError) as error:
        raise ShapeError(name, "rows of equal length", str(error)) from error
    if made.ndim != axes or made.numel() == 0:
        raise ShapeError(name, f"{axes} axes of numbers", tuple(made.shape))
    if made.numel() > _MOST_VALUES:
        raise ArgumentError(name, f"at most {_MOST_VALUES:,} numbers", f"{made.numel():,}")
    if not bool(torch.isfinite(made).all()):
        raise ArgumentError(name, "finite numbers", "NaN or infinity")
    return made
