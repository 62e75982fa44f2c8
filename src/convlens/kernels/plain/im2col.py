"""As a matrix product over unrolled patches (row C3): a few images at a time, so that the patches stay small."""

from __future__ import annotations

import math

import torch

from convlens.kernels.contract import Kernel
from convlens.kernels.plain import common
from convlens.kernels.plain.definition import with_bias_grad
from convlens.window import ConvProblem

__all__ = ["Im2col"]

_PATCHES_BYTES = 32 << 20
"""Patches held at once, as long as they are of more than one image."""


class Im2col(Kernel):
    """``weight (O/g, C/g*taps) @ patches (C/g*taps, places)``; the gradients are the other two products."""

    name = "plain.im2col"
    algorithm = "im2col"
    automatic = False
    precision = "exact"
    efficiency = 0.35
    any_strides = True

    def refusal(self, problem: ConvProblem) -> str | None:
        """Never."""
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """The bordered input, the patches of a few images, the sums and the product of those images."""
        item = common.compute_itemsize(problem)
        bordered = problem.batch * problem.in_channels * math.prod(common.bordered_size(problem))
        sums = problem.batch * problem.out_channels * math.prod(problem.output_size)
        weight = math.prod(problem.weight_shape)
        return 2 * _patches_bytes(problem) * _images(problem) + item * (3 * bordered + 3 * sums + 2 * weight)

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
        padded = common.bordered(problem, common.widened(input))
        kernel = common.widened(weight).reshape(groups, problem.out_channels // groups, -1)
        sums = padded.new_empty(
            groups, problem.out_channels // groups, problem.batch, math.prod(problem.output_size)
        )
        for some in _split(problem):
            product = torch.bmm(kernel, _patches(problem, padded[some]))
            sums[:, :, some] = product.unflatten(2, (-1, math.prod(problem.output_size)))
        if bias is not None:
            sums += common.widened(bias).view(groups, -1, 1, 1)
        return common.laid_out(problem, sums.unflatten(3, problem.output_size))

    def _input_grad(self, problem: ConvProblem, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        groups = problem.groups
        error = common.grouped(common.widened(grad), groups)
        kernel = common.widened(weight).reshape(groups, problem.out_channels // groups, -1).transpose(1, 2)
        channels = problem.in_channels // groups
        padded = error.new_zeros(groups, channels, problem.batch, *common.bordered_size(problem))
        for some in _split(problem):
            patches = torch.bmm(kernel, error[:, :, some].flatten(2))
            patches = patches.view(groups, channels, *problem.kernel_size, -1, *problem.output_size)
            for tap in common.taps(problem):
                padded[:, :, some][common.along(common.touched(problem, tap))] += patches[common.at(tap)]
        return common.laid_out(problem, common.cropped(problem, padded))

    def _weight_grad(
        self, problem: ConvProblem, grad: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        groups = problem.groups
        padded = common.bordered(problem, common.widened(input))
        error = common.grouped(common.widened(grad), groups).flatten(3)
        result = error.new_zeros(groups, problem.out_channels // groups, math.prod(problem.weight_shape[1:]))
        for some in _split(problem):
            result.baddbmm_(error[:, :, some].flatten(2), _patches(problem, padded[some]).transpose(1, 2))
        return with_bias_grad(problem, result.reshape(problem.weight_shape), error.flatten(2))


def _patches(problem: ConvProblem, padded: torch.Tensor) -> torch.Tensor:
    """``(n, C, *bordered)`` unrolled to ``(groups, C/groups*taps, n*places)``."""
    windows = padded
    for axis, (k, s, d) in enumerate(zip(problem.kernel_size, problem.stride, problem.dilation, strict=True), 2):
        windows = windows.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    ndim = problem.ndim
    places, taps = range(2, 2 + ndim), range(2 + ndim, 2 + 2 * ndim)
    windows = windows.permute(1, *taps, 0, *places)
    return windows.reshape(problem.groups, -1, padded.shape[0] * math.prod(problem.output_size))


def _patches_bytes(problem: ConvProblem) -> int:
    """Patches of one image."""
    taps = problem.in_channels * math.prod(problem.kernel_size)
    return common.compute_itemsize(problem) * taps * math.prod(problem.output_size)


def _images(problem: ConvProblem) -> int:
    return max(1, min(problem.batch, _PATCHES_BYTES // max(_patches_bytes(problem), 1)))


def _split(problem: ConvProblem) -> list[slice]:
    step = _images(problem)
    return [slice(start, min(start + step, problem.batch)) for start in range(0, problem.batch, step)]
