"""Pooling by compiled kernels: which calls they take, where they are the fastest way, and their derivatives.

`max_pooled` and `avg_pooled` take the arguments of torch's functions as a caller wrote them and give the result,
or None where torch should compute it: other tensors than plain dense float32 on the CPU, anything that watches
(tracing, function transforms, dispatch modes), small inputs, and problems for which torch was measured faster.
Values, places and strides are torch's; the kernels keep one byte per window for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import torch

from convlens.errors import ConvlensError
from convlens.ops.core import is_plain
from convlens.ops.layout import CHANNELS_LAST, not_a_view
from convlens.ops.pool_arguments import TORCH_AVG, TORCH_MAX_WITH_PLACES, pool_window
from convlens.planner import COMPOSED, fastest_block, settings
from convlens.window import Layout, PoolProblem

__all__ = ["avg_pooled", "max_pooled"]

_WORTH_COMPILING = 8192  # places of the input, below which the choice costs as much as the pooling

Pooled = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def max_pooled(
    ndim: int,
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Pooled | None:
    """Max pooling of ``(N, C, *size)``, with places if asked for; None where torch should compute it."""
    layout = _layout(ndim, input)
    if layout is None:
        return None
    wants = torch.is_grad_enabled() and input.requires_grad
    try:
        problem = _max_problem(
            tuple(input.shape), layout, _hashed(kernel_size), _hashed(stride), _hashed(padding),
            _hashed(dilation), bool(ceil_mode), wants,
        )  # fmt: skip
    except TypeError:  # arguments that cannot be hashed: torch has the words for them
        return None
    if problem is None:
        return None
    if wants:
        values, places = _MaxPool.apply(input, problem, ceil_mode, return_indices)
        return (values, places) if return_indices else values
    values, _, places = _kernel().forward(problem, input, positions=return_indices)
    return (values, places) if return_indices else values


def avg_pooled(
    ndim: int,
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor | None:
    """Average pooling of ``(N, C, *size)``; None where torch should compute it."""
    layout = _layout(ndim, input)
    if layout is None or (ndim == 3 and layout == "channels_last"):  # whose result torch gives contiguous
        return None
    wants = torch.is_grad_enabled() and input.requires_grad
    try:
        problem = _avg_problem(
            tuple(input.shape), layout, _hashed(kernel_size), _hashed(stride), _hashed(padding), bool(ceil_mode),
            bool(count_include_pad), divisor_override, wants,
        )  # fmt: skip
    except TypeError:
        return None
    if problem is None:
        return None
    if wants:
        return _AvgPool.apply(input, problem, ceil_mode)  # type: ignore[no-any-return]
    return _kernel().forward(problem, input)[0]  # type: ignore[no-any-return]


# --- which calls ----------------------------------------------------------------------------------------------


def _hashed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _layout(ndim: int, input: Any) -> Layout | None:
    """The layout of an input that a compiled kernel may take; None for every other."""
    if (
        torch.compiler.is_compiling()
        or not isinstance(input, torch.Tensor)
        or input.dim() != ndim + 2
        or input.dtype != torch.float32
        or input.device.type != "cpu"
        or input.numel() < _WORTH_COMPILING
        or input.is_neg()
        or not is_plain(input)
    ):
        return None
    plain = input.is_contiguous()
    last = ndim > 1 and input.is_contiguous(memory_format=CHANNELS_LAST[ndim])
    if plain and last:  # one channel, or one place: strides that torch may read either way
        return None
    return "contiguous" if plain else "channels_last" if last else None


@lru_cache(maxsize=4096)
def _max_problem(
    shape: tuple[int, ...],
    layout: Layout,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    training: bool,
) -> PoolProblem | None:
    return _problem("max", shape, layout, kernel_size, stride, padding, dilation, ceil_mode, True, None, training)


@lru_cache(maxsize=4096)
def _avg_problem(
    shape: tuple[int, ...],
    layout: Layout,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
    training: bool,
) -> PoolProblem | None:
    if divisor is not None and (type(divisor) is not int or divisor == 0):
        return None
    return _problem(
        "avg", shape, layout, kernel_size, stride, padding, 1, ceil_mode, include_pad, divisor, training
    )


settings.on_change(_max_problem.cache_clear)
settings.on_change(_avg_problem.cache_clear)


def _problem(
    kind: Literal["max", "avg"],
    shape: tuple[int, ...],
    layout: Layout,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
    training: bool,
) -> PoolProblem | None:
    """The problem that the compiled kernel should compute; None where it cannot, or torch is faster."""
    try:
        window = pool_window(shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    except ConvlensError:
        return None  # torch's refusal is retold by the door
    problem = PoolProblem(
        "forward", kind, shape[0], shape[1], window.input_size, window.kernel_size, window.stride, window.padding,
        window.dilation, window.output_size, include_pad, divisor or 0, layout=layout,
    )  # fmt: skip
    if _kernel().refusal(problem) is not None:
        return None
    judged = problem.towards("input_grad") if training else problem
    way = fastest_block(judged, lambda p: _ways(p, ceil_mode))
    return problem if way != COMPOSED else None


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from convlens.kernels.cpu.pooling import Pool

    return Pool()


def _ways(problem: PoolProblem, ceil_mode: bool) -> Mapping[str, Callable[[], object]]:
    """Calls for the planner to measure: forward, or forward and backward together."""
    training = problem.direction != "forward"
    problem = problem.towards("forward")
    ndim = len(problem.input_size)
    generator = torch.Generator().manual_seed(0)
    input = torch.randn((problem.batch, problem.channels, *problem.input_size), generator=generator)
    if problem.layout == "channels_last":
        input = input.contiguous(memory_format=CHANNELS_LAST[ndim])
    input.requires_grad_(training)
    result = _by_torch(problem, input.detach(), ceil_mode)
    grad = torch.ones_like(result)

    def run(way: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def call() -> object:
            with torch.set_grad_enabled(training):
                out = way()
                return torch.autograd.grad(out, input, grad) if training else out

        return call

    def ours() -> torch.Tensor:
        if not training:
            return _kernel().forward(problem, input)[0]  # type: ignore[no-any-return]
        if problem.kind == "avg":
            return _AvgPool.apply(input, problem, ceil_mode)  # type: ignore[no-any-return]
        return _MaxPool.apply(input, problem, ceil_mode, False)[0]  # type: ignore[no-any-return]

    return {_kernel().name: run(ours), COMPOSED: run(lambda: _by_torch(problem, input, ceil_mode))}


# --- derivatives ----------------------------------------------------------------------------------------------


def _by_torch(problem: PoolProblem, input: torch.Tensor, ceil_mode: bool) -> torch.Tensor:
    """The pooling of a problem by torch, for comparison and for derivatives of derivatives."""
    ndim = len(problem.input_size)
    before = [pad for pad, _ in problem.padding]
    if problem.kind == "max":
        return TORCH_MAX_WITH_PLACES[ndim](
            input, problem.kernel_size, problem.stride, before, problem.dilation, ceil_mode
        )[0]
    rest = (problem.kernel_size, problem.stride, before, ceil_mode, problem.count_include_pad)
    if ndim == 1:
        return TORCH_AVG[1](input, *rest)
    return TORCH_AVG[ndim](input, *rest, problem.divisor or None)


def _dense(tensor: torch.Tensor, problem: PoolProblem) -> torch.Tensor:
    if problem.layout == "channels_last":
        return tensor.contiguous(memory_format=CHANNELS_LAST[len(problem.input_size)])
    return tensor.contiguous()


class _MaxPool(torch.autograd.Function):
    """Max pooling that keeps the winning tap of each window; its gradient's gradient is torch's."""

    @staticmethod
    def forward(ctx: Any, input: Any, problem: PoolProblem, ceil_mode: bool, return_indices: bool) -> Any:
        values, choice, places = _kernel().forward(problem, input, keep=True, positions=return_indices)
        ctx.save_for_backward(input, choice)
        ctx.problem, ctx.ceil_mode = problem, ceil_mode
        if places is not None:
            places = not_a_view(places)
            ctx.mark_non_differentiable(places)
        return not_a_view(values), places

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        input, choice = ctx.saved_tensors
        if torch.is_grad_enabled():
            pooled = _by_torch(ctx.problem, input, ctx.ceil_mode)
            return *torch.autograd.grad(pooled, input, grads[0], create_graph=True), None, None, None
        return _kernel().backward(ctx.problem, _dense(grads[0], ctx.problem), choice), None, None, None


class _AvgPool(torch.autograd.Function):
    """Average pooling: linear, so that its backward pass needs nothing of the input."""

    @staticmethod
    def forward(ctx: Any, input: Any, problem: PoolProblem, ceil_mode: bool) -> Any:
        ctx.problem, ctx.ceil_mode = problem, ceil_mode
        return not_a_view(_kernel().forward(problem, input)[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        problem: PoolProblem = ctx.problem
        if torch.is_grad_enabled():
            anywhere = _dense(grads[0].new_zeros((problem.batch, problem.channels, *problem.input_size)), problem)
            pooled = _by_torch(problem, anywhere.requires_grad_(), ctx.ceil_mode)
            return *torch.autograd.grad(pooled, anywhere, grads[0], create_graph=True), None, None
        return _kernel().backward(problem, _dense(grads[0], problem), None), None, None
