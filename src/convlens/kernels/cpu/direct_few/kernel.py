"""`cpu.direct_few`: the register-blocked direct kernel for layers with few input channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from convlens.kernels.batches import rounded_batch
from convlens.kernels.contract import Kernel, NativeCall, Prepared
from convlens.kernels.cpu.direct_few.geometry import Shape
from convlens.kernels.cpu.epilogue import ACTIVATIONS
from convlens.kernels.cpu.memory import empty, workspace
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["DirectFew"]

_MOST_CHANNELS = 32


class DirectFew(Kernel):
    """Pixels along a row as vector lanes; bands of the source packed into cache with their padding.

    First layers have so few input channels that a matrix product is mostly packing and writing. Here a
    band is copied once into the second-level cache, dealt into column phases so that strided windows read
    consecutive values too, and each block of accumulators is written once.
    """

    name = "cpu.direct_few"
    algorithm = "direct"
    precision = "exact"
    batch_invariant = False
    efficiency = 0.8

    def refusal(self, problem: ConvProblem) -> str | None:
        """float32 on the CPU, one group, one or two axes, few input channels."""
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if problem.ndim > 2:
            return f"needs 1 or 2 axes, got {problem.ndim}"
        if problem.groups != 1:
            return f"needs 1 group, got {problem.groups}"
        if problem.in_channels > _MOST_CHANNELS:
            return f"needs at most {_MOST_CHANNELS} input channels, got {problem.in_channels}"
        if problem.layout == "channels_last" and problem.ndim == 2:
            return "needs contiguous layout"
        if problem.epilogue.pool or problem.epilogue.activation not in ACTIVATIONS:
            return f"fuses bias and {', '.join(ACTIVATIONS[1:])} only"
        if problem.epilogue.residual:
            return "adds no residual"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Each thread's band of packed rows; for the weight gradient its sums too."""
        from convlens.kernels.cpu.codegen import current, threads
        from convlens.kernels.cpu.direct_few.forward import plan_forward
        from convlens.kernels.cpu.direct_few.input_grad import plan_input_grad
        from convlens.kernels.cpu.direct_few.weight_grad import plan_weight_grad

        if problem.macs == 0:
            return 0
        target, team, shape = current(), threads(), Shape.of(problem)
        sizes = (shape, rounded_batch(problem.batch), team, target.lanes, target.registers, target.l2_bytes)
        if problem.direction == "weight_grad":
            plan = plan_weight_grad(*sizes)
            return 4 * team * (plan.partial_values(shape, target.lanes) + plan.band.values)
        if problem.direction == "input_grad":
            return 4 * team * plan_input_grad(*sizes).band.values
        return 4 * team * plan_forward(*sizes).band.values

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        if problem.direction == "forward":
            return self._forward(problem, *operands)  # type: ignore[arg-type]
        if problem.direction == "input_grad":
            return self._input_grad(problem, *operands)  # type: ignore[arg-type]
        return self._weight_grad(problem, *operands)  # type: ignore[arg-type]

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`."""
        from convlens.kernels.cpu.codegen import current, threads

        if problem.macs == 0:
            return None
        team, batch = threads(), problem.batch
        function, values = _forward_code(problem, bias is not None, team, current())
        weight, space = weight.contiguous(), workspace(self.name, team * values)
        arguments = (
            0, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, space.data_ptr(), batch, team,
        )  # fmt: skip
        return NativeCall(function, arguments, 0, 3, (weight, bias, space)).prepared()

    def _forward(
        self, problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        from convlens.kernels.cpu.codegen import current, threads

        out = empty(problem.output_shape, channels_last=problem.layout == "channels_last")
        if not out.numel():
            return (out,)
        team = threads()
        function, values = _forward_code(problem, bias is not None, team, current())
        space = empty((team * values,))
        function(
            input.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
            space.data_ptr(), problem.batch, team,
        )  # fmt: skip
        return (out,)

    def _input_grad(
        self, problem: ConvProblem, grad_output: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from convlens.kernels.cpu.codegen import current, threads

        out = empty(problem.input_shape, channels_last=problem.layout == "channels_last")
        if not out.numel() or not grad_output.numel():
            return (out.zero_(),)
        team = threads()
        function, values = _input_grad_code(problem, team, current())
        space = empty((team * values,))
        function(
            grad_output.data_ptr(), weight.data_ptr(), out.data_ptr(), space.data_ptr(), problem.batch, team
        )  # fmt: skip
        return (out,)

    def _weight_grad(
        self, problem: ConvProblem, grad_output: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from convlens.kernels.cpu.codegen import current, threads

        grad_weight = empty(problem.weight_shape)
        grad_bias = empty((problem.out_channels,)) if problem.epilogue.bias else None
        if not grad_output.numel():
            grads = (grad_weight,) if grad_bias is None else (grad_weight, grad_bias)
            return tuple(grad.zero_() for grad in grads)
        team = threads()
        function, sums, values = _weight_grad_code(problem, team, current())
        space = empty((team * (sums + values),))
        function(
            grad_output.data_ptr(), input.data_ptr(), grad_weight.data_ptr(),
            0 if grad_bias is None else grad_bias.data_ptr(), space.data_ptr(),
            space.data_ptr() + 4 * team * sums, problem.batch, team,
        )  # fmt: skip
        return (grad_weight,) if grad_bias is None else (grad_weight, grad_bias)


@lru_cache(maxsize=4096)
def _forward_code(problem: ConvProblem, bias: bool, team: int, target: Target) -> tuple[Callable[..., None], int]:
    """The compiled function, and how many values of workspace each thread needs."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.forward import build_forward, plan_forward

    shape, batch = Shape.of(problem), rounded_batch(problem.batch)
    plan = plan_forward(shape, batch, team, target.lanes, target.registers, target.l2_bytes)
    code = compiled(
        "cpu.direct_few.forward", build_forward, shape=shape, plan=plan, bias=bias,
        activation=problem.epilogue.activation,
    )  # fmt: skip
    return code.forward, plan.band.values


@lru_cache(maxsize=4096)
def _input_grad_code(problem: ConvProblem, team: int, target: Target) -> tuple[Callable[..., None], int]:
    """The compiled function, and how many values of workspace each thread needs."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.input_grad import build_input_grad, plan_input_grad

    shape = Shape.of(problem)
    plan = plan_input_grad(
        shape, rounded_batch(problem.batch), team, target.lanes, target.registers, target.l2_bytes,
        packed=False,
    )  # fmt: skip
    code = compiled("cpu.direct_few.input_grad", build_input_grad, shape=shape, plan=plan)
    return code.input_grad, plan.band.values


@lru_cache(maxsize=4096)
def _weight_grad_code(problem: ConvProblem, team: int, target: Target) -> tuple[Callable[..., None], int, int]:
    """The compiled function, and how many partial sums and workspace values each thread needs."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct_few.weight_grad import build_weight_grad, plan_weight_grad

    shape = Shape.of(problem)
    plan = plan_weight_grad(
        shape, rounded_batch(problem.batch), team, target.lanes, target.registers, target.l2_bytes
    )
    code = compiled(
        "cpu.direct_few.weight_grad", build_weight_grad, shape=shape, plan=plan, bias=problem.epilogue.bias
    )
    return code.weight_grad, plan.partial_values(shape, target.lanes), plan.band.values
