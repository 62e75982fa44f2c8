"""By the definition (row C1): slide, multiply, add. One weight position at a time, over all images at once."""

from __future__ import annotations

import math

import torch

from convlens.kernels.contract import Kernel
from convlens.kernels.limits import over_budget
from convlens.kernels.plain import common
from convlens.window import ConvProblem

__all__ = ["Definition"]


class Definition(Kernel):
    """``out[o, p] = sum over taps u of weight[o, :, u] . input[:, stride*p + dilation*u]``.

    The sum over taps is the outer loop, so what is held beside the operands is one shifted copy of the input
    and not the unrolled patches.
    """

    name = "plain.definition"
    algorithm = "definition"
    precision = "exact"
    automatic = False
    any_strides = True

    def refusal(self, problem: ConvProblem) -> str | None:
        """Only above the memory budget."""
        return over_budget(self.workspace_bytes(problem))

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """The bordered input, one shifted copy of it, the sums and the product of one tap."""
        item = common.compute_itemsize(problem)
        batch = problem.batch
        bordered = batch * problem.in_channels * math.prod(common.bordered_size(problem))
        places = batch * math.prod(problem.output_size)
        shifted, sums = places * problem.in_channels, places * problem.out_channels
        weight = math.prod(problem.weight_shape)
        return item * (3 * bordered + 2 * shifted + 3 * sums + 2 * weight)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        if problem.direction == "forward":
            return (self._forward(problem, *operands),)  # type: ignore[arg-type]
        if problem.direction == "input_grad":
            return (self._input_grad(problem, *operands),)  # type: ignore[arg-type]
        return self._weight_grad(problem, *operands)  # type: ignore[arg-type]

    def _forward(
        self, problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        groups = problem.groups
        padded = common.grouped(common.bordered(problem, common.widened(input)), groups)
        kernel = common.widened(weight).unflatten(0, (groups, -1))
        places = problem.batch * math.prod(problem.output_size)
        sums = padded.new_zeros(groups, problem.out_channels // groups, places)
        for tap in common.taps(problem):
            shifted = padded[common.along(common.touched(problem, tap))].flatten(2)
            sums.baddbmm_(kernel[(..., *tap)], shifted)
        if bias is not None:
            sums += common.widened(bias).view(groups, -1, 1)
        return common.laid_out(problem, sums.unflatten(2, (problem.batch, *problem.output_size)))

    def _input_grad(self, problem: ConvProblem, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        groups = problem.groups
        error = common.grouped(common.widened(grad), groups).flatten(2)
        kernel = common.widened(weight).unflatten(0, (groups, -1)).transpose(1, 2)
        channels = problem.in_channels // groups
        padded = error.new_zeros(groups, channels, problem.batch, *common.bordered_size(problem))
        for tap in common.taps(problem):
            product = torch.bmm(kernel[(..., *tap)], error)
            padded[common.along(common.touched(problem, tap))] += product.unflatten(
                2, (problem.batch, *problem.output_size)
            )
        return common.laid_out(problem, common.cropped(problem, padded))

    def _weight_grad(
        self, problem: ConvProblem, grad: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        groups = problem.groups
        padded = common.grouped(common.bordered(problem, common.widened(input)), groups)
        error = common.grouped(common.widened(grad), groups).flatten(2)
        result = error.new_zeros(problem.weight_shape).unflatten(0, (groups, -1))
        for tap in common.taps(problem):
            shifted = padded[common.along(common.touched(problem, tap))].flatten(2)
            result[(..., *tap)] = torch.bmm(error, shifted.transpose(1, 2))
        return with_bias_grad(problem, result.flatten(0, 1), error)


def with_bias_grad(problem: ConvProblem, weight: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The results of a weight gradient; ``error`` is ``(groups, O/groups, places)``."""
    dtype = getattr(torch, problem.dtype)
    weight = weight.to(dtype).contiguous()
    return (weight, error.sum(2).flatten().to(dtype)) if problem.epilogue.bias else (weight,)
