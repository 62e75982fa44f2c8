"""`DirectChain`: blocks of convolution, ReLU and pooling, then dense layers, as one differentiable kernel."""

from __future__ import annotations

import threading
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


class Held:
    """What the backward pass needs of the forward pass: values and, at byte ``choices_at``, choices.

    Its memory is used again by the next forward pass of this size once nobody holds it.
    """

    __slots__ = ("choices_at", "memory")

    def __init__(self, values: int, choices: int) -> None:
        self.choices_at = 4 * _up(values)
        size = _up(values) + _up(-(-choices // 4))
        spare = _spare.pop(size, None)
        self.memory = empty((size,)) if spare is None else spare

    def __del__(self) -> None:
        if len(_spare) < _MOST_SPARE:
            _spare[self.memory.numel()] = self.memory


_MOST_SPARE = 4
_spare: dict[int, torch.Tensor] = {}
_workspaces = threading.local()


def _workspace(size: int) -> torch.Tensor:
    """At least ``size`` values for the time of a call, this thread's own."""
    found: torch.Tensor | None = getattr(_workspaces, "last", None)
    if found is None or not size <= found.numel() <= 4 * size:
        found = _workspaces.last = empty((size,))
    return found


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
        code = _code(blocks, dense, current())
        groups = -(-batch // code.lanes)
        out = empty((batch, dense[-1].outputs))
        held = Held(groups * code.group_values, groups * code.group_choices)
        at = held.memory.data_ptr()
        code.forward(input.data_ptr(), out.data_ptr(), at, at + held.choices_at, *_addresses(weights), batch, team)
        return out, held

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
        code = _code(blocks, dense, current())
        groups = -(-batch // code.lanes)
        # one block of memory, in parts that begin at whole vectors
        sums, rows = _up(team * code.sums), _up(groups * code.group_rows)
        space = _workspace(sums + rows + team * code.space)
        gradients, at, kept = _gradients(weights), space.data_ptr(), held.memory.data_ptr()
        code.backward(
            grad.data_ptr(), kept, kept + held.choices_at, at + 4 * sums, at, at + 4 * (sums + rows),
            *_addresses(weights), *_addresses(gradients), batch, team,
        )  # fmt: skip
        return gradients


def _gradients(weights: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Places for all gradients; torch's quickest way to make a small tensor."""
    return [None if weight is None else torch.empty_strided(weight.shape, weight.stride()) for weight in weights]


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


@dataclass(frozen=True, slots=True)
class _Code:
    """The compiled functions of a chain, and how much memory they need.

    Attributes:
        forward: see `chain.build_chain_forward`.
        backward: see `chain.build_chain_backward`.
        lanes: images in a group.
        group_values: values kept of a group.
        group_choices: bytes kept of a group.
        group_rows: gradients of the hidden dense layers' results, of a group.
        sums: one thread's sums of weight gradients.
        space: one thread's gradients.
    """

    forward: Callable[..., None]
    backward: Callable[..., None]
    lanes: int
    group_values: int
    group_choices: int
    group_rows: int
    sums: int
    space: int


@lru_cache(maxsize=256)
def _code(blocks: tuple[ConvProblem, ...], dense: tuple[Dense, ...], target: Target) -> _Code:
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.chain import build_chain_backward, build_chain_forward

    plan = _plan(blocks, dense, target)
    forward = compiled("cpu.direct_chain.forward", build_chain_forward, chain=plan)
    backward = compiled("cpu.direct_chain.backward", build_chain_backward, chain=plan)
    return _Code(
        forward.chain_forward, backward.chain_backward, plan.lanes,
        plan.group_values + plan.row_values * plan.lanes, plan.group_choices, plan.hidden * plan.lanes,
        sum(plan.partial_values(i) for i in range(len(blocks))), plan.gradient_places()[-1],
    )  # fmt: skip
