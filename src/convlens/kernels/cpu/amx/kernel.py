"""`cpu.amx…`: convolution on AMX tiles in float32 accuracy, each operand a sum of bfloat16 parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch

from convlens.kernels.batches import rounded_batch
from convlens.kernels.contract import Kernel, NativeCall, Precision, Prepared
from convlens.kernels.cpu.amx.geometry import choose_slab, forward_pass, input_grad_passes, weight_parts
from convlens.kernels.cpu.amx.sums import Sums, choose_sums
from convlens.kernels.cpu.epilogue import ACTIVATIONS
from convlens.kernels.cpu.memory import empty, workspace
from convlens.kernels.vendor import Vendor
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["Amx", "AmxExact", "AmxFast"]

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

_LONG_SUM = 2048  # terms from which 4 products err at most 15.5 times as much as a direct sum
_LONG_GRADIENT = 768  # places from which 3 products of a weight gradient err at most 10 times as much
_MOST_PASSES = 8  # each residue of the stride is a pass with an object of its own


class Amx(Kernel):
    """Three to five products, at least 16 bits of each operand: error 2 to 16 times direct float32's.

    The longer the sum, the larger float32's own error and the fewer products keep the class; see `_products`.

    inf and NaN, and values that bfloat16 rounds to inf, are computed again by the vendor, so they come out as
    torch has them. Values below 1e-35 lose bits that a float32 would keep.
    """

    name = "cpu.amx"
    algorithm = "direct"
    precision: ClassVar[Precision] = "high"
    efficiency = 0.9
    parts: ClassVar[int] = 2
    products: ClassVar[int] = 5
    least_terms: ClassVar[int] = 96
    """Below so many terms a direct sum is too exact for this kernel's class."""
    least_places: ClassVar[int] = 128
    """The same for the weight gradient, whose terms are places."""

    def refusal(self, problem: ConvProblem) -> str | None:
        """See `Kernel`."""
        from convlens.kernels.cpu.codegen.target import current

        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the CPU, got {problem.dtype} on {problem.device}"
        if not current().has_amx:
            return "needs a processor with AMX tiles (amx-tile, amx-bf16)"
        if problem.epilogue.pool or problem.epilogue.activation not in ACTIVATIONS:
            return f"fuses bias and ReLU only, got {problem.epilogue}"
        if math.prod(problem.weight_shape) >= 2**31 or max(problem.input_size) >= 2**31:
            return "needs fewer than 2³¹ weights, and sizes below 2³¹"
        taps = math.prod(problem.kernel_size)
        if problem.direction == "weight_grad":
            return self._refuses_weight_grad(problem)
        reduced = (
            problem.in_channels if problem.direction == "forward" else problem.out_channels
        ) // problem.groups
        if reduced < 3 and problem.groups > 1:
            return f"needs at least 3 channels in each of several groups, got {reduced}"
        if reduced * taps < self.least_terms:
            return f"needs sums of at least {self.least_terms} terms to keep its error class, got {reduced * taps}"
        if max(problem.dilation) > 1 and reduced < 8:
            return f"needs at least 8 channels per group where dilated, got {reduced}"
        return None

    def _products(self, problem: ConvProblem) -> int:
        """Products that keep the error class, by how long the sums are (measured against direct sums)."""
        if self.precision != "high":
            return self.products
        if problem.direction == "weight_grad":
            return 3 if problem.batch * math.prod(problem.output_size) >= _LONG_GRADIENT else 5
        channels = problem.in_channels if problem.direction == "forward" else problem.out_channels
        return 4 if channels // problem.groups * math.prod(problem.kernel_size) >= _LONG_SUM else 5

    def _refuses_weight_grad(self, problem: ConvProblem) -> str | None:
        channels = problem.in_channels // problem.groups
        places = problem.batch * math.prod(problem.output_size)
        if channels < 6:
            return f"needs at least 6 channels per group, got {channels}"
        if self.precision == "exact" and math.prod(problem.output_size) == 1:
            return "needs images of more than one place to keep its error class"
        if 0 < places < self.least_places:
            return f"needs sums of at least {self.least_places} places to keep its error class, got {places}"
        return None

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Tiles run at about 12 times the vector units' rate; every product of parts is one of whole tiles."""
        if problem.macs == 0:
            return 0.0
        if problem.direction == "weight_grad":
            of = forward_pass(problem)
            places = math.prod(axis.grid for axis in of.axes)
            taps = math.prod(axis.taps for axis in of.axes)
            tiles = of.groups * places * math.ceil(of.source_channels / 16) * taps * of.dest_tiles * 256
        else:
            passes = [forward_pass(problem)] if problem.direction == "forward" else input_grad_passes(problem)[0]
            tiles = sum(
                one.groups * math.prod(axis.grid for axis in one.axes) * len(one.k_steps()) * one.dest_tiles * 512
                for one in passes
            )
        return 2.0 * problem.batch * tiles * self._products(problem) / 12

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Packed weights and one slab per thread; for the weight gradient, kept operands and every item's sums."""
        from convlens.kernels.cpu.amx.pack import weight_elements

        team = torch.get_num_threads()
        if problem.macs == 0:
            return 0
        if problem.direction == "weight_grad":
            cut = self._cut(problem, team)
            return 2 * team * cut.buffer_elements + 4 * _sum_elements(problem, cut)
        passes = [forward_pass(problem)] if problem.direction == "forward" else input_grad_passes(problem)[0]
        sizes = []
        products = self._products(problem)
        for one in passes:
            slab = choose_slab(one, self.parts, products, rounded_batch(problem.batch), team)
            sizes.append(2 * weight_elements(one, weight_parts(products)) + team * slab.buffer_bytes)
        return max(sizes)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        from convlens.kernels.cpu.amx.workspace import reused
        from convlens.kernels.cpu.codegen import current, threads

        if problem.direction == "weight_grad":
            return self._weight_grad(problem, *operands)
        source, weight = operands[0], operands[1]
        assert source is not None and weight is not None  # noqa: S101
        forward = problem.direction == "forward"
        result = _empty(problem.output_shape if forward else problem.input_shape, problem)
        if problem.macs == 0 and result.numel():
            return Vendor().run(problem, *operands)
        if result.numel() == 0:
            return (result,)
        team = threads()
        passes, gaps = _passes(self, problem, team, current())
        if gaps:
            result.zero_()
        source, weight = _dense(source, problem), weight.contiguous()
        bias = operands[2].data_ptr() if forward and operands[2] is not None else 0
        spoilt = torch.zeros(1, dtype=torch.int32)
        for function, weights, slabs in passes:
            function(
                source.data_ptr(), weight.data_ptr(), bias, result.data_ptr(),
                reused("weights", weights).data_ptr(), reused("slabs", slabs).data_ptr(), spoilt.data_ptr(),
                problem.batch, team,
            )  # fmt: skip
        return Vendor().run(problem, *operands) if spoilt.item() else (result,)

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: the weights' parts are packed once."""
        from convlens.kernels.cpu.amx.multiply import build_convolution
        from convlens.kernels.cpu.amx.pack import weight_elements
        from convlens.kernels.cpu.codegen import compiled, threads

        if problem.macs == 0:
            return None
        one, products, team, batch = forward_pass(problem), self._products(problem), threads(), problem.batch
        slab = choose_slab(one, self.parts, products, rounded_batch(batch), team)
        kernel = compiled(self.name, build_convolution, slab=slab)
        packed = torch.zeros(weight_elements(one, weight_parts(products)), dtype=torch.bfloat16)
        kernel.pack(weight.contiguous().data_ptr(), packed.data_ptr(), team)
        spoilt = torch.zeros(1, dtype=torch.int32)
        slabs = workspace("cpu.amx", team * slab.parts * slab.part_elements, torch.bfloat16)
        arguments = (
            0, 0 if bias is None else bias.data_ptr(), 0, packed.data_ptr(), slabs.data_ptr(), spoilt.data_ptr(),
            batch, team,
        )  # fmt: skip
        return NativeCall(kernel.multiply, arguments, 0, 2, (packed, bias, slabs)).prepared(spoilt)

    def _cut(self, problem: ConvProblem, team: int) -> Sums:
        batch = rounded_batch(problem.batch)
        return choose_sums(forward_pass(problem), self.parts, self._products(problem), batch, team)

    def _weight_grad(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        from convlens.kernels.cpu.amx.workspace import reused
        from convlens.kernels.cpu.codegen import current, threads

        grad, source = operands
        assert grad is not None and source is not None  # noqa: S101
        if problem.macs == 0:
            return Vendor().run(problem, *operands)
        grad, source = _dense(grad, problem), _dense(source, problem)
        weight, bias = torch.empty(problem.weight_shape), torch.empty(problem.out_channels)
        spoilt = torch.zeros(1, dtype=torch.int32)
        team = threads()
        function, kept, summed = _sums(self, problem, team, current())
        function(
            grad.data_ptr(), source.data_ptr(), weight.data_ptr(), bias.data_ptr(),
            reused("sums_operands", kept).data_ptr(), reused("sums", summed).data_ptr(), spoilt.data_ptr(),
            problem.batch, team,
        )  # fmt: skip
        if spoilt.item():
            return Vendor().run(problem, *operands)
        return (weight, bias) if problem.epilogue.bias else (weight,)


@lru_cache(maxsize=4096)
def _passes(
    kernel: Amx, problem: ConvProblem, team: int, target: Target
) -> tuple[list[tuple[Callable[..., None], int, int]], bool]:
    """Of each pass the compiled function and the elements of packed weights and all slabs; whether gaps are left.

    ``target`` is the one in force, as which `compiled` takes it.
    """
    from convlens.kernels.cpu.amx.multiply import build_convolution
    from convlens.kernels.cpu.amx.pack import weight_elements
    from convlens.kernels.cpu.codegen import compiled

    products, batch = kernel._products(problem), rounded_batch(problem.batch)
    passes, gaps = (
        ([forward_pass(problem)], False) if problem.direction == "forward" else input_grad_passes(problem)
    )
    found = []
    for one in passes:
        slab = choose_slab(one, kernel.parts, products, batch, team)
        function = compiled(kernel.name, build_convolution, slab=slab).run
        weights = weight_elements(one, weight_parts(products))
        found.append((function, weights, team * slab.parts * slab.part_elements))
    return found, gaps


@lru_cache(maxsize=4096)
def _sums(kernel: Amx, problem: ConvProblem, team: int, target: Target) -> tuple[Callable[..., None], int, int]:
    """The compiled weight gradient, and the elements of its kept operands and of its sums."""
    from convlens.kernels.cpu.amx.weight_grad import build_weight_grad
    from convlens.kernels.cpu.codegen import compiled

    cut = kernel._cut(problem, team)
    code = compiled(kernel.name, build_weight_grad, cut=cut, bias=problem.epilogue.bias)
    return code.run, team * cut.buffer_elements, 2 * _sum_elements(problem, cut)


class AmxExact(Amx):
    """Six products of three parts: all 24 bits of each operand, error like direct float32's."""

    name = "cpu.amx_exact"
    precision: ClassVar[Precision] = "exact"
    parts = 3
    products = 6
    least_terms = 32
    least_places = 64


class AmxFast(Amx):
    """Three products of two parts: 16 bits of each operand; error 5 to 21 times direct float32's."""

    name = "cpu.amx_fast"
    precision: ClassVar[Precision] = "fast"
    products = 3
    least_terms = 1
    least_places = 1


def _sum_elements(problem: ConvProblem, cut: Sums) -> int:
    """float32 elements of the sums of all items, and of the bias."""
    weights = problem.groups * cut.shares * cut.splits * cut.sum_elements
    return weights + cut.splits * problem.groups * cut.of.dest_tiles * 16


def _dense(value: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    if problem.layout == "channels_last" and problem.ndim in _CHANNELS_LAST:
        return value.contiguous(memory_format=_CHANNELS_LAST[problem.ndim])
    return value.contiguous()


def _empty(shape: tuple[int, ...], problem: ConvProblem) -> torch.Tensor:
    if problem.layout == "channels_last" and problem.ndim in _CHANNELS_LAST:
        return empty(shape, channels_last=True)
    return empty(shape)
