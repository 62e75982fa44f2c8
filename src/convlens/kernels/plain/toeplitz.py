"""As a sparse matrix (row C2): its rows hold the same weights, shifted; backward is its transpose (row C5).

Which entries are not zero, and which weight each of them is, depends on shapes only: that pattern is built once
per shape and kept; a call gathers the weights into it.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from threading import RLock
from typing import NamedTuple

import torch

from convlens.kernels import limits
from convlens.kernels.contract import Kernel
from convlens.kernels.limits import over_budget
from convlens.kernels.plain import common
from convlens.window import ConvProblem, Direction

__all__ = ["Pattern", "Toeplitz", "pattern_of"]

_FLOATS = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")


class Pattern(NamedTuple):
    """A sparse matrix without its values, in compressed rows."""

    starts: torch.Tensor
    """int64, rows + 1: where each row begins."""
    columns: torch.Tensor
    """int64: the column of each entry."""
    weights: torch.Tensor
    """int64: which element of the flattened weight each entry is."""
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory of the three index arrays."""
        return sum(8 * index.numel() for index in (self.starts, self.columns, self.weights))

    def filled(self, values: torch.Tensor) -> torch.Tensor:
        """The sparse matrix with ``values`` at its entries."""
        _take_note()
        return torch.sparse_csr_tensor(self.starts, self.columns, values, self.shape, check_invariants=False)


@cache
def _take_note() -> None:
    """Let torch say once, unheard, that its compressed rows are young: nobody asked for them by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.float32)


class Toeplitz(Kernel):
    """``output = T @ input`` with ``T`` of ``(C_out*places) x (C_in*size)``, one column of operands an image."""

    name = "plain.toeplitz"
    algorithm = "toeplitz"
    precision = "exact"
    automatic = False
    batch_invariant = True
    any_strides = True

    def refusal(self, problem: ConvProblem) -> str | None:
        """Integers, devices other than the CPU, and matrices above the memory budget."""
        if problem.dtype not in _FLOATS:
            return f"needs a floating-point type, got {problem.dtype}"
        if problem.device != "cpu":
            return f"needs the CPU, got {problem.device}"
        return over_budget(self.workspace_bytes(problem))

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Pattern (kept), values, and the operands with the batch as columns."""
        item = 16 if problem.dtype.startswith("complex") else 8
        entries = entries_bound(problem)
        rows = math.prod(problem.output_shape[1:])
        # building and transposing the pattern takes several index arrays of the same length at once
        indices = 8 * (12 * entries + 2 * rows + 2 * math.prod(problem.input_shape[1:]))
        operands = 3 * (math.prod(problem.input_shape) + math.prod(problem.output_shape))
        return indices + item * (4 * entries + operands + 4 * math.prod(problem.weight_shape))

    def estimate_flops(self, problem: ConvProblem) -> float:
        """The multiply-adds of the definition."""
        return float(problem.flops)

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
        pattern = pattern_of(_shape_only(problem))
        matrix = pattern.filled(_flat(weight)[pattern.weights])
        out = matrix @ _as_columns(input)
        out = out.view(problem.out_channels, *problem.output_size, -1)
        if bias is not None:
            out += _widened(bias).view(-1, *(1,) * (problem.ndim + 1))
        return _from_columns(problem, out)

    def _input_grad(self, problem: ConvProblem, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        pattern = transposed_pattern_of(_shape_only(problem))
        matrix = pattern.filled(_flat(weight)[pattern.weights])
        out = matrix @ _as_columns(grad)
        return _from_columns(problem, out.view(problem.in_channels, *problem.input_size, -1))

    def _weight_grad(
        self, problem: ConvProblem, grad: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        pattern = pattern_of(_shape_only(problem))
        error, columns = _as_columns(grad), _as_columns(input)
        # error @ input.T, only where T has an entry; then each weight's shared entries are added up
        values = _sampled(pattern, error, columns)
        result = values.new_zeros(math.prod(problem.weight_shape))
        result.index_add_(0, pattern.weights, values)
        dtype = getattr(torch, problem.dtype)
        weight = result.to(dtype).view(problem.weight_shape)
        if not problem.epilogue.bias:
            return (weight,)
        return weight, error.view(problem.out_channels, -1).sum(1).to(dtype)


def entries_bound(problem: ConvProblem) -> int:
    """Entries of the matrix if no window reached into the border."""
    return math.prod(problem.output_shape[1:]) * math.prod(problem.weight_shape[1:])


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision: torch adds up a row one by one, which in single loses a digit to its own sums."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return _widened(weight).resolve_conj().reshape(-1)


def _as_columns(tensor: torch.Tensor) -> torch.Tensor:
    """``(N, ...)`` as ``(everything else, N)``."""
    return _widened(tensor).resolve_conj().flatten(1).t().contiguous()


def _from_columns(problem: ConvProblem, columns: torch.Tensor) -> torch.Tensor:
    """``(channels, *spatial, N)`` as the dense result ``(N, channels, *spatial)``."""
    return common.laid_out(problem, columns.movedim(-1, 1).unsqueeze(0))


def _sampled(pattern: Pattern, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Values of ``left @ right.T`` at the entries of the pattern."""
    if not left.is_complex():
        places = pattern.filled(left.new_zeros(pattern.columns.numel()))
        product: torch.Tensor = torch.sparse.sampled_addmm(places, left, right.t(), beta=0.0)
        return product.values()
    a_real, a_imag, b_real, b_imag = (part.contiguous() for t in (left, right) for part in (t.real, t.imag))
    real = _sampled(pattern, a_real, b_real) - _sampled(pattern, a_imag, b_imag)
    return torch.complex(real, _sampled(pattern, a_real, b_imag) + _sampled(pattern, a_imag, b_real))


# --- the pattern ----------------------------------------------------------------------------------------------


def _shape_only(problem: ConvProblem) -> ConvProblem:
    """The problem without what the pattern does not depend on, so that equal shapes share one."""
    direction: Direction = "forward"
    return ConvProblem(
        direction,
        1,
        problem.in_channels,
        problem.input_size,
        problem.out_channels,
        problem.kernel_size,
        problem.stride,
        problem.padding,
        problem.dilation,
        problem.groups,
    )


class _Patterns:
    """Patterns by shape, the least recently used forgotten first, within the memory budget of one matrix."""

    def __init__(self, build: Callable[[ConvProblem], Pattern]) -> None:
        self._build = build
        self._kept: OrderedDict[ConvProblem, Pattern] = OrderedDict()
        self._bytes = 0
        limits.on_change(self.clear)

    def __call__(self, problem: ConvProblem) -> Pattern:
        with _lock:
            found = self._kept.get(problem)
            if found is not None:
                self._kept.move_to_end(problem)
                return found
            found = self._kept[problem] = self._build(problem)
            self._bytes += found.nbytes
            budget = limits.matrix_budget()
            while budget is not None and self._bytes > budget and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return found

    def clear(self) -> None:
        with _lock:
            self._kept.clear()
            self._bytes = 0


_lock = RLock()


def _pattern(problem: ConvProblem) -> Pattern:
    """Which entries the matrix of a convolution has: rows ``(O, *out)``, columns ``(C, *input)``."""
    inside = torch.ones((), dtype=torch.bool)
    place = torch.zeros((), dtype=torch.int64)
    ndim = problem.ndim
    for axis in range(ndim):
        n, k = problem.input_size[axis], problem.kernel_size[axis]
        step = torch.arange(problem.output_size[axis]) * problem.stride[axis] - problem.padding[axis][0]
        at = step[:, None] + torch.arange(k) * problem.dilation[axis]
        # axes: every out axis first, then every kernel axis
        shape = [1] * (2 * ndim)
        shape[axis], shape[ndim + axis] = at.shape
        inside = inside & ((at >= 0) & (at < n)).view(shape)
        place = place * n + at.view(shape)
    places, taps = math.prod(problem.output_size), math.prod(problem.kernel_size)
    inside, place = inside.reshape(places, taps), place.reshape(places, taps)
    out_group, in_group = problem.out_channels // problem.groups, problem.in_channels // problem.groups
    out_channel = torch.arange(problem.out_channels)
    in_channel = (out_channel // out_group * in_group)[:, None] + torch.arange(in_group)
    # entries in order of (out channel, place, channel within the group, tap)
    full = (problem.out_channels, places, in_group, taps)
    keep = inside[None, :, None, :].expand(full)
    size = math.prod(problem.input_size)
    columns = (in_channel[:, None, :, None] * size + place[None, :, None, :]).expand(full)[keep]
    weight = torch.arange(math.prod(problem.weight_shape)).view(problem.out_channels, 1, in_group, taps)
    per_row = (inside.sum(1) * in_group).repeat(problem.out_channels)
    starts = torch.cat((per_row.new_zeros(1), per_row.cumsum(0)))
    shape2 = (problem.out_channels * places, problem.in_channels * size)
    return Pattern(starts, columns, weight.expand(full)[keep], shape2)


def _transposed(problem: ConvProblem) -> Pattern:
    """The pattern of the transposed matrix: rows ``(C, *input)``, columns ``(O, *out)``."""
    pattern = pattern_of(problem)
    rows = torch.repeat_interleave(torch.arange(pattern.shape[0]), pattern.starts.diff())
    order = torch.argsort(pattern.columns, stable=True)
    per_row = torch.bincount(pattern.columns, minlength=pattern.shape[1])
    starts = torch.cat((per_row.new_zeros(1), per_row.cumsum(0)))
    return Pattern(starts, rows[order], pattern.weights[order], (pattern.shape[1], pattern.shape[0]))


pattern_of = _Patterns(_pattern)
transposed_pattern_of = _Patterns(_transposed)
