"""A small net's blocks and dense layers as one operator while it trains: one node of autograd, one call each way.

`None` says that the layers are to be called one by one, which gives the same values up to the order of sums. So do
second derivatives, which are those of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import linear

from convlens.errors import ArgumentError
from convlens.ops.arguments import as_ints, conv_padding
from convlens.ops.block import conv_block2d
from convlens.ops.core import is_plain
from convlens.planner import COMPOSED, fastest_block, settings
from convlens.window import ConvProblem, Epilogue

__all__ = ["BlockLayer", "DenseLayer", "conv_chain"]


@dataclass(frozen=True, slots=True)
class BlockLayer:
    """`conv_block2d` with ReLU and a pooling of 2, by its arguments."""

    stride: Any
    padding: Any
    dilation: Any


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """``torch.nn.functional.linear``, then ReLU where ``relu``; the first one flattens its input."""

    relu: bool


Layer = BlockLayer | DenseLayer
Weights = Sequence[torch.Tensor | None]


def conv_chain(input: torch.Tensor, layers: tuple[Layer, ...], weights: Weights) -> torch.Tensor | None:
    """Scores of blocks and then dense layers, for training; None where the layers should be called one by one.

    Args:
        input: ``(N, C, H, W)``; has no gradient.
        layers: blocks first.
        weights: weight and bias (or None) of each layer; all have gradients.

    Returns:
        ``(N, outputs)``.
    """
    if not torch.is_grad_enabled() or not _may_chain(input, weights):
        return None
    try:
        shapes = tuple(None if weight is None else weight.shape for weight in weights)
        chain = _chain(input.shape, layers, shapes)
    except TypeError:  # arguments that cannot be hashed, such as lists
        return None
    return None if chain is None else _Chained.apply(input, chain, *weights)


def _may_chain(input: torch.Tensor, weights: Weights) -> bool:
    """Ordinary float32 tensors on the CPU with nothing watching, all weights to be trained, the input not."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not is_plain(input, *weights):
        return False
    if input.requires_grad or not _is_usual(input) or settings.current().batch_invariant:
        return False
    for weight in weights:
        if weight is not None and not (weight.requires_grad and weight.dtype is torch.float32 and weight.is_cpu):
            return False
    return True


def _is_usual(tensor: torch.Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu


@dataclass(frozen=True, slots=True)
class _Chain:
    """What the kernel takes, and the layers that it stands for."""

    blocks: tuple[ConvProblem, ...]
    dense: tuple[Any, ...]
    layers: tuple[Layer, ...]


@lru_cache(maxsize=1024)
def _chain(
    input_shape: tuple[int, ...], layers: tuple[Layer, ...], shapes: tuple[tuple[int, ...] | None, ...]
) -> _Chain | None:
    """The chain for these shapes, or None where it cannot or should not be computed as one."""
    try:
        found = _described(input_shape, layers, shapes)
    except ArgumentError:  # the layers have the words for what is wrong
        return None
    if found is None or _kernel().refusal(found.blocks, found.dense) is not None:
        return None
    first = found.blocks[0]
    # one line of text stands for the whole: the first block's problem, with the rest named in its epilogue
    names = [
        f"relu, pool 2, {b.out_channels} of {b.kernel_size} {b.stride} {b.padding} {b.dilation}"
        for b in found.blocks[1:]
    ]
    names += [f"{d.outputs}{' relu' if d.relu else ''}{'' if d.bias else ' no bias'}" for d in found.dense]
    epilogue = replace(first.epilogue, activation="relu, then " + "; ".join(names))
    key = replace(first, epilogue=epilogue, direction="weight_grad")
    return found if fastest_block(key, lambda problem: _ways(problem.batch, layers, found)) != COMPOSED else None


settings.on_change(_chain.cache_clear)


def _described(
    input_shape: tuple[int, ...], layers: tuple[Layer, ...], shapes: tuple[tuple[int, ...] | None, ...]
) -> _Chain | None:
    from convlens.kernels.cpu.direct_few import Dense

    blocks: list[ConvProblem] = []
    dense: list[Any] = []
    if len(input_shape) != 4 or not input_shape[0]:
        return None
    size = tuple(input_shape)
    for layer, weight, bias in zip(layers, shapes[::2], shapes[1::2], strict=True):
        if weight is None:
            return None
        if isinstance(layer, DenseLayer):
            if len(weight) != 2:
                return None
            dense.append(Dense(weight[1], weight[0], bias is not None, layer.relu))
            continue
        if dense or len(weight) != 4 or size[1] != weight[1]:
            return None
        steps = as_ints(layer.stride, 2, "stride", at_least=1)
        holes = as_ints(layer.dilation, 2, "dilation", at_least=1)
        padding = conv_padding(layer.padding, size[2:], weight[2:], steps, holes)
        problem = ConvProblem(
            "forward", size[0], size[1], size[2:], weight[0], tuple(weight[2:]), steps, padding, holes,
            epilogue=Epilogue(bias is not None, "relu", 2),
        )  # fmt: skip
        if min(problem.output_size) < 2:
            return None
        size = (size[0], weight[0], *(length // 2 for length in problem.output_size))
        blocks.append(problem)
    return _Chain(tuple(blocks), tuple(dense), layers)


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from convlens.kernels.cpu.direct_few import DirectChain

    return DirectChain()


def _ways(batch: int, layers: tuple[Layer, ...], chain: _Chain) -> Mapping[str, Callable[[], object]]:
    """Calls for the planner to measure: forward and backward together, as one and layer by layer."""
    blocks = tuple(replace(problem, batch=batch) for problem in chain.blocks)
    chain = replace(chain, blocks=blocks)
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(blocks[0].input_shape, generator=generator)
    weights: list[torch.Tensor | None] = []
    shapes = [(problem.weight_shape, problem.epilogue.bias) for problem in blocks]
    shapes += [((dense.outputs, dense.inputs), dense.bias) for dense in chain.dense]
    for shape, has_bias in shapes:
        weights.append(torch.randn(shape, generator=generator).mul_(0.1).requires_grad_())
        weights.append(torch.zeros(shape[0], requires_grad=True) if has_bias else None)
    trained = [weight for weight in weights if weight is not None]

    def run(way: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def call() -> object:
            with torch.enable_grad():
                out = way()
                return torch.autograd.grad(out, trained, out)

        return call

    return {
        _kernel().name: run(lambda: _Chained.apply(input, chain, *weights)),
        COMPOSED: run(lambda: _composed(input, layers, weights)),
    }


def _composed(input: torch.Tensor, layers: tuple[Layer, ...], weights: Weights) -> torch.Tensor:
    """The layers one by one."""
    out = input
    for layer, weight, bias in zip(layers, weights[::2], weights[1::2], strict=True):
        assert weight is not None  # noqa: S101  (for the type checker)
        if isinstance(layer, BlockLayer):
            out = conv_block2d(out, weight, bias, layer.stride, layer.padding, layer.dilation)
            continue
        out = linear(out.flatten(1), weight, bias)
        if layer.relu:
            out = torch.relu(out)
    return out


class _Chained(torch.autograd.Function):
    """The chain; its own gradient, where that is asked to be differentiable, is that of the layers."""

    @staticmethod
    def forward(ctx: Any, input: Any, chain: _Chain, *weights: Any) -> torch.Tensor:
        # a net in channels_last keeps its weights so; copies of so few are cheaper than leaving the chain
        dense = [weight if weight is None or weight.is_contiguous() else weight.contiguous() for weight in weights]
        out, ctx.held = _kernel().forward(chain.blocks, chain.dense, input.contiguous(), dense)
        ctx.save_for_backward(input, *weights)
        ctx.chain, ctx.dense = chain, dense
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        input, *weights = ctx.saved_tensors
        chain = ctx.chain
        if torch.is_grad_enabled():
            wanted = [weight for weight in weights if weight is not None]
            found = iter(
                torch.autograd.grad(_composed(input, chain.layers, weights), wanted, grads[0], create_graph=True)
            )
            return (None, None, *(None if weight is None else next(found) for weight in weights))
        grad = grads[0].contiguous()
        return (None, None, *_kernel().backward(chain.blocks, chain.dense, grad, ctx.held, ctx.dense))
