"""`DirectBlock`: convolution, bias, ReLU and 2×2 max pooling as one differentiable kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from convlens.kernels.contract import NativeCall, Prepared
from convlens.kernels.cpu.direct_few.geometry import Shape
from convlens.kernels.cpu.memory import empty, workspace
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["DirectBlock", "as_images"]

_MOST_CHANNELS = 32
_MOST_BYTES = 1 << 20  # of one image's packed input or unpooled gradient


class DirectBlock:
    """The fused block for few input channels and images that fit the second-level cache."""

    name = "cpu.direct_block"

    def refusal(self, problem: ConvProblem) -> str | None:
        """Why a forward problem with its epilogue cannot be computed; None if it can."""
        epilogue = problem.epilogue
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if problem.ndim != 2 or problem.groups != 1:
            return f"needs 2 axes and 1 group, got {problem.ndim} and {problem.groups}"
        if problem.layout != "contiguous":
            return f"needs contiguous layout, got {problem.layout}"
        if problem.in_channels > _MOST_CHANNELS:
            return f"needs at most {_MOST_CHANNELS} input channels, got {problem.in_channels}"
        if epilogue.activation != "relu" or epilogue.pool != 2:
            return f"needs relu and a pooling of 2, got {epilogue.activation} and {epilogue.pool}"
        if min(problem.output_size) < 2:
            return f"needs an output of 2×2 at least, got {problem.output_size}"
        axes = zip(problem.padding, problem.kernel_size, problem.dilation, strict=True)
        if any(pad[0] > (size - 1) * step for pad, size, step in axes):
            return "needs padding smaller than the window"
        area = (problem.input_size[0] + 32) * (problem.input_size[1] + 32)
        if 4 * area * max(problem.in_channels, problem.out_channels) > _MOST_BYTES * 2:
            return "needs images that fit the second-level cache"
        return None

    def forward(
        self,
        problem: ConvProblem,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``relu`` of the largest of each 2×2 of the convolution, ``(N, O, h // 2, w // 2)``.

        With ``keep`` also the place of the largest, for `backward`: uint8, rows padded to whole vectors.
        """
        from convlens.kernels.cpu.codegen import current, threads

        batch, outs, height, width = problem.output_shape
        out = empty((batch, outs, height // 2, width // 2))
        team = threads()
        function, values, choices = _forward_code(problem, bias is not None, keep, team, current())
        choice = empty(choices, dtype=torch.uint8) if keep else None
        if batch:
            space = empty((team * values,))
            function(
                input.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
                0 if choice is None else choice.data_ptr(), space.data_ptr(), batch, team,
            )  # fmt: skip
        return out, choice

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared:
        """A problem that `refusal` accepts, with its weights, for many calls; see `Kernel.prepare`."""
        from convlens.kernels.cpu.codegen import current, threads

        team, batch = threads(), problem.batch
        function, values, _ = _forward_code(problem, bias is not None, False, team, current())
        weight, space = weight.contiguous(), workspace(self.name, team * values)
        arguments = (
            0, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, 0, space.data_ptr(), batch, team,
        )  # fmt: skip
        return NativeCall(function, arguments, 0, 3, (weight, bias, space)).prepared()

    def backward(
        self,
        problem: ConvProblem,
        grad: torch.Tensor,
        out: torch.Tensor,
        choice: torch.Tensor,
        input: torch.Tensor,
        weight: torch.Tensor,
        *,
        need_input: bool,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Gradients of input (None unless ``need_input``), weight, and bias where the problem has one."""
        from convlens.kernels.cpu.codegen import current, threads

        team = threads()
        grad_input = empty(problem.input_shape) if need_input else None
        grad_weight = empty(problem.weight_shape)
        grad_bias = empty((problem.out_channels,)) if problem.epilogue.bias else None
        if not problem.batch:
            return grad_input, grad_weight.zero_(), None if grad_bias is None else grad_bias.zero_()
        function, sums, values = _backward_code(problem, need_input, team, current())
        space = empty((team * (sums + values),))
        function(
            grad.data_ptr(), out.data_ptr(), choice.data_ptr(), input.data_ptr(), weight.data_ptr(),
            0 if grad_input is None else grad_input.data_ptr(), grad_weight.data_ptr(),
            0 if grad_bias is None else grad_bias.data_ptr(), space.data_ptr(),
            space.data_ptr() + 4 * team * sums, problem.batch, team,
        )  # fmt: skip
        return grad_input, grad_weight, grad_bias


def as_images(problem: ConvProblem, lanes: int) -> bool:
    """Whether sixteen images side by side use the lanes better than pixels of a row."""
    return problem.batch >= 2 * lanes and problem.stride[1] == 1 and problem.output_size[1] <= 4 * lanes


@lru_cache(maxsize=1024)
def _forward_code(
    problem: ConvProblem, bias: bool, keep: bool, team: int, target: Target
) -> tuple[Callable[..., None], int, tuple[int, ...]]:
    """The compiled function, workspace values of a thread, shape of the choices."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.block import build_block_forward, choice_pitch, plan_block

    shape, lanes = Shape.of(problem), target.lanes
    height, width = shape.out_height // 2, shape.out_width // 2
    if as_images(problem, lanes):
        from convlens.kernels.cpu.direct_few.images import build_images_forward, plan_images

        wide = plan_images(shape, lanes, target.registers)
        code = compiled(
            "cpu.direct_block.images_forward", build_images_forward, shape=shape, plan=wide, bias=bias, keep=keep
        )
        groups = -(-problem.batch // lanes)
        values = wide.forward.band.values + shape.out_channels * height * width * lanes
        return code.block_forward, values, (groups, shape.out_channels, height, width, lanes)
    plan = plan_block(shape, team, target.lanes, target.registers)
    code = compiled("cpu.direct_block.forward", build_block_forward, shape=shape, plan=plan, bias=bias, keep=keep)
    return code.block_forward, plan.band.values, (problem.batch, shape.out_channels, height, choice_pitch(shape))


@lru_cache(maxsize=1024)
def _backward_code(
    problem: ConvProblem, need_input: bool, team: int, target: Target
) -> tuple[Callable[..., None], int, int]:
    """The compiled function, partial sums and workspace values of a thread."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.block import build_block_backward, plan_backward

    shape, bias, lanes = Shape.of(problem), problem.epilogue.bias, target.lanes
    if as_images(problem, lanes):
        from convlens.kernels.cpu.direct_few.images import build_images_backward, plan_images

        wide = plan_images(shape, lanes, target.registers)
        code = compiled(
            "cpu.direct_block.images_backward", build_images_backward, shape=shape, plan=wide, bias=bias,
            need_input=need_input,
        )  # fmt: skip
        size = shape.in_channels * shape.height * shape.width * lanes if need_input else 0
        values = wide.weights.band.values + wide.inputs.band.values + size
        function = code.block_backward

        def without_output(g: int, _: int, *rest: int) -> None:
            function(g, *rest)

        return without_output, wide.weights.partial_values(wide.wide, lanes), values
    plan = plan_backward(shape, problem.batch, need_input, team, lanes, target.registers)
    code = compiled("cpu.direct_block.backward", build_block_backward, shape=shape, plan=plan, bias=bias)
    return code.block_backward, plan.weights.partial_values(shape, lanes), plan.space_values(shape)
