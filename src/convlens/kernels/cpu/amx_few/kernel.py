"""`cpu.amx_few…`: what it takes and refuses, and the calls of its compiled loops."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from convlens.kernels.batches import rounded_batch
from convlens.kernels.contract import Kernel, Precision, Prepared
from convlens.kernels.cpu.amx.geometry import weight_parts
from convlens.kernels.cpu.amx_few.geometry import Cut, choose_cut, pairs_of, tile_products
from convlens.kernels.cpu.direct_few.geometry import Shape
from convlens.kernels.cpu.memory import empty
from convlens.kernels.vendor import Vendor
from convlens.window import ConvProblem

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen import Target

__all__ = ["AmxFew", "AmxFewExact"]

_MOST_PAIRS = 32
_MOST_STEPS = 40
_NARROWEST = 16


class AmxFew(Kernel):
    """Forward convolutions of few input channels in planes, five products: at least 16 bits of each operand.

    `cpu.amx` fills tiles with channels, or with the taps of one row where there are few; here the taps of all rows
    and channels do. inf and NaN are computed again by the vendor, as there.
    """

    name = "cpu.amx_few"
    algorithm = "direct"
    precision: ClassVar[Precision] = "high"
    batch_invariant = True
    efficiency = 0.6
    parts: ClassVar[int] = 2
    products: ClassVar[int] = 5
    least_terms: ClassVar[int] = 96
    """Below so many terms a direct sum is too exact for this kernel's class."""

    def refusal(self, problem: ConvProblem) -> str | None:
        """See `Kernel`."""
        from convlens.kernels.cpu.codegen.target import current

        if problem.device != "cpu" or problem.dtype != "float32":
            return f"needs float32 on the cpu, got {problem.dtype} on {problem.device}"
        if not current().has_amx:
            return "needs a processor with AMX tiles (amx-tile, amx-bf16)"
        if problem.direction != "forward":
            return "computes outputs only"
        if problem.ndim > 2:
            return f"needs 1 or 2 axes, got {problem.ndim}"
        if problem.groups != 1:
            return f"needs 1 group, got {problem.groups}"
        if problem.layout == "channels_last" and problem.ndim == 2:
            return "needs contiguous layout"
        if max(problem.dilation) > 1:
            return f"needs neighbouring taps, got dilation {problem.dilation}"
        shape = Shape.of(problem)
        if len(pairs_of(shape.in_channels, shape.kernel_width)) > _MOST_PAIRS or _steps(shape) > _MOST_STEPS:
            return f"needs few input channels and taps, got {problem.in_channels} and {problem.kernel_size}"
        if shape.out_width < _NARROWEST or shape.out_width in range(_NARROWEST + 1, 2 * _NARROWEST):
            return f"needs rows of 16 outputs, or of 32 and more, got {shape.out_width}"
        if shape.taps < self.least_terms:
            return f"needs sums of at least {self.least_terms} terms to keep its error class, got {shape.taps}"
        epilogue = problem.epilogue
        if epilogue.pool or epilogue.residual or epilogue.activation not in ("none", "relu"):
            return "fuses bias and relu only"
        return None

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Tiles run at about 12 times the vector units' rate; packing and storing take about as long as moving."""
        if problem.macs == 0:
            return 0.0
        cut = self._cut(problem, 1, 2 << 20)
        return problem.batch * tile_products(cut) * 2 * 16 * 16 * 32 / 12 + 8.0 * problem.bytes

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Packed weights, and each thread's band of pair rows."""
        from convlens.kernels.cpu.codegen import current, threads

        if problem.macs == 0:
            return 0
        cut = self._cut(problem, threads(), current().l2_bytes)
        return 2 * self._weights(cut) + threads() * cut.thread_bytes

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`."""
        from convlens.kernels.cpu.amx.workspace import reused
        from convlens.kernels.cpu.codegen import current, threads

        source, weight, bias = operands
        assert source is not None and weight is not None  # noqa: S101
        if problem.macs == 0:
            return Vendor().run(problem, *operands)
        result, team = empty(problem.output_shape), threads()
        cut = self._cut(problem, team, current().l2_bytes)
        relu = problem.epilogue.activation == "relu"
        code = _code(self, cut, bias is not None, relu, current())
        spoilt = torch.zeros(1, dtype=torch.int32)
        code.run(
            weight.data_ptr(), source.data_ptr(), 0 if bias is None else bias.data_ptr(), result.data_ptr(),
            reused("few_weights", self._weights(cut)).data_ptr(),
            reused("few_pairs", team * cut.thread_bytes // 2).data_ptr(), spoilt.data_ptr(), problem.batch, team,
        )  # fmt: skip
        if not spoilt.item():
            return (result,)
        (again,) = Vendor().run(problem, *operands)
        return (again.relu_() if relu else again,)

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """See `Kernel`: the weights' parts are packed once."""
        from convlens.kernels.cpu.amx.workspace import reused
        from convlens.kernels.cpu.codegen import current, threads

        if problem.macs == 0:
            return None
        team, batch = threads(), problem.batch
        cut = self._cut(problem, team, current().l2_bytes)
        code = _code(self, cut, bias is not None, problem.epilogue.activation == "relu", current())
        packed = torch.zeros(self._weights(cut), dtype=torch.bfloat16)
        spoilt, elements = torch.zeros(1, dtype=torch.int32), team * cut.thread_bytes // 2
        code.pack(weight.contiguous().data_ptr(), packed.data_ptr(), spoilt.data_ptr(), team)
        if spoilt.item():
            return None
        fixed, bias_at = (packed.data_ptr(), spoilt.data_ptr()), 0 if bias is None else bias.data_ptr()
        multiply = code.multiply

        def run(source: torch.Tensor, out: torch.Tensor | None, keep: object = (packed, bias)) -> torch.Tensor:
            assert out is not None  # noqa: S101
            space = reused("few_pairs", elements).data_ptr()
            multiply(source.data_ptr(), bias_at, out.data_ptr(), fixed[0], space, fixed[1], batch, team)
            return out

        return Prepared(run, writes=True, spoilt=spoilt)

    def _cut(self, problem: ConvProblem, team: int, l2_bytes: int) -> Cut:
        batch = rounded_batch(problem.batch)
        return choose_cut(Shape.of(problem), self.parts, self.products, batch, team, l2_bytes)

    def _weights(self, cut: Cut) -> int:
        return cut.weight_elements(weight_parts(self.products))


class AmxFewExact(AmxFew):
    """Six products of three parts: all 24 bits of each operand, error like direct float32's."""

    name = "cpu.amx_few_exact"
    precision: ClassVar[Precision] = "exact"
    parts = 3
    products = 6
    least_terms = 24


def _steps(shape: Shape) -> int:
    return Cut(shape, 1, 1, 6).steps


@lru_cache(maxsize=4096)
def _code(kernel: AmxFew, cut: Cut, bias: bool, relu: bool, target: Target) -> Any:
    from convlens.kernels.cpu.amx_few.tiles import build
    from convlens.kernels.cpu.codegen import compiled

    return compiled(kernel.name, build, cut=cut, bias=bias, relu=relu)
