"""The convolutions under `torch.func` (grad, vmap, jvp …) and forward-mode derivatives.

The same operators as `convlens.ops.core` in the form that functorch asks for: the context apart, a rule for mapped
axes, and the derivative along a direction, which by linearity is two convolutions.
"""
# ruff: noqa: D102 - the methods are torch's protocol

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from convlens.ops import batching, core
from convlens.ops.core import Geometry

__all__ = ["Convolve", "Transpose", "WeightGrad"]


def _sum(*terms: torch.Tensor | None) -> torch.Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _conv(input: Any, weight: Any, bias: Any, *geometry: Any) -> torch.Tensor:
    return core.convolve(input, weight, bias, Geometry(*geometry))


def _transposed(grad: Any, weight: Any, bias: Any, input_size: Any, *geometry: Any) -> torch.Tensor:
    return core.transpose(grad, weight, bias, tuple(input_size), Geometry(*geometry))


def _weight_grad(grad: Any, input: Any, kernel_size: Any, bias: bool, *geometry: Any) -> Any:
    return core.weight_grad(grad, input, tuple(kernel_size), bias, Geometry(*geometry))


def _keep(ctx: Any, first: torch.Tensor, second: torch.Tensor, geometry: Geometry) -> None:
    ctx.save_for_backward(first, second)
    ctx.save_for_forward(first, second)
    ctx.geometry = geometry


class Convolve(torch.autograd.Function):
    """`core.convolve`; the geometry's fields are arguments of their own."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.convlens.conv(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        input, weight, _, *geometry = inputs
        _keep(ctx, input, weight, Geometry(*geometry))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *core.convolve_backward(ctx, *grads), *(None,) * len(Geometry._fields)

    @staticmethod
    def jvp(ctx: Any, input_t: Any, weight_t: Any, bias_t: Any, *rest: Any) -> Any:
        input, weight = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        along_input = None if input_t is None else core.convolve(input_t, weight, None, geometry)
        along_weight = None if weight_t is None else core.convolve(input, weight_t, bias_t, geometry)
        total = _sum(along_input, along_weight)
        if weight_t is not None or bias_t is None:
            return total
        if total is None:
            total = torch.zeros_like(core.convolve(input, weight, None, geometry))
        return total + _column(bias_t, weight)

    vmap = staticmethod(batching.conv_rule(_conv, 0))


class Transpose(torch.autograd.Function):
    """`core.transpose`."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.convlens.conv_transposed(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        grad, weight, _, ctx.input_size, *geometry = inputs
        _keep(ctx, grad, weight, Geometry(*geometry))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *core.transpose_backward(ctx, *grads), None, *(None,) * len(Geometry._fields)

    @staticmethod
    def jvp(ctx: Any, grad_t: Any, weight_t: Any, bias_t: Any, *rest: Any) -> Any:
        grad, weight = ctx.saved_tensors
        size, geometry = ctx.input_size, ctx.geometry
        along_grad = None if grad_t is None else core.transpose(grad_t, weight, None, size, geometry)
        along_weight = None if weight_t is None else core.transpose(grad, weight_t, bias_t, size, geometry)
        total = _sum(along_grad, along_weight)
        if weight_t is not None or bias_t is None:
            return total
        if total is None:
            total = torch.zeros_like(core.transpose(grad, weight, None, size, geometry))
        return total + _column(bias_t, weight)

    vmap = staticmethod(batching.conv_rule(_transposed, 1))


class WeightGrad(torch.autograd.Function):
    """`core.weight_grad`."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.convlens.conv_weight_grad(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        grad, input, ctx.kernel_size, ctx.with_bias, *geometry = inputs
        _keep(ctx, grad, input, Geometry(*geometry))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *core.weight_grad_backward(ctx, *grads), None, None, *(None,) * len(Geometry._fields)

    @staticmethod
    def jvp(ctx: Any, grad_t: Any, input_t: Any, *rest: Any) -> Any:
        grad, input = ctx.saved_tensors
        kernel, bias, geometry = ctx.kernel_size, ctx.with_bias, ctx.geometry
        along_grad = None if grad_t is None else core.weight_grad(grad_t, input, kernel, bias, geometry)
        along_input = None if input_t is None else core.weight_grad(grad, input_t, kernel, False, geometry)
        weight = _sum(*(along[0] for along in (along_grad, along_input) if along is not None))
        return weight, along_grad[1] if along_grad is not None else grad.new_zeros(grad.shape[1] if bias else 0)

    vmap = staticmethod(batching.weight_grad_rule(_weight_grad))


def _column(bias: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return bias.view(-1, *(1,) * (weight.dim() - 2))
