"""`cpu.depthwise_fourier`: what it takes and refuses, and the call of its compiled loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from convlens.kernels.contract import Kernel
from convlens.kernels.cpu.depthwise_fourier.geometry import has_tiles, shape_of
from convlens.kernels.cpu.memory import empty
from convlens.kernels.vendor import Vendor
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["DepthwiseFourier"]

_LEAST_TAPS = 100  # a direct sum of fewer is as fast, and too exact for an error that a whole tile shares
_FEWER_TERMS = 8  # an output of far fewer terms than its neighbours would have their errors
_LINE_BYTES = 64


class DepthwiseFourier(Kernel):
    """Each channel by itself, in planes or tiles of up to 144 × 144 places: the window's size costs nothing.

    31 × 31 windows on 56 × 56 planes take a tenth of the definition's operations.
    """

    name = "cpu.depthwise_fourier"
    algorithm = "fourier"
    precision = "exact"
    batch_invariant = True
    efficiency = 0.5

    def refusal(self, problem: ConvProblem) -> str | None:
        """float32 on the CPU, two axes, stride 1, one output a channel, large windows; no weight gradient."""
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if problem.direction == "weight_grad":
            return "computes outputs and gradients of inputs"
        if problem.ndim != 2:
            return f"needs 2 axes, got {problem.ndim}"
        if not 1 < problem.groups == problem.in_channels == problem.out_channels:
            return f"needs one input and one output channel per group, got {problem.groups} groups"
        if max(problem.stride) > 1:
            return f"needs stride 1, got {problem.stride}"
        if math.prod(problem.kernel_size) < _LEAST_TAPS:
            return f"needs a window of at least {_LEAST_TAPS} places, got {problem.kernel_size}"
        reaches = [(k - 1) * d + 1 for k, d in zip(problem.kernel_size, problem.dilation, strict=True)]
        if _least_terms(problem, reaches) * _FEWER_TERMS < math.prod(problem.kernel_size):
            return f"needs windows that lie mostly inside, got {problem.kernel_size} and padding {problem.padding}"
        if min(*problem.output_size, *problem.input_size) < 1:
            return "needs an input and an output"
        if not has_tiles(problem):
            return f"needs a window that a tile holds, got {problem.kernel_size}"
        if (
            problem.epilogue.pool
            or problem.epilogue.residual
            or problem.epilogue.activation not in ("none", "relu")
        ):
            return "fuses bias and relu only"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Spectra of all windows and every thread's buffers; marks of images."""
        from convlens.kernels.cpu.codegen import current, threads

        buffers = sum(4 * values + _LINE_BYTES for values in _sizes(problem, threads(), current()))
        return buffers + _LINE_BYTES + 4 * problem.batch

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Two for every operation on a vector's element, as of a fused multiply-add."""
        from convlens.kernels.cpu.codegen import current

        lanes, shape = current().lanes, shape_of(_any_batch(problem))
        return 2.0 * lanes * shape.vectors(lanes) * (problem.batch + 0.5) * shape.cost()

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`. inf and NaN would spread over a tile: the vendor computes an image that has any."""
        from convlens.kernels.cpu.codegen import current, threads

        first, second = operands[0], operands[1]
        if first is None or second is None:
            raise AssertionError("operands are tensors")
        if problem.macs == 0:
            return Vendor().run(problem, *operands)
        bias = operands[2] if problem.direction == "forward" else None
        problem = replace(problem, epilogue=replace(problem.epilogue, bias=bias is not None))
        size = problem.output_shape if problem.direction == "forward" else problem.input_shape
        result = empty(size, channels_last=problem.layout == "channels_last")
        team = threads()
        buffers = [empty((values + _LINE_BYTES // 4,)) for values in _sizes(problem, team, current())]
        spoilt = torch.zeros(problem.batch, dtype=torch.int32)
        _code(_any_batch(problem), current())(
            first.data_ptr(), second.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(),
            *(_aligned(buffer) for buffer in buffers), spoilt.data_ptr(), problem.batch, team,
        )  # fmt: skip
        for image in spoilt.nonzero().flatten().tolist():
            one = replace(problem, batch=1)
            again = Vendor().run(one, first[image : image + 1], *operands[1:])[0][0]
            result[image] = again.relu_() if problem.epilogue.activation == "relu" else again
        return (result,)


def _least_terms(problem: ConvProblem, reaches: list[int]) -> int:
    """Terms of the outputs at a corner, 0 where a window lies wholly in the padding."""
    terms = 1
    for pad, reach, dilation in zip(problem.padding, reaches, problem.dilation, strict=True):
        over = max(reach - 1 - p for p in pad) if problem.direction == "input_grad" else max(pad)
        terms *= max(0, math.ceil((reach - over) / dilation))
    return terms


def _any_batch(problem: ConvProblem) -> ConvProblem:
    """The code does not depend on the batch."""
    return replace(problem, batch=1)


@lru_cache(maxsize=4096)
def _sizes(problem: ConvProblem, team: int, target: Target) -> tuple[int, int]:
    """Values of the windows' spectra and of all threads' buffers."""
    shape = shape_of(_any_batch(problem))
    lanes = target.lanes
    return shape.vectors(lanes) * shape.spectrum * lanes, team * shape.thread_vectors(lanes) * lanes


@lru_cache(maxsize=4096)
def _code(problem: ConvProblem, target: Target) -> Callable[..., None]:
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.depthwise_fourier.tiles import build

    code = compiled("cpu.depthwise_fourier", build, shape=shape_of(problem))
    run: Callable[..., None] = code.run
    return run


def _aligned(buffer: torch.Tensor) -> int:
    return -(-buffer.data_ptr() // _LINE_BYTES) * _LINE_BYTES
