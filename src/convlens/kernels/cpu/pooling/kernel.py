"""`cpu.pool`: max and average pooling with planes or channels as lanes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from convlens.kernels.contract import NativeCall, Prepared
from convlens.kernels.cpu.memory import empty, workspace
from convlens.kernels.cpu.pooling.geometry import Shape
from convlens.window import PoolProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["Pool"]

_MOST_TAPS = 128
_MOST_WRITTEN_OUT = 64  # phases of the input times taps of each, which the backward pass writes out
_MOST_PLACES = 1 << 31
_LINE_BYTES = 64


class Pool:
    """Max and average pooling, forward and backward, of one to three axes in either layout.

    Values are torch's bits: the first of equal values wins, NaN wins over all, sums run in torch's order.
    """

    name = "cpu.pool"

    def refusal(self, problem: PoolProblem) -> str | None:
        """Why ``problem`` cannot be computed; None if it can."""
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if not 1 <= len(problem.input_size) <= 3:
            return f"needs 1 to 3 axes, got {len(problem.input_size)}"
        taps = math.prod(problem.kernel_size)
        if taps > _MOST_TAPS:
            return f"needs windows of at most {_MOST_TAPS} places, got {taps}"
        if math.prod(problem.stride) > _MOST_WRITTEN_OUT:
            return f"needs strides whose product is at most {_MOST_WRITTEN_OUT}, got {problem.stride}"
        if math.prod(problem.input_size) >= _MOST_PLACES:
            return f"needs planes below {_MOST_PLACES} places, got {problem.input_size}"
        if problem.kind == "avg" and max(problem.dilation) > 1:
            return f"averages without dilation, got {problem.dilation}"
        for n, o, k, s, d, p in zip(
            problem.input_size, problem.output_size, problem.kernel_size, problem.stride, problem.dilation,
            problem.padding, strict=True,
        ):  # fmt: skip
            if p[0] > d * (k - 1) or (o - 1) * s - p[0] >= n or (d > 1 and max(p) > 0):
                return "needs windows that each see a place of the input"
        return None

    def forward(
        self, problem: PoolProblem, input: torch.Tensor, *, keep: bool = False, positions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Results ``(N, C, *output)``, winning taps for `backward`, and int64 places of the winners.

        Args:
            problem: forward, accepted.
            input: ``(N, C, *input)``, dense in the problem's layout.
            keep: also give the winning taps (max only).
            positions: also give the place of each winner in its plane (max only).
        """
        from convlens.kernels.cpu.codegen import current, threads

        team, target = threads(), current()
        last = problem.layout == "channels_last" and len(problem.input_size) > 1
        shape = (problem.batch, problem.channels, *problem.output_size)
        out = empty(shape, channels_last=last)
        where = empty(shape, channels_last=last, dtype=torch.int64) if positions else None
        function, values, choices = _forward_code(problem, keep, positions, target)
        groups = _groups(problem, target.lanes)
        choice = empty((groups * choices,), dtype=torch.uint8) if keep else None
        if out.numel():
            space = empty((team * values + _LINE_BYTES // 4,))
            function(
                input.data_ptr(), out.data_ptr(), _address(choice), _address(where), _aligned(space),
                problem.batch * problem.channels, groups, team,
            )  # fmt: skip
        return out, choice, where

    def prepare(self, problem: PoolProblem) -> Prepared:
        """A forward problem ready for many calls: results only, see `Prepared`."""
        from convlens.kernels.cpu.codegen import current, threads

        team, target = threads(), current()
        function, values, _ = _forward_code(problem, False, False, target)
        space = workspace(self.name, team * values + _LINE_BYTES // 4)
        planes, groups = problem.batch * problem.channels, _groups(problem, target.lanes)
        arguments = (0, 0, 0, 0, _aligned(space), planes, groups, team)
        return NativeCall(function, arguments, 0, 1, space).prepared()

    def backward(
        self, problem: PoolProblem, grad_output: torch.Tensor, choice: torch.Tensor | None
    ) -> torch.Tensor:
        """The input's gradient, from the upstream one (dense in the layout) and, for max, `forward`'s taps."""
        from convlens.kernels.cpu.codegen import current, threads

        team, target = threads(), current()
        last = problem.layout == "channels_last" and len(problem.input_size) > 1
        out = empty((problem.batch, problem.channels, *problem.input_size), channels_last=last)
        if not out.numel():
            return out
        function, values = _backward_code(problem, target)
        space = empty((team * values + _LINE_BYTES // 4,))
        function(
            grad_output.data_ptr(), _address(choice), out.data_ptr(), _aligned(space),
            problem.batch * problem.channels, _groups(problem, target.lanes), team,
        )  # fmt: skip
        return out


def _groups(problem: PoolProblem, lanes: int) -> int:
    """Groups of lanes: of all planes, or of each image's channels."""
    if problem.layout == "channels_last" and len(problem.input_size) > 1:
        return problem.batch * -(-problem.channels // lanes)
    return -(-problem.batch * problem.channels // lanes)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _aligned(buffer: torch.Tensor) -> int:
    return -(-buffer.data_ptr() // _LINE_BYTES) * _LINE_BYTES


@lru_cache(maxsize=4096)
def _forward_code(
    problem: PoolProblem, keep: bool, positions: bool, target: Target
) -> tuple[Callable[..., None], int, int]:
    """The compiled function, values of each thread's buffers, bytes of a group's choices."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.pooling.forward import build_forward, forward_values

    shape = Shape.of(problem)
    code = compiled("cpu.pool.forward", build_forward, shape=shape, keep=keep, positions=positions)
    depth, rows, _ = shape.axes
    return (
        code.forward,
        forward_values(shape, target.lanes),
        depth.out * rows.out * shape.choice_line() * target.lanes,
    )


@lru_cache(maxsize=4096)
def _backward_code(problem: PoolProblem, target: Target) -> tuple[Callable[..., None], int]:
    """The compiled function, and values of each thread's buffers."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.pooling.backward import backward_values, build_backward

    shape = Shape.of(problem)
    code = compiled("cpu.pool.backward", build_backward, shape=shape)
    return code.backward, backward_values(shape, target.lanes)
