"""`DirectChain`: blocks of convolution, ReLU and pooling, then dense layers, as one differentiable kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from convlens.kernels.cpu.direct_few.block_kernel import DirectBlock, as_images
from convlens.kernels.cpu.direct_few.geometry import Dense, Shape
from convlens.kernels.cpu.memory import empty
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target
    from convlens.kernels.cpu.direct_few.chain import ChainPlan

__all__ = ["DirectChain", "Held"]

_MOST_DENSE_BYTES = 1 << 20  # of all dense layers' weights: every group of images reads them again
_MOST_THREAD_BYTES = 3 << 19  # of a thread's gradients and one group's values


@dataclass(frozen=True, slots=True)
class Held:
    """What the backward pass needs of the forward pass."""

    values: torch.Tensor
    choices: torch.Tensor


class DirectChain:
    """Small nets whose weights fit the second-level cache: no layer's result is ever seen outside."""

    name = "cpu.direct_chain"

    def refusal(self, blocks: Sequence[ConvProblem], dense: Sequence[Dense]) -> str | None:
        """Why these layers, one after the other, cannot be computed; None if they can.

        Args:
            blocks: forward problems with bias, ReLU and pooling in their epilogues.
            dense: the layers after them.
        """
        from convlens.kernels.cpu.codegen import current

        if not blocks or not dense:
            return "needs a block and a dense layer at least"
        lanes = current().lanes
        for problem in blocks:
            if (why := DirectBlock().refusal(problem)) is not None:
                return why
            if not as_images(problem, lanes):
                return f"needs batches of {2 * lanes} and small planes"
        sizes = [(p.out_channels, *(size // 2 for size in p.output_size)) for p in blocks]
        for size, after in zip(sizes, blocks[1:], strict=False):
            if size != (after.in_channels, *after.input_size):
                return f"needs blocks that fit each other, got {size} and {after.input_shape}"
        inputs = [sizes[-1][0] * sizes[-1][1] * sizes[-1][2], *(layer.outputs for layer in dense[:-1])]
        if inputs != [layer.inputs for layer in dense]:
            return f"needs dense layers of {inputs} inputs, got {[layer.inputs for layer in dense]}"
        if dense[-1].relu:
            return "needs scores without ReLU"
        if 4 * sum(layer.inputs * layer.outputs for layer in dense) > _MOST_DENSE_BYTES:
            return "needs dense weights that fit the second-level cache"
        plan = _plan(tuple(blocks), tuple(dense), current())
        if 4 * (plan.gradient_places()[-1] + plan.group_values) > _MOST_THREAD_BYTES:
            return "needs images that fit the second-level cache"
        return None

    def forward(
        self,
        blocks: tuple[ConvProblem, ...],
        dense: tuple[Dense, ...],
        input: torch.Tensor,
        weights: Sequence[torch.Tensor | None],
    ) -> tuple[torch.Tensor, Held]:
        """Scores ``(N, outputs)`` and what `backward` needs.

        Args:
            blocks, dense: as for `refusal`.
            input: contiguous ``(N, C, H, W)``.
            weights: weight and bias (or None) of each layer, contiguous.
        """
        from convlens.kernels.cpu.codegen import current, threads

        team, batch = threads(), input.shape[0]
        plan, function, _ = _code(blocks, dense, current())
        groups = -(-batch // plan.lanes)
        out = empty((batch, dense[-1].outputs))
        values = empty((groups * (plan.group_values + plan.row_values * plan.lanes),))
        choices = empty((groups * plan.group_choices,), dtype=torch.uint8)
        space = empty((team * dense[-1].outputs * plan.lanes,))
        function(
            input.data_ptr(), out.data_ptr(), values.data_ptr(), choices.data_ptr(), space.data_ptr(),
            *_addresses(weights), batch, team,
        )  # fmt: skip
        return out, Held(values, choices)

    def backward(
        self,
        blocks: tuple[ConvProblem, ...],
        dense: tuple[Dense, ...],
        grad: torch.Tensor,
        held: Held,
        weights: Sequence[torch.Tensor | None],
    ) -> list[torch.Tensor | None]:
        """Gradients of ``weights`` for the gradient of the scores, contiguous."""
        from convlens.kernels.cpu.codegen import current, threads

        team, batch = threads(), grad.shape[0]
        plan, _, function = _code(blocks, dense, current())
        groups = -(-batch // plan.lanes)
        sums = team * sum(plan.partial_values(i) for i in range(len(blocks)))
        rows = groups * plan.lanes * plan.hidden
        # one block of memory, in parts that begin at whole vectors
        space = empty((_up(sums) + _up(rows) + team * plan.gradient_places()[-1],))
        at = space.data_ptr()
        gradients = [None if weight is None else empty(weight.shape) for weight in weights]
        function(
            grad.data_ptr(), held.values.data_ptr(), held.choices.data_ptr(), at + 4 * _up(sums), at,
            at + 4 * (_up(sums) + _up(rows)), *_addresses(weights), *_addresses(gradients), batch, team,
        )  # fmt: skip
        return gradients


def _up(values: int) -> int:
    return -(-values // 16) * 16


def _addresses(tensors: Sequence[torch.Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


@lru_cache(maxsize=256)
def _plan(blocks: tuple[ConvProblem, ...], dense: tuple[Dense, ...], target: Target) -> ChainPlan:
    from convlens.kernels.cpu.direct_few.chain import plan_chain

    shapes = tuple(Shape.of(problem) for problem in blocks)
    biases = tuple(problem.epilogue.bias for problem in blocks)
    return plan_chain(shapes, biases, dense, target.lanes, target.registers)


@lru_cache(maxsize=256)
def _code(
    blocks: tuple[ConvProblem, ...], dense: tuple[Dense, ...], target: Target
) -> tuple[ChainPlan, Callable[..., None], Callable[..., None]]:
    """The plan, and the compiled functions forward and backward."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.chain import build_chain_backward, build_chain_forward

    plan = _plan(blocks, dense, target)
    forward = compiled("cpu.direct_chain.forward", build_chain_forward, chain=plan)
    backward = compiled("cpu.direct_chain.backward", build_chain_backward, chain=plan)
    return plan, forward.chain_forward, backward.chain_backward
