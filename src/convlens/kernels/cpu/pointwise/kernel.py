"""`cpu.pointwise`: windows of one place are matrix products of views; the library's product computes them.

Contiguous images are ``(C, places)`` matrices, one product each; channels-last ones are a single matrix of
``(N · places, C)``. Only a stride needs a copy, of the places that it keeps.
"""

from __future__ import annotations

import math

import torch

from convlens.kernels.contract import Kernel, Prepared
from convlens.kernels.cpu.memory import empty
from convlens.window import ConvProblem

__all__ = ["Pointwise"]

_TYPES = ("float32", "float64")


class Pointwise(Kernel):
    """1×1 convolution, forward and both gradients, in one to three axes."""

    name = "cpu.pointwise"
    algorithm = "direct"
    precision = "exact"
    efficiency = 0.85

    def refusal(self, problem: ConvProblem) -> str | None:
        """Windows of one place, one group, no padding."""
        if problem.device != "cpu" or problem.dtype not in _TYPES:
            return f"needs float32 or float64 on the cpu, got {problem.dtype} on {problem.device}"
        if max(problem.kernel_size) > 1:
            return f"needs windows of one place, got {problem.kernel_size}"
        if problem.groups != 1:
            return f"needs 1 group, got {problem.groups}"
        if any(any(pad) for pad in problem.padding):
            return f"needs no padding, got {problem.padding}"
        if problem.epilogue.pool or problem.epilogue.activation != "none":
            return "fuses bias only"
        if problem.epilogue.residual:
            return "adds no residual"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """The places that a stride keeps; products of each image where they are summed."""
        kept = problem.batch * problem.in_channels * math.prod(problem.output_size) if _strided(problem) else 0
        sums = math.prod(problem.weight_shape) * (problem.batch if problem.direction == "weight_grad" else 0)
        return problem.itemsize * (kept + sums)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        first, second = operands[0], operands[1]
        if first is None or second is None:
            raise AssertionError("operands are tensors")
        if problem.direction == "forward":
            bias = operands[2]
            return (_product(problem, _kept(problem, first), second.flatten(1), bias, problem.output_shape),)
        if problem.direction == "input_grad":
            return (_input_grad(problem, first, second.flatten(1)),)
        return _weight_grad(problem, first, _kept(problem, second))

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: the product goes to where the result belongs."""
        if problem.macs == 0:
            return None
        matrix = weight.flatten(1).contiguous()

        def run(input: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
            assert out is not None  # noqa: S101
            _product_into(problem, _kept(problem, input), matrix, bias, out)
            return out

        return Prepared(run, writes=True)


def _strided(problem: ConvProblem) -> bool:
    return max(problem.stride) > 1


def _last(problem: ConvProblem) -> bool:
    return problem.layout == "channels_last" and problem.ndim > 1


def _dtype(problem: ConvProblem) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, problem.dtype)
    return dtype


def _kept(problem: ConvProblem, input: torch.Tensor) -> torch.Tensor:
    """The places of the input that windows look at, dense."""
    if not _strided(problem):
        return input
    places = (slice(None), slice(None), *(slice(None, None, step) for step in problem.stride))
    kept = empty((*input.shape[:2], *problem.output_size), channels_last=_last(problem), dtype=input.dtype)
    return kept.copy_(input[places])


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A channels-last tensor as its ``(N · places, C)`` matrix."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def _product(
    problem: ConvProblem, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    shape: tuple[int, ...],
) -> torch.Tensor:  # fmt: skip
    """``weight @ source`` at every place."""
    out = empty(shape, channels_last=_last(problem), dtype=_dtype(problem))
    if out.numel():
        _product_into(problem, source, weight, bias, out)
    return out


def _product_into(
    problem: ConvProblem, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    if _last(problem):
        given, to = _rows(source), _rows(out)
        if bias is None:
            torch.mm(given, weight.t(), out=to)
        else:
            torch.addmm(bias, given, weight.t(), out=to)
        return
    given, to = source.flatten(2), out.flatten(2)
    for image, result in zip(given, to, strict=True):
        if bias is None:
            torch.mm(weight, image, out=result)
        else:
            torch.addmm(bias.unsqueeze(1), weight, image, out=result)


def _input_grad(problem: ConvProblem, grad_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if not _strided(problem):
        return _product(problem, grad_output, weight.t(), None, problem.input_shape)
    kept = _product(problem, grad_output, weight.t(), None, (*problem.input_shape[:2], *problem.output_size))
    out = empty(problem.input_shape, channels_last=_last(problem), dtype=_dtype(problem)).zero_()
    out[(slice(None), slice(None), *(slice(None, None, step) for step in problem.stride))] = kept
    return out


def _weight_grad(
    problem: ConvProblem, grad_output: torch.Tensor, source: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    if _last(problem):
        grad = torch.mm(_rows(grad_output).t(), _rows(source))
    else:
        grad = torch.bmm(grad_output.flatten(2), source.flatten(2).transpose(1, 2)).sum(0)
    grad = grad.view(problem.weight_shape)
    if not problem.epilogue.bias:
        return (grad,)
    return grad, grad_output.sum([0, *range(2, grad_output.dim())])
