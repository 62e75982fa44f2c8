"""Convolution, activation and pooling as one operator: fused where that is faster, composed elsewhere.

The fused kernel keeps one byte per pooled value for the backward pass instead of the convolution's result.
Second derivatives, tracing, autocast, function transforms and other layouts take the composition, which gives
the same values up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from convlens.errors import ArgumentError
from convlens.ops.arguments import as_ints, conv_padding
from convlens.ops.convolution import conv2d
from convlens.ops.core import is_plain
from convlens.ops.layout import not_a_view
from convlens.ops.pooling import max_pool2d
from convlens.planner import COMPOSED, COMPOSED_BY_VENDOR, fastest_block, settings
from convlens.window import ConvProblem, Epilogue

__all__ = ["ACTIVATIONS", "conv_block2d"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}
"""Activations by name."""

_WORTH_FUSING = 100_000  # multiply-adds; below, the call costs more than any kernel saves


def conv_block2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str = "relu",
    pool: int = 2,
    algorithm: str = "auto",
) -> torch.Tensor:
    """``max_pool2d(activation(conv2d(input, weight, bias, ...)), pool)`` in one pass where that is faster.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, as for `conv2d`.
        weight: ``(O, C/groups, kH, kW)``.
        bias: ``(O,)`` or None.
        stride, padding, dilation, groups, padding_mode, algorithm: as for `conv2d`.
        activation: one of ``none relu leaky_relu elu gelu sigmoid silu tanh``.
        pool: window and stride of the max pooling; 0 or 1 for none.

    Returns:
        ``(N, O, H' // pool, W' // pool)`` with the convolution's ``H'`` and ``W'``.

    Raises:
        ArgumentError: and its children; the text has the argument, the expected, the received and the fix.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError("activation", " or ".join(map(repr, ACTIVATIONS)), repr(activation))
    if not isinstance(pool, int) or pool < 0:
        raise ArgumentError("pool", "an integer ≥ 0", repr(pool))
    rest = (stride, padding, dilation, groups, padding_mode, activation, pool, algorithm)
    if _may_fuse(input, weight, bias):
        training = torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        )
        try:
            problem = _fused(tuple(input.shape), tuple(weight.shape), bias is not None, training, rest)
        except TypeError:  # arguments that cannot be hashed, such as lists
            problem = None
        if problem is not None:
            out: torch.Tensor = (
                _Block.apply(input, weight, bias, problem, rest)
                if training
                else _forward(problem, input, weight, bias, keep=False)[0]
            )
            return out
    return _composed(input, weight, bias, rest)


def _composed(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rest: tuple[Any, ...]
) -> torch.Tensor:
    stride, padding, dilation, groups, padding_mode, activation, pool, algorithm = rest
    out = conv2d(
        input, weight, bias, stride, padding, dilation, groups, padding_mode=padding_mode, algorithm=algorithm
    )
    out = ACTIVATIONS[activation](out)
    return max_pool2d(out, pool) if pool > 1 else out


def _may_fuse(input: Any, weight: Any, bias: Any) -> bool:
    """Ordinary dense float32 tensors on the CPU with nothing watching."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not is_plain(input, weight, bias):
        return False
    return (
        input.dtype == weight.dtype == torch.float32
        and input.dim() == 4
        and weight.dim() == 4
        and input.device.type == weight.device.type == "cpu"
        and input.is_contiguous()
        and (bias is None or (bias.dtype == torch.float32 and bias.device.type == "cpu" and bias.is_contiguous()))
    )


@lru_cache(maxsize=4096)
def _fused(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias: bool,
    training: bool,
    rest: tuple[Any, ...],
) -> ConvProblem | None:
    """The problem that the fused kernel should compute, or None where it cannot or should not."""
    stride, padding, dilation, groups, padding_mode, activation, pool, algorithm = rest
    if padding_mode != "zeros" or algorithm not in ("auto", "direct") or groups != 1:
        return None
    if input_shape[1] != weight_shape[1] or not input_shape[0]:
        return None  # the composition has the words for what is wrong
    steps, holes = as_ints(stride, 2, "stride", at_least=1), as_ints(dilation, 2, "dilation", at_least=1)
    problem = ConvProblem(
        "forward", input_shape[0], input_shape[1], input_shape[2:], weight_shape[0], weight_shape[2:], steps,
        conv_padding(padding, input_shape[2:], weight_shape[2:], steps, holes), holes,
        epilogue=Epilogue(bias, activation, pool),
    )  # fmt: skip
    if problem.macs < _WORTH_FUSING or min(problem.output_size) < 1 or _kernel().refusal(problem) is not None:
        return None
    asked = problem.towards("weight_grad") if training else problem
    return problem if fastest_block(asked, _ways) != COMPOSED else None


settings.on_change(_fused.cache_clear)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from convlens.kernels.cpu.direct_few import DirectBlock

    return DirectBlock()


def _ways(problem: ConvProblem) -> Mapping[str, Callable[[], object]]:
    """Calls for the planner to measure: forward, or forward and backward together."""
    training = problem.direction != "forward"
    problem = problem.towards("forward")
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(problem.input_shape, generator=generator)
    weight = torch.randn(problem.weight_shape, generator=generator)
    bias = torch.randn(problem.out_channels, generator=generator) if problem.epilogue.bias else None
    epilogue = problem.epilogue
    rest = (
        problem.stride, problem.padding, problem.dilation, 1, "zeros", epilogue.activation, epilogue.pool, "auto",
    )  # fmt: skip
    need_input = problem.in_channels > 3  # a first layer's input has no gradient
    input.requires_grad_(training and need_input)
    weight.requires_grad_(training)
    if bias is not None:
        bias.requires_grad_(training)
    trained = [t for t in (input, weight, bias) if t is not None and t.requires_grad]

    def run(way: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def call() -> object:
            with torch.set_grad_enabled(training):
                out = way()
                return torch.autograd.grad(out, trained, out) if training else out

        return call

    return {
        _kernel().name: run(lambda: _Block.apply(input, weight, bias, problem, rest)),
        COMPOSED_BY_VENDOR: run(lambda: _by_vendor(input, weight, bias, problem)),
        COMPOSED: run(lambda: _composed(input, weight, bias, rest)),
    }


def _by_vendor(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, problem: ConvProblem
) -> torch.Tensor:
    """What a block would be without any of our kernels."""
    before = [pad for pad, _ in problem.padding]
    if any(pad != (one, one) for pad, one in zip(problem.padding, before, strict=True)):
        left_right = [side for pad in reversed(problem.padding) for side in pad]
        input, before = torch.nn.functional.pad(input, left_right), [0, 0]
    out = torch.nn.functional.conv2d(input, weight, bias, problem.stride, before, problem.dilation)
    out = ACTIVATIONS[problem.epilogue.activation](out)
    return torch.nn.functional.max_pool2d(out, problem.epilogue.pool) if problem.epilogue.pool > 1 else out


def _forward(
    problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    # a net in channels_last keeps its weights so; a copy of so few is cheaper than leaving the block
    weight = weight.contiguous()
    if (
        problem.batch > 1
        and not keep
        and settings.current().batch_invariant
        and not _stand_alone(problem, torch.get_num_threads())
    ):
        one = replace(problem, batch=1)
        parts = [_kernel().forward(one, image.unsqueeze(0), weight, bias, keep=False)[0] for image in input]
        return torch.cat(parts), None
    result: tuple[torch.Tensor, torch.Tensor | None] = _kernel().forward(problem, input, weight, bias, keep=keep)
    return result


@lru_cache(maxsize=4096)
def _stand_alone(problem: ConvProblem, threads: int) -> bool:
    """Whether the fused kernel gives each image of this batch the bits that it gets alone, seen by trying."""
    generator = torch.Generator().manual_seed(2)
    input = torch.randn(problem.input_shape, generator=generator)
    weight = torch.randn(problem.weight_shape, generator=generator)
    bias = torch.randn(problem.out_channels, generator=generator) if problem.epilogue.bias else None
    one = replace(problem, batch=1)
    with torch.inference_mode():
        together = _kernel().forward(problem, input, weight, bias, keep=False)[0]
        return all(
            torch.equal(_kernel().forward(one, image.unsqueeze(0), weight, bias, keep=False)[0][0], result)
            for image, result in zip(input, together, strict=True)
        )


class _Block(torch.autograd.Function):
    """The fused block; its own gradient, where that is asked to be differentiable, is the composition's."""

    @staticmethod
    def forward(
        ctx: Any, input: Any, weight: Any, bias: Any, problem: ConvProblem, rest: tuple[Any, ...]
    ) -> torch.Tensor:
        out, choice = _forward(problem, input, weight, bias, keep=True)
        out = not_a_view(out)
        ctx.save_for_backward(input, weight, bias, out, choice)
        ctx.problem, ctx.rest = problem, rest
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        input, weight, bias, out, choice = ctx.saved_tensors
        if torch.is_grad_enabled():
            wanted = [t for t, need in zip((input, weight, bias), ctx.needs_input_grad, strict=False) if need]
            found = iter(
                torch.autograd.grad(_composed(input, weight, bias, ctx.rest), wanted, grads[0], create_graph=True)
            )
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None)
        need_input = ctx.needs_input_grad[0]
        result = _kernel().backward(
            ctx.problem, grads[0].contiguous(), out, choice, input, weight.contiguous(), need_input=need_input
        )
        return (*result, None, None)
