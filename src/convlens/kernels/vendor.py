"""oneDNN on the CPU and cuDNN on CUDA, through torch. It refuses nothing that torch computes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from convlens.kernels.contract import Kernel, Prepared
from convlens.kernels.packed import prepare_packed
from convlens.window import ConvProblem

__all__ = ["Vendor"]


class Vendor(Kernel):
    """torch's own convolution; uneven padding is written out first, since torch's takes one number an axis."""

    name = "vendor"
    algorithm = "vendor"
    precision = "exact"
    any_strides = True

    def refusal(self, problem: ConvProblem) -> str | None:
        """Gradients of whole numbers; everything else that the operators let through, torch computes."""
        if problem.direction != "forward" and problem.dtype in _WHOLE:
            return f"has no gradients of {problem.dtype}"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Operands in oneDNN's blocks of 16 channels; unrolled patches where it has no kernel; uneven borders."""
        if problem.device != "cpu":
            return 0 if _is_even(problem) else _padded_bytes(problem)
        channels = sum(_to_blocks(c) for c in (problem.in_channels, problem.out_channels))
        places = max(math.prod(problem.output_size), _padded_places(problem))
        taps = math.prod(problem.kernel_size)
        kernel = _to_blocks(problem.in_channels // problem.groups) * _to_blocks(problem.out_channels) * taps
        blocks = problem.batch * channels * places + 5 * kernel
        unrolled = 0
        if problem.dtype not in _ONEDNN or (problem.batch < 16 and max(problem.kernel_size) <= 3):
            unrolled = problem.batch * problem.in_channels * taps * math.prod(problem.output_size)
        parts = 4 if problem.dtype in _PARTS else 2
        return problem.itemsize * (parts * blocks + unrolled) + 2 * _padded_bytes(problem)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        if problem.dtype.startswith("complex"):
            return self._from_parts(problem, *operands)
        if problem.direction == "forward":
            return self._forward(problem, *operands)  # type: ignore[arg-type]
        if problem.direction == "input_grad":
            return self._input_grad(problem, *operands)  # type: ignore[arg-type]
        return self._weight_grad(problem, *operands)  # type: ignore[arg-type]

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: oneDNN's packed weights, or torch's own operator where it has none for the problem."""
        if (packed := prepare_packed(problem, weight, bias)) is not None:
            return packed
        if problem.epilogue.residual or problem.epilogue.activation != "none" or problem.epilogue.pool:
            return None
        return Prepared(lambda input, out: self.run(problem, input, weight, bias)[0])

    def _from_parts(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Complex operands as four real convolutions, since the libraries underneath know real ones only."""
        part = replace(problem, dtype=_PARTS[problem.dtype], epilogue=replace(problem.epilogue, bias=False))
        rest = (None,) if problem.direction == "forward" else ()
        first, second = (t.resolve_conj() for t in operands[:2] if t is not None)

        def real(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.run(part, a, b, *rest)[0]

        product = torch.complex(
            real(first.real, second.real) - real(first.imag, second.imag),
            real(first.real, second.imag) + real(first.imag, second.real),
        )
        if not problem.epilogue.bias or problem.direction == "input_grad":
            return (product,)
        if problem.direction == "weight_grad":
            return product, first.sum([0, *range(2, first.dim())])
        bias = operands[2]
        return (product if bias is None else product + bias.view(-1, *(1,) * problem.ndim),)

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


_WHOLE = ("int8", "uint8", "int16", "int32", "int64")
_ONEDNN = ("float32", "bfloat16", "float16")
_PARTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def _to_blocks(channels: int) -> int:
    return -(-channels // 16) * 16


def _padded_places(problem: ConvProblem) -> int:
    return math.prod(n + sum(pad) for n, pad in zip(problem.input_size, problem.padding, strict=True))


def _padded_bytes(problem: ConvProblem) -> int:
    if _is_even(problem):
        return 0
    return problem.itemsize * problem.batch * problem.in_channels * _padded_places(problem)


def _is_even(problem: ConvProblem) -> bool:
    return all(before == after for before, after in problem.padding)


def _written_out(problem: ConvProblem, input: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The input and the symmetric padding left for torch: uneven padding becomes zeros in the input."""
    if _is_even(problem):
        return input, tuple(before for before, _ in problem.padding)
    flat = [amount for pad in reversed(problem.padding) for amount in pad]
    return torch.nn.functional.pad(input, flat), (0,) * problem.ndim
