"""`cpu.direct`: the definition, blocked for registers and caches, with output channels as lanes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from convlens.kernels.contract import Kernel, NativeCall, Prepared
from convlens.kernels.cpu.direct.geometry import Block, Shape, choose_block, shape_of
from convlens.kernels.cpu.epilogue import ACTIVATIONS
from convlens.kernels.cpu.memory import empty, workspace
from convlens.window import ConvProblem, Epilogue

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["Direct"]

_LEAST_DEST = 8
_MOST_TAPS = 512
_MOST_PASSES = 16
_LINE_BYTES = 64


class Direct(Kernel):
    """Output channels as lanes: dense and grouped, strided and dilated, in one to three axes, any batch.

    Sources are packed once with their padding, channels fastest (channels-last ones without padding are read as
    they lie); a block of places × channels is summed in registers over all taps and input channels.
    """

    name = "cpu.direct"
    algorithm = "direct"
    precision = "exact"
    batch_invariant = True
    efficiency = 0.75

    def refusal(self, problem: ConvProblem) -> str | None:
        """float32 on the CPU, groups with enough channels to fill vectors."""
        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        dest = problem.in_channels if problem.direction == "input_grad" else problem.out_channels
        if dest // problem.groups < _LEAST_DEST:
            return f"needs groups of at least {_LEAST_DEST} channels to compute, got {dest // problem.groups}"
        if math.prod(problem.kernel_size) > _MOST_TAPS:
            return f"needs windows of at most {_MOST_TAPS} places, got {problem.kernel_size}"
        if problem.direction == "input_grad" and math.prod(problem.stride) > _MOST_PASSES:
            return f"needs strides whose product is at most {_MOST_PASSES}, got {problem.stride}"
        if problem.epilogue.pool or problem.epilogue.activation not in ACTIVATIONS:
            return f"fuses bias and {', '.join(ACTIVATIONS[1:])} only"
        if problem.epilogue.residual and not problem.prepared:
            return "adds a residual only where weights stay"
        return None

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """The packed source, the weights or their sums, and what goes through a buffer."""
        from convlens.kernels.cpu.codegen import current

        return sum(4 * size + _LINE_BYTES for size in _sizes(problem, current()))

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Products with vectors filled up, and what packing moves."""
        from convlens.kernels.cpu.codegen import current

        dest = problem.in_channels if problem.direction == "input_grad" else problem.out_channels
        dest //= problem.groups
        lanes = current().lanes
        return problem.flops * (-(-dest // lanes) * lanes / dest) + 4.0 * problem.bytes

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        from convlens.kernels.cpu.codegen import current, threads
        from convlens.kernels.cpu.direct.multiply import spreads

        first, second = operands[0], operands[1]
        if first is None or second is None:
            raise AssertionError("operands are tensors")
        team, target = threads(), current()
        buffers = [empty((size + _LINE_BYTES // 4,)) for size in _sizes(problem, target)]
        places = [_aligned(buffer) for buffer in buffers]
        if problem.direction == "weight_grad":
            return self._weight_grad(problem, first, second, places, team, target)
        bias = operands[2] if problem.direction == "forward" else None
        problem = replace(problem, epilogue=replace(problem.epilogue, bias=bias is not None))
        shape = shape_of(_any_batch(problem))
        size = problem.output_shape if problem.direction == "forward" else problem.input_shape
        out = empty(size, channels_last=shape.channels_last)
        if not out.numel() or not first.numel():
            return (out.zero_(),)
        if any(not all(axis.taps for axis in axes) for axes in shape.passes):
            (buffers[2] if spreads(shape) else out).zero_()  # places that no window sees
        parts = _parts(problem, shape, target, team)
        _multiply_code(shape, parts, target).run(
            first.data_ptr(), second.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), places[0],
            places[1], places[2], problem.batch, team,
        )  # fmt: skip
        return (out,)

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: the weights' panels are packed once."""
        return None if problem.macs == 0 else self._prepared(problem, weight, bias, from_planes=False)

    def prepare_from_planes(
        self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> Prepared | None:
        """`prepare` for a channels-last problem whose input is contiguous: the first layer of a net."""
        return None if problem.macs == 0 else self._prepared(problem, weight, bias, from_planes=True)

    def _prepared(
        self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None, *, from_planes: bool
    ) -> Prepared:
        from convlens.kernels.cpu.codegen import current, threads

        problem = replace(problem, epilogue=replace(problem.epilogue, bias=bias is not None), prepared=False)
        team, target = threads(), current()
        shape = replace(shape_of(_any_batch(problem)), from_planes=from_planes)
        packed, panels, _ = _sizes(problem, target)
        if from_planes:
            packed = problem.batch * shape.packed_places * shape.pitch
        code = _multiply_code(shape, _parts(problem, shape, target, team), target)
        held = empty((panels + _LINE_BYTES // 4,))
        code.prepare(weight.contiguous().data_ptr(), _aligned(held), team)
        space = workspace(self.name, packed + _LINE_BYTES // 4) if shape.packs else None
        arguments = (
            0, 0 if bias is None else bias.data_ptr(), 0, 0 if space is None else _aligned(space), _aligned(held),
            problem.batch, team,
        )  # fmt: skip
        return NativeCall(code.multiply, arguments, 0, 2, (held, bias, space)).prepared()

    def _weight_grad(
        self, problem: ConvProblem, error: torch.Tensor, source: torch.Tensor, places: list[int], team: int,
        target: Target,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        weight = empty(problem.weight_shape)
        if problem.macs == 0:
            weight.zero_()
        else:
            shape, (function, packs_error) = shape_of(_any_batch(problem)), _sums_code(_any_batch(problem), target)
            function(
                error.data_ptr(), source.data_ptr(), weight.data_ptr(),
                places[0] if shape.packs else source.data_ptr(),
                places[2] if packs_error else error.data_ptr(), places[1], problem.batch, team,
            )  # fmt: skip
        if not problem.epilogue.bias:
            return (weight,)
        return weight, error.sum([0, *range(2, error.dim())])


def _any_batch(problem: ConvProblem) -> ConvProblem:
    """The code does not depend on the batch, nor a weight gradient's on its bias."""
    if problem.direction == "weight_grad":
        problem = replace(problem, epilogue=Epilogue())
    return replace(problem, batch=1)


def _block(shape: Shape, target: Target) -> Block:
    rows = min(axes[1].count for axes in shape.passes)
    columns = min(axes[2].count for axes in shape.passes)
    return choose_block(shape.dest_channels, rows, columns, target.lanes, target.registers)


def _parts(problem: ConvProblem, shape: Shape, target: Target, team: int) -> int:
    """Parts of the blocks of channels, so that there are items for every thread."""
    if team == 1:
        return 1
    block = _block(shape, target)
    axes = shape.passes[0]
    items = problem.batch * axes[0].count * shape.groups
    return min(block.blocks, max(1, -(-4 * team // items)))


@lru_cache(maxsize=4096)
def _sizes(problem: ConvProblem, target: Target) -> tuple[int, int, int]:
    """Values of the packed source, of panels or sums, and of results or errors with channels fastest."""
    from convlens.kernels.cpu.direct.multiply import spreads
    from convlens.kernels.cpu.direct.pack import pass_values
    from convlens.kernels.cpu.direct.weight_grad import choose_sums

    shape = shape_of(_any_batch(problem))
    packed = problem.batch * shape.packed_places * shape.pitch if shape.packs else 0
    if problem.direction == "weight_grad":
        cut = choose_sums(shape, target.lanes, target.registers)
        kept = problem.batch * shape.dest_places * shape.groups * cut.vectors * target.lanes
        return packed, cut.sums_values(shape), kept if cut.packs_gradient(shape) else 0
    block = _block(shape, target)
    kept = problem.batch * shape.dest_places * shape.groups * block.vectors * target.lanes
    return packed, shape.groups * sum(pass_values(shape, block)), kept if spreads(shape) else 0


def _aligned(buffer: torch.Tensor) -> int:
    return -(-buffer.data_ptr() // _LINE_BYTES) * _LINE_BYTES


@lru_cache(maxsize=4096)
def _multiply_code(shape: Shape, parts: int, target: Target) -> Any:
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct.multiply import build_multiply

    return compiled("cpu.direct", build_multiply, shape=shape, block=_block(shape, target), parts=parts)


@lru_cache(maxsize=4096)
def _sums_code(problem: ConvProblem, target: Target) -> tuple[Callable[..., None], bool]:
    from convlens.kernels.cpu.codegen import compiled
    from convlens.kernels.cpu.direct.weight_grad import build_weight_grad, choose_sums

    shape = shape_of(problem)
    cut = choose_sums(shape, target.lanes, target.registers)
    code = compiled("cpu.direct.weight_grad", build_weight_grad, shape=shape, cut=cut)
    return code.run, cut.packs_gradient(shape)
