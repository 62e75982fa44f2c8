"""oneDNN on the CPU and cuDNN on CUDA, through torch. It refuses nothing that torch computes."""

from __future__ import annotations

import torch

from convlens.kernels.contract import Kernel
from convlens.window import ConvProblem

__all__ = ["Vendor"]


class Vendor(Kernel):
    """torch's own convolution; uneven padding is written out first, since torch's takes one number an axis."""

    name = "vendor"
    algorithm = "vendor"
    precision = "exact"

    def refusal(self, problem: ConvProblem) -> str | None:
        """Never refuses: what torch cannot compute, the operators have already turned away."""
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """The padded copy of the input where the padding is uneven (and its gradient)."""
        if _is_even(problem):
            return 0
        padded = problem.batch * problem.in_channels * problem.itemsize
        for size, pad in zip(problem.input_size, problem.padding, strict=True):
            padded *= size + sum(pad)
        return padded

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        if problem.direction == "forward":
            return self._forward(problem, *operands)  # type: ignore[arg-type]
        if problem.direction == "input_grad":
            return self._input_grad(problem, *operands)  # type: ignore[arg-type]
        return self._weight_grad(problem, *operands)  # type: ignore[arg-type]

    def _forward(
        self, problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        input, padding = _written_out(problem, input)
        out = torch.ops.aten.convolution(
            input, weight, bias, problem.stride, padding, problem.dilation, False, [0], problem.groups
        )
        return (out,)

    def _backward(
        self,
        problem: ConvProblem,
        grad_output: torch.Tensor,
        input: torch.Tensor,
        weight: torch.Tensor,
        padding: tuple[int, ...],
        mask: list[bool],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten.convolution_backward(
            grad_output,
            input,
            weight,
            [problem.out_channels],
            problem.stride,
            padding,
            problem.dilation,
            False,
            [0] * problem.ndim,
            problem.groups,
            mask,
        )
        return result

    def _input_grad(
        self, problem: ConvProblem, grad_output: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        # only its shape and strides are read: no memory is touched
        input = grad_output.new_empty(problem.input_shape)
        if problem.layout == "channels_last" and problem.ndim > 1:
            input = input.contiguous(memory_format=_CHANNELS_LAST[problem.ndim])
        input, padding = _written_out(problem, input)
        grad, _, _ = self._backward(problem, grad_output, input, weight, padding, [True, False, False])
        if not _is_even(problem):
            for axis, (size, pad) in enumerate(zip(problem.input_size, problem.padding, strict=True)):
                grad = grad.narrow(2 + axis, pad[0], size)
        return (grad,)

    def _weight_grad(
        self, problem: ConvProblem, grad_output: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        input, padding = _written_out(problem, input)
        weight = grad_output.new_empty(problem.weight_shape)
        mask = [False, True, problem.epilogue.bias]
        _, grad_weight, grad_bias = self._backward(problem, grad_output, input, weight, padding, mask)
        return (grad_weight, grad_bias) if problem.epilogue.bias else (grad_weight,)


_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def _is_even(problem: ConvProblem) -> bool:
    return all(before == after for before, after in problem.padding)


def _written_out(problem: ConvProblem, input: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The input and the symmetric padding left for torch: uneven padding becomes zeros in the input."""
    if _is_even(problem):
        return input, tuple(before for before, _ in problem.padding)
    flat = [amount for pad in reversed(problem.padding) for amount in pad]
    return torch.nn.functional.pad(input, flat), (0,) * problem.ndim
