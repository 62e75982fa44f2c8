"""`cpu.winograd…`: fewer multiplications for windows of 3, 5 and 7 at stride 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch

from convlens.kernels.batches import rounded_batch
from convlens.kernels.contract import Kernel, NativeCall, Precision, Prepared
from convlens.kernels.cpu.epilogue import ACTIVATIONS
from convlens.kernels.cpu.memory import empty, workspace
from convlens.kernels.cpu.winograd.geometry import Cut, Shape, choose_cut, shape_of
from convlens.kernels.vendor import Vendor
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target
    from convlens.kernels.cpu.winograd.weight_grad import Sums

__all__ = ["Winograd", "WinogradExact", "WinogradFast"]


_LEAST_CHANNELS = 16
_LEAST_PLACES = 256
_LINE = 16  # values of a cache line, to which buffers are aligned
_ASIDE = 4 * 4 * _LINE + 64  # bytes for that, and for the marks of images that are not finite


class Winograd(Kernel):
    """F(4, 3), F(4, 5) and F(2, 5): up to 6.25 times fewer multiplications."""

    name = "cpu.winograd"
    algorithm = "winograd"
    precision: ClassVar[Precision] = "high"
    batch_invariant = True
    efficiency = 0.55
    steps: ClassVar[dict[int, tuple[int, ...]]] = {1: (1,), 3: (2, 4), 5: (2, 4)}

    def refusal(self, problem: ConvProblem) -> str | None:
        """float32 on the CPU, one or two axes, stride 1."""
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if problem.ndim > 2:
            return f"needs 1 or 2 axes, got {problem.ndim}"
        if max(problem.stride) > 1 or max(problem.dilation) > 1:
            return f"needs stride 1 and no dilation, got {problem.stride} and {problem.dilation}"
        if problem.groups != 1:
            return f"needs 1 group, got {problem.groups}"
        if any(k not in self.steps for k in problem.kernel_size) or max(problem.kernel_size) == 1:
            return f"needs windows of {', '.join(map(str, self.steps))}, got {problem.kernel_size}"
        if any(max(p) >= k for p, k in zip(problem.padding, problem.kernel_size, strict=True)):
            return f"needs padding smaller than the window, got {problem.padding} and {problem.kernel_size}"
        if problem.epilogue.pool or problem.epilogue.activation not in ACTIVATIONS:
            return f"fuses bias and {', '.join(ACTIVATIONS[1:])} only"
        return self._refuses_few_terms(problem)

    def _refuses_few_terms(self, problem: ConvProblem) -> str | None:
        """A tile shares its rounding errors: an output of far fewer terms than its neighbours would be worse."""
        backward = problem.direction == "input_grad"
        if problem.direction == "weight_grad":
            for size, window in zip(problem.output_size, problem.kernel_size, strict=True):
                if 1 < window > size // 2:
                    return f"needs outputs of twice the window, got {problem.output_size}"
            places = problem.batch * math.prod(problem.output_size)
            if 0 < places < _LEAST_PLACES:
                return f"needs at least {_LEAST_PLACES} places to sum over, got {places}"
            return None
        summed = problem.out_channels if backward else problem.in_channels
        if summed < _LEAST_CHANNELS:
            return f"needs at least {_LEAST_CHANNELS} channels to sum over, got {summed}"
        source = problem.output_size if backward else problem.input_size
        if any(n < k for n, k in zip(source, problem.kernel_size, strict=True)):
            return f"needs sizes of at least the window, got {source}"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Transformed weights, and every thread's bands."""
        from convlens.kernels.cpu.codegen import current, threads

        if problem.direction == "weight_grad":
            sums_shape, sums = self.sums(problem, current())
            return 4 * sums.values(sums_shape, threads()) + _ASIDE
        shape, cut = self.cut(problem, threads(), current())
        return 4 * (cut.weight_values(shape) + threads() * cut.thread_values(shape)) + _ASIDE + 4 * problem.batch

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Products, and ten operations on every number that the transforms write or read."""
        shape = shape_of(problem, self.tile_steps(problem))
        places = shape.points * shape.tiles * problem.batch
        channels = shape.source_channels + shape.dest_channels
        return 2.0 * places * shape.source_channels * shape.dest_channels + 10.0 * places * channels

    def tile_steps(self, problem: ConvProblem) -> tuple[int, ...]:
        """Outputs per tile along each axis: those of least products, the fewest points among equals."""
        choices = itertools.product(*(self.steps[k] for k in problem.kernel_size))

        def cost(steps: tuple[int, ...]) -> tuple[int, int]:
            shape = shape_of(problem, steps)
            return shape.points * shape.tiles, shape.points

        return min(choices, key=cost)

    def cut(self, problem: ConvProblem, team: int, target: Target) -> tuple[Shape, Cut]:
        """How the problem is computed."""
        shape = shape_of(problem, self.tile_steps(problem))
        return shape, choose_cut(
            shape, rounded_batch(problem.batch), team, target.lanes, target.registers, target.l2_bytes
        )

    def sums(self, problem: ConvProblem, target: Target) -> tuple[Shape, Sums]:
        """How a weight gradient is computed."""
        from convlens.kernels.cpu.winograd.weight_grad import choose_sums

        shape = shape_of(problem, self.tile_steps(problem))
        return shape, choose_sums(shape, rounded_batch(problem.batch), target.lanes, target.registers)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`. inf and NaN would spread over a tile: the vendor computes an image that has any."""
        from convlens.kernels.cpu.codegen import current, threads

        if problem.direction == "weight_grad":
            return self._weight_grad(problem, *operands)
        source, weight = operands[0], operands[1]
        bias = operands[2] if problem.direction == "forward" else None
        if source is None or weight is None:
            raise AssertionError("operands are tensors")
        if problem.epilogue.bias != (bias is not None):
            problem = replace(problem, epilogue=replace(problem.epilogue, bias=bias is not None))
        if problem.macs == 0:
            return Vendor().run(problem, *operands)
        shape_out = problem.output_shape if problem.direction == "forward" else problem.input_shape
        result = empty(shape_out, channels_last=problem.layout == "channels_last" and problem.ndim > 1)
        team = threads()
        function, panel_values, thread_values = self._code(problem, team, current())
        panels, buffers = empty((panel_values + _LINE,)), empty((team * thread_values + _LINE,))
        spoilt = torch.zeros(problem.batch, dtype=torch.int32)
        function(
            source.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(),
            _aligned(panels), _aligned(buffers), spoilt.data_ptr(), problem.batch, team,
        )  # fmt: skip
        for image in (
            spoilt.nonzero().flatten().tolist()
        ):  # each by itself, so that no image's bits depend on others
            one = replace(problem, batch=1)
            result[image] = Vendor().run(one, source[image : image + 1], *operands[1:])[0][0]
        return (result,)

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: the weights are transformed once."""
        from convlens.kernels.cpu.codegen import compiled, current, threads
        from convlens.kernels.cpu.winograd.forward import build_forward

        if problem.macs == 0:
            return None
        problem = replace(problem, epilogue=replace(problem.epilogue, bias=bias is not None), prepared=False)
        team, batch = threads(), problem.batch
        shape, cut = self.cut(problem, team, current())
        code = compiled("cpu.winograd", build_forward, shape=shape, cut=cut)
        held = torch.empty(cut.weight_values(shape) + _LINE)
        panels = _aligned(held)
        code.pack(weight.contiguous().data_ptr(), panels, team)
        spoilt = torch.zeros(batch, dtype=torch.int32)
        buffers = workspace("cpu.winograd", team * cut.thread_values(shape) + _LINE)
        arguments = (
            0, 0 if bias is None else bias.data_ptr(), 0, panels, _aligned(buffers), spoilt.data_ptr(), batch,
            team,
        )  # fmt: skip
        return NativeCall(code.multiply, arguments, 0, 2, (held, bias, buffers)).prepared(spoilt)

    def _weight_grad(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        from convlens.kernels.cpu.codegen import current, threads

        error, source = operands[0], operands[1]
        if error is None or source is None:
            raise AssertionError("operands are tensors")
        if problem.macs == 0:
            return Vendor().run(problem, *operands)
        team = threads()
        function, sizes = _weight_grad_code(self, problem, team, current())
        weight = empty(problem.weight_shape)
        buffers = [empty((size + _LINE,)) for size in sizes]
        spoilt = torch.zeros(1, dtype=torch.int32)
        addresses = [_aligned(buffer) for buffer in buffers]
        function(
            error.data_ptr(), source.data_ptr(), weight.data_ptr(), *addresses, spoilt.data_ptr(), problem.batch,
            team,
        )  # fmt: skip
        if spoilt.item():
            return Vendor().run(problem, *operands)
        if not problem.epilogue.bias:
            return (weight,)
        return weight, error.sum([0, *range(2, error.dim())])

    def _code(self, problem: ConvProblem, team: int, target: Target) -> tuple[Callable[..., None], int, int]:
        return _code(self, problem, team, target)


@lru_cache(maxsize=4096)
def _code(
    kernel: Winograd, problem: ConvProblem, team: int, target: Target
) -> tuple[Callable[..., None], int, int]:
    """The compiled function, and how many values of weights and of each thread's buffers it needs."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.winograd.forward import build_forward

    shape, cut = kernel.cut(problem, team, target)
    code = compiled("cpu.winograd", build_forward, shape=shape, cut=cut)
    return code.run, cut.weight_values(shape), cut.thread_values(shape)


@lru_cache(maxsize=4096)
def _weight_grad_code(
    kernel: Winograd, problem: ConvProblem, team: int, target: Target
) -> tuple[Callable[..., None], list[int]]:
    """The compiled function, and how many values each of its buffers needs."""
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.winograd.weight_grad import build_weight_grad

    shape, cut = kernel.sums(problem, target)
    code = compiled("cpu.winograd.weight_grad", build_weight_grad, shape=shape, cut=cut)
    sizes = [cut.source_values(shape), cut.error_values(shape), shape.points * cut.sums_step(shape)]
    return code.run, [*sizes, team * cut.packed_values(shape)]


def _aligned(buffer: torch.Tensor) -> int:
    """The first address of a buffer that begins a cache line."""
    return -(-buffer.data_ptr() // (4 * _LINE)) * (4 * _LINE)


class WinogradExact(Winograd):
    """F(2, 3): 2.25 times fewer multiplications, with an error like a direct sum's."""

    name = "cpu.winograd_exact"
    precision: ClassVar[Precision] = "exact"
    steps: ClassVar[dict[int, tuple[int, ...]]] = {1: (1,), 3: (2,)}


class WinogradFast(Winograd):
    """F(6, 3) too: 5 times fewer multiplications, with 15 to 20 times the error of a direct sum."""

    name = "cpu.winograd_fast"
    precision: ClassVar[Precision] = "fast"
    steps: ClassVar[dict[int, tuple[int, ...]]] = {1: (1,), 3: (2, 4, 6), 5: (2, 4), 7: (2,)}
