"""`cpu.fourier`: windows of any size at stride 1 through real Fourier transforms of tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from convlens.kernels.contract import Kernel, Roofline
from convlens.kernels.cpu.fourier.geometry import choose_cut, has_tiles, reaches, shape_of
from convlens.kernels.cpu.memory import empty
from convlens.kernels.vendor import Vendor
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["Fourier"]

_LEAST_TAPS = 12  # of smaller windows Winograd's tiles take as few products and far less memory
_LEAST_CHANNELS = 8
_LEAST_PLACES = 256
_LINE_BYTES = 64


class Fourier(Kernel):
    """Real transforms of tiles of 8 to 32, three products for each complex one, sums over channels between them.

    A tile of 20 gives 16 outputs of a window of 5 with 1.5 · 20 products: 10.7 times fewer than the definition in
    two dimensions, whatever the channels; a window of 7 takes 13 times fewer.
    """

    name = "cpu.fourier"
    algorithm = "fourier"
    precision = "exact"
    efficiency = 0.5

    def refusal(self, problem: ConvProblem) -> str | None:
        """float32 on the CPU, one or two axes, stride 1, one group."""
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if problem.ndim > 2:
            return f"needs 1 or 2 axes, got {problem.ndim}"
        if max(problem.stride) > 1:
            return f"needs stride 1, got {problem.stride}"
        if problem.groups != 1:
            return f"needs 1 group, got {problem.groups}"
        if math.prod(problem.kernel_size) < _LEAST_TAPS or not has_tiles(problem):
            return f"needs a window of at least {_LEAST_TAPS} places that a tile holds, got {problem.kernel_size}"
        if any(max(p) >= reach for p, reach in zip(problem.padding, reaches(problem), strict=True)):
            return f"needs padding smaller than the window, got {problem.padding} and {problem.kernel_size}"
        if problem.epilogue.pool or problem.epilogue.activation not in ("none", "relu"):
            return "fuses bias and relu only"
        return self._refuses_few_terms(problem)

    def _refuses_few_terms(self, problem: ConvProblem) -> str | None:
        """A tile shares its rounding errors: an output of far fewer terms than its neighbours would be worse."""
        if problem.direction == "weight_grad":
            for size, reach in zip(problem.output_size, reaches(problem), strict=True):
                if 1 < reach > size // 2:
                    return f"needs outputs of twice the window, got {problem.output_size}"
            places = problem.batch * math.prod(problem.output_size)
            if 0 < places < _LEAST_PLACES:
                return f"needs at least {_LEAST_PLACES} places to sum over, got {places}"
            return None
        backward = problem.direction == "input_grad"
        summed = problem.out_channels if backward else problem.in_channels
        if summed < _LEAST_CHANNELS:
            return f"needs at least {_LEAST_CHANNELS} channels to sum over, got {summed}"
        source = problem.output_size if backward else problem.input_size
        if any(n < reach for n, reach in zip(source, reaches(problem), strict=True)):
            return f"needs sizes of at least the window, got {source}"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Points of weights, of a chunk of tiles and of its sums; every thread's buffers; marks of images."""
        from convlens.kernels.cpu.codegen import current, threads

        buffers = sum(4 * values + _LINE_BYTES for values in _sizes(problem, threads(), current()))
        return buffers + _LINE_BYTES + 4 * problem.batch

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Products, and some ten operations on every number that the transforms write or read."""
        shape = shape_of(problem)
        tiles, pairs = problem.batch * shape.tiles, problem.in_channels * problem.out_channels
        moved = tiles * (problem.in_channels + problem.out_channels) + pairs
        return shape.points * (2.0 * tiles * pairs + 10.0 * moved)

    def estimate_us(self, problem: ConvProblem, machine: Roofline) -> float:
        """The roofline, where all points are written once and read once."""
        shape = shape_of(problem)
        tiles, pairs = problem.batch * shape.tiles, problem.in_channels * problem.out_channels
        moved = 8 * shape.points * (tiles * (problem.in_channels + problem.out_channels) + pairs)
        products = 2.0 * shape.points * tiles * pairs / 0.8
        # one after the other: the machine multiplies at one time and moves points at another
        return machine.roofline_us(products, 0.0) + machine.roofline_us(0.0, 0.75 * moved + problem.bytes)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`. inf and NaN would spread over a tile: the vendor computes an image that has any."""
        from convlens.kernels.cpu.codegen import current, threads

        first, second = operands[0], operands[1]
        if first is None or second is None:
            raise AssertionError("operands are tensors")
        if problem.macs == 0:
            return Vendor().run(problem, *operands)
        team, target = threads(), current()
        if problem.direction == "weight_grad":
            return self._weight_grad(problem, first, second, team, target)
        bias = operands[2] if problem.direction == "forward" else None
        problem = replace(problem, epilogue=replace(problem.epilogue, bias=bias is not None))
        size = problem.output_shape if problem.direction == "forward" else problem.input_shape
        result = empty(size, channels_last=problem.layout == "channels_last" and problem.ndim > 1)
        buffers = [empty((values + _LINE_BYTES // 4,)) for values in _sizes(problem, team, target)]
        spoilt = torch.zeros(problem.batch, dtype=torch.int32)
        _forward_code(problem, target)(
            first.data_ptr(), second.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(),
            *(_aligned(buffer) for buffer in buffers), spoilt.data_ptr(), problem.batch, team,
        )  # fmt: skip
        for image in spoilt.nonzero().flatten().tolist():
            one = replace(problem, batch=1)
            result[image] = Vendor().run(one, first[image : image + 1], *operands[1:])[0][0]
        return (result,)

    def _weight_grad(
        self, problem: ConvProblem, error: torch.Tensor, source: torch.Tensor, team: int, target: Target
    ) -> tuple[torch.Tensor, ...]:
        weight = empty(problem.weight_shape)
        buffers = [empty((values + _LINE_BYTES // 4,)) for values in _sizes(problem, team, target)]
        spoilt = torch.zeros(1, dtype=torch.int32)
        _weight_grad_code(problem, target)(
            error.data_ptr(), source.data_ptr(), weight.data_ptr(), *(_aligned(buffer) for buffer in buffers),
            spoilt.data_ptr(), problem.batch, team,
        )  # fmt: skip
        if spoilt.item():
            return Vendor().run(problem, error, source)
        if not problem.epilogue.bias:
            return (weight,)
        return weight, error.sum([0, *range(2, error.dim())])


@lru_cache(maxsize=4096)
def _sizes(problem: ConvProblem, team: int, target: Target) -> tuple[int, int, int, int]:
    """Values of each buffer, in the order in which the compiled functions take them."""
    from convlens.kernels.cpu.fourier.weight_grad import choose_sums

    shape = shape_of(problem)
    if problem.direction == "weight_grad":
        return choose_sums(shape, problem.batch, target.lanes, target.registers).values(shape, team)
    return choose_cut(shape, problem.batch, target.lanes, target.registers).values(shape, team)


@lru_cache(maxsize=4096)
def _forward_code(problem: ConvProblem, target: Target) -> Callable[..., None]:
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.fourier.forward import build_forward

    shape = shape_of(problem)
    cut = choose_cut(shape, problem.batch, target.lanes, target.registers)
    return compiled("cpu.fourier", build_forward, shape=shape, cut=cut).run


@lru_cache(maxsize=4096)
def _weight_grad_code(problem: ConvProblem, target: Target) -> Callable[..., None]:
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.fourier.weight_grad import build_weight_grad, choose_sums

    shape = shape_of(problem)
    cut = choose_sums(shape, problem.batch, target.lanes, target.registers)
    return compiled("cpu.fourier.weight_grad", build_weight_grad, shape=shape, cut=cut).run


def _aligned(buffer: torch.Tensor) -> int:
    return -(-buffer.data_ptr() // _LINE_BYTES) * _LINE_BYTES
