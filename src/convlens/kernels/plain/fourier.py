"""Through the Fourier transform (row C4): any size, in tiles where that takes fewer operations.

A correlation of finite signals is a product of spectra. The output is cut into tiles; each needs its own piece
of the input, ``reach - 1`` longer (overlap-save), and all pieces share one spectrum of the kernel. Real operands
use the real transform. A stride computes every place and keeps some; dilation puts zeros into the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch.nn import functional as F

from convlens.kernels.contract import Kernel
from convlens.kernels.plain import common
from convlens.kernels.plain.definition import Definition
from convlens.window import ConvProblem, Epilogue

__all__ = ["Fourier", "Tiling", "tiling_of"]

_FLOATS = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")
_PIECES_BYTES = 64 << 20
"""Spectra of input pieces held at once, as long as they are of more than one image."""
_USUAL_BATCH = 8
"""What a tiling is chosen for, whatever the batch."""


class Tiling(NamedTuple):
    """How one problem is cut, per axis."""

    transform: tuple[int, ...]
    """Length of every Fourier transform."""
    step: tuple[int, ...]
    """Outputs (at stride 1) that one tile gives."""
    tiles: tuple[int, ...]
    """Number of tiles."""


class Fourier(Kernel):
    """Spectra of pieces and kernel, a matrix product over channels at every frequency, and back."""

    name = "plain.fourier"
    algorithm = "fourier"
    automatic = False
    precision = "high"
    efficiency = 0.15
    any_strides = True

    def refusal(self, problem: ConvProblem) -> str | None:
        """Integers."""
        return None if problem.dtype in _FLOATS else f"needs a floating-point type, got {problem.dtype}"

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Spectrum of the kernel, spectra of the pieces of a few images, bordered operands, sums at stride 1."""
        item = common.compute_itemsize(problem)
        tiling = tiling_of(_shape_only(problem))
        frequencies = _frequencies(problem, tiling.transform)
        kernel = math.prod(problem.weight_shape[:2]) * (2 * frequencies + math.prod(tiling.transform))
        grown = math.prod(
            (t - 1) * s + f for t, s, f in zip(tiling.tiles, tiling.step, tiling.transform, strict=True)
        )
        planes = problem.batch * (problem.in_channels + problem.out_channels)
        per_image = _image_bytes(problem, tiling)
        return 4 * per_image * _images(problem, tiling) + item * (3 * kernel + 3 * planes * grown)

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Transforms and products of the tiling chosen."""
        tiling = tiling_of(_shape_only(problem))
        return _cost(problem, tiling.transform, tiling.tiles, problem.batch)

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Kernel`. A transform spreads NaN and inf over its tile: then the definition decides."""
        first, second = (common.widened(t) for t in operands[:2] if t is not None)
        if problem.direction == "forward":
            results = self._forward(problem, first, second, operands[2])
        elif problem.direction == "input_grad":
            results = self._input_grad(problem, first, second)
        else:
            results = self._weight_grad(problem, first, second)
        if all(bool(torch.isfinite(result.sum())) for result in results):
            return results
        return Definition().run(problem, *operands)

    def _forward(
        self, problem: ConvProblem, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        sums = _correlate(problem, common.bordered(problem, input), _dilated(problem, weight))
        out = sums[common.along(slice(None, None, s) for s in problem.stride)]
        if bias is not None:
            out = out + common.widened(bias).view(problem.groups, -1, *(1,) * (problem.ndim + 1))
        return (common.laid_out(problem, out),)

    def _input_grad(
        self, problem: ConvProblem, grad: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        # the error, spread by the stride, correlated with the kernel turned around, wherever they meet
        around = []
        for size, m, s, r in zip(
            common.bordered_size(problem), problem.output_size, problem.stride, _reach(problem), strict=True
        ):
            around.append((r - 1, size - (m - 1) * s - 1))
        spread = F.pad(_spread(problem, grad), [n for pair in reversed(around) for n in pair])
        turned = _dilated(problem, weight).flip(tuple(range(2, 2 + problem.ndim)))
        turned = turned.unflatten(0, (problem.groups, -1)).transpose(1, 2).flatten(0, 1)
        sums = _correlate(problem, spread, turned)
        return (common.laid_out(problem, common.cropped(problem, sums)),)

    def _weight_grad(
        self, problem: ConvProblem, grad: torch.Tensor, input: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        tiling = tiling_of(_shape_only(problem))
        padded, spread = common.bordered(problem, input), _spread(problem, grad)
        total: torch.Tensor | None = None
        for some in _split(problem, tiling):
            pieces = _by_frequency(_spectra(_pieces(padded[some], tiling, tiling.transform), tiling), problem)
            errors = _by_frequency(_spectra(_pieces(spread[some].conj(), tiling, tiling.step), tiling), problem)
            one = errors.mH @ pieces
            total = one if total is None else total.add_(one)
        if total is None:
            raise AssertionError("empty batches are torch's")
        real = not grad.is_complex()
        full = _back(total.movedim(1, -1).unflatten(-1, _frequency_shape(real, tiling.transform)), tiling, real)
        taps = (slice(0, d * (k - 1) + 1, d) for d, k in zip(problem.dilation, problem.kernel_size, strict=True))
        dtype = getattr(torch, problem.dtype)
        weight = full[common.along(taps)].flatten(0, 1).to(dtype).contiguous()
        if not problem.epilogue.bias:
            return (weight,)
        return weight, grad.sum([0, *range(2, grad.dim())]).to(dtype)


# --- pieces and spectra ---------------------------------------------------------------------------------------


def _correlate(problem: ConvProblem, padded: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """``(N, C, *size)`` with ``(O, C/g, *reach)`` at stride 1, as ``(groups, O/g, N, *needed)``."""
    tiling = tiling_of(_shape_only(problem))
    groups, real = problem.groups, not padded.is_complex()
    # the sum is of weight times input, so the conjugate that a product of spectra puts on one is taken back
    turned = torch.fft.rfftn(kernel, tiling.transform) if real else torch.fft.fftn(kernel.conj(), tiling.transform)
    weights = turned.conj().flatten(2).unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
    needed = _needed(problem)
    sums = padded.new_empty(groups, kernel.shape[0] // groups, problem.batch, *needed)
    ndim = problem.ndim
    for some in _split(problem, tiling):
        spectra = _spectra(_pieces(padded[some], tiling, tiling.transform), tiling)
        products = _by_frequency(spectra, problem) @ weights
        products = products.unflatten(2, (-1, *tiling.tiles)).movedim((-1, 1), (1, -1))
        tiles = _back(products.unflatten(-1, _frequency_shape(real, tiling.transform)), tiling, real)
        tiles = tiles[common.along(slice(0, t) for t in tiling.step)]
        # (groups, O/g, n, *tiles, *step) to (groups, O/g, n, *size)
        order = [
            axis for pair in zip(range(3, 3 + ndim), range(3 + ndim, 3 + 2 * ndim), strict=True) for axis in pair
        ]
        whole = tiles.permute(0, 1, 2, *order).reshape(
            *tiles.shape[:3], *(n * t for n, t in zip(tiling.tiles, tiling.step, strict=True))
        )
        sums[:, :, some] = whole[common.along(slice(0, m) for m in needed)]
    return sums


def _pieces(tensor: torch.Tensor, tiling: Tiling, length: Sequence[int]) -> torch.Tensor:
    """``(n, C, *size)`` cut to ``(n, C, *tiles, *length)``, zeros beyond the end."""
    ndim = len(length)
    wanted = [(count - 1) * s + n for count, s, n in zip(tiling.tiles, tiling.step, length, strict=True)]
    missing = [want - have for want, have in zip(wanted, tensor.shape[2:], strict=True)]
    if any(missing):
        tensor = F.pad(tensor, [n for amount in reversed(missing) for n in (0, amount)])
    for axis in range(ndim):
        tensor = tensor.unfold(2 + axis, length[axis], tiling.step[axis])
    return tensor


def _spectra(pieces: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Fourier transform of the last axes, at the transform's length."""
    transform = torch.fft.fftn if pieces.is_complex() else torch.fft.rfftn
    axes = tuple(range(-len(tiling.transform), 0))
    result: torch.Tensor = transform(pieces, tiling.transform, axes)
    return result


def _by_frequency(spectra: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """``(n, C, *tiles, *frequencies)`` as ``(groups, frequencies, n*tiles, C/groups)``."""
    ndim = problem.ndim
    flat: torch.Tensor = spectra.flatten(-ndim).flatten(2, 1 + ndim).unflatten(1, (problem.groups, -1))
    # n, groups, C/g, tiles, frequencies
    return flat.permute(1, 4, 0, 3, 2).flatten(2, 3)


def _back(spectra: torch.Tensor, tiling: Tiling, real: bool) -> torch.Tensor:
    """Inverse transform of the last axes."""
    transform = torch.fft.irfftn if real else torch.fft.ifftn
    result: torch.Tensor = transform(spectra, tiling.transform, tuple(range(-len(tiling.transform), 0)))
    return result


def _frequency_shape(real: bool, transform: tuple[int, ...]) -> tuple[int, ...]:
    return (*transform[:-1], transform[-1] // 2 + 1) if real else transform


def _dilated(problem: ConvProblem, weight: torch.Tensor) -> torch.Tensor:
    """The kernel with dilation's zeros written out."""
    if all(d == 1 for d in problem.dilation):
        return weight
    wide = weight.new_zeros(*weight.shape[:2], *_reach(problem))
    wide[common.along(slice(None, None, d) for d in problem.dilation)] = weight
    return wide


def _spread(problem: ConvProblem, grad: torch.Tensor) -> torch.Tensor:
    """The error at stride 1: zeros where the stride skipped."""
    if all(s == 1 for s in problem.stride):
        return grad
    sizes = ((m - 1) * s + 1 for m, s in zip(problem.output_size, problem.stride, strict=True))
    wide = grad.new_zeros(*grad.shape[:2], *sizes)
    wide[common.along(slice(None, None, s) for s in problem.stride)] = grad
    return wide


# --- the tiling -----------------------------------------------------------------------------------------------


def _reach(problem: ConvProblem) -> tuple[int, ...]:
    return tuple(d * (k - 1) + 1 for d, k in zip(problem.dilation, problem.kernel_size, strict=True))


def _needed(problem: ConvProblem) -> tuple[int, ...]:
    """Places at stride 1 that one direction computes (or, for the weight's gradient, sums over)."""
    if problem.direction == "input_grad":
        return common.bordered_size(problem)
    return tuple((m - 1) * s + 1 for m, s in zip(problem.output_size, problem.stride, strict=True))


def _frequencies(problem: ConvProblem, transform: tuple[int, ...]) -> int:
    return math.prod(_frequency_shape(not problem.dtype.startswith("complex"), transform))


def _cost(problem: ConvProblem, transform: tuple[int, ...], tiles: tuple[int, ...], batch: int) -> float:
    """Operations: transforms (weighed 3, as they run at a third of a product's speed) and products."""
    size = math.prod(transform)
    channels, pieces = problem.in_channels + problem.out_channels, batch * math.prod(tiles)
    pairs = problem.in_channels * problem.out_channels // problem.groups
    transforms = 2.5 * size * math.log2(max(size, 2)) * (pieces * channels + pairs)
    return 3 * transforms + 8.0 * _frequencies(problem, transform) * pieces * pairs


def _shape_only(problem: ConvProblem) -> ConvProblem:
    """The tiling must not depend on the batch, or an image's bits would."""
    return replace(problem, batch=_USUAL_BATCH, layout="contiguous", epilogue=Epilogue())


@lru_cache(maxsize=4096)
def tiling_of(problem: ConvProblem) -> Tiling:
    """The cheapest way to cut a problem, among lengths that transforms like."""
    choices = []
    for needed, reach in zip(_needed(problem), _reach(problem), strict=True):
        choices.append([(f, -(-needed // (f - reach + 1))) for f in _lengths(reach, needed + reach - 1)])
    cuts = (tuple(zip(*cut, strict=True)) for cut in product(*choices))
    transform, tiles = min(cuts, key=lambda cut: _cost(problem, cut[0], cut[1], problem.batch))
    step = tuple(f - r + 1 for f, r in zip(transform, _reach(problem), strict=True))
    return Tiling(transform, step, tiles)


def _lengths(reach: int, whole: int) -> list[int]:
    """Even products of 2, 3 and 5 from twice the reach on, a quarter apart, and one that holds everything."""
    last = _smooth(whole)
    lengths, length = [last], _smooth(min(2 * reach, whole))
    while length < last:
        lengths.append(length)
        length = _smooth(length + max(length // 4, 1))
    return lengths


def _smooth(least: int) -> int:
    """The smallest number from ``least`` on that is a product of 2, 3 and 5, even above 1."""
    number = max(least, 1)
    while True:
        rest = number
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and (number == 1 or number % 2 == 0):
            return number
        number += 1


def _image_bytes(problem: ConvProblem, tiling: Tiling) -> int:
    """Spectra of one image's pieces and of its results."""
    channels = problem.in_channels + problem.out_channels
    complex_item = common.compute_itemsize(problem) * (1 if problem.dtype.startswith("complex") else 2)
    return complex_item * channels * math.prod(tiling.tiles) * _frequencies(problem, tiling.transform)


def _images(problem: ConvProblem, tiling: Tiling) -> int:
    return max(1, min(problem.batch, _PIECES_BYTES // max(_image_bytes(problem, tiling), 1)))


def _split(problem: ConvProblem, tiling: Tiling) -> Iterator[slice]:
    step = _images(problem, tiling)
    return (slice(start, min(start + step, problem.batch)) for start in range(0, problem.batch, step))
