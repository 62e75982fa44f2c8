"""The derivation of the lectures as code (row A4): a convolution is a dense layer with two principles built in.

A dense layer on an image is a tensor ``W[i, j, k, l]``: output place ``(i, j)`` weighs input place ``(k, l)``. If
the weights depend on ``(k-i, l-j)`` only (*translation invariance*) and are zero beyond a few places
(*locality*), what is left is a kernel. Here both directions are computed, and the matrix in between (row C2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from convlens.errors import ArgumentError, BudgetError, ShapeError
from convlens.kernels.limits import over_budget
from convlens.ops import checks
from convlens.ops.arguments import as_ints, conv_padding
from convlens.window import windows_that_fit

__all__ = ["as_convolution", "dense_tensor", "toeplitz_matrix"]


def toeplitz_matrix(
    weight: torch.Tensor,
    input_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """The sparse matrix ``T`` with ``conv(x, weight).flatten() == T @ x.flatten()`` (row C2).

    Its rows hold the same weights, shifted; ``T.t()`` takes the error of the output back to the input (row C5). In
    one dimension it is a Toeplitz matrix, in two a doubly blocked one. Differentiable in ``weight``.

    Args:
        weight: ``(O, C/groups, *kernel)``, one to three spatial axes.
        input_shape: ``(C, *spatial)``; for a single channel ``spatial`` alone will do.
        stride: as in `conv2d`.
        padding: as in `conv2d`, zeros.
        dilation: as in `conv2d`.
        groups: as in `conv2d`.

    Returns:
        Sparse COO tensor ``(O * prod(out), C * prod(spatial))``; ``.to_dense()`` writes it out.

    Raises:
        ShapeError: shapes that do not fit.
        BudgetError: its entries would take more memory than `convlens.kernels.limits.matrix_budget`.
    """
    ndim = weight.dim() - 2
    if ndim not in (1, 2, 3):
        raise ShapeError("weight", "3 to 5 dimensions (O, C/groups, *kernel)", tuple(weight.shape))
    shape = tuple(int(n) for n in input_shape)
    if len(shape) == ndim:
        shape = (1, *shape)
    if len(shape) != ndim + 1:
        raise ShapeError("input_shape", f"{ndim + 1} numbers (C, *spatial)", shape)
    stride = as_ints(stride, ndim, "stride", at_least=1)
    dilation = as_ints(dilation, ndim, "dilation", at_least=1)
    kernel = tuple(weight.shape[2:])
    pairs = conv_padding(padding, shape[1:], kernel, stride, dilation)
    # shapes are checked as those of an input, none of whose elements exist
    stand_in = torch.empty(shape, device="meta")
    checks.check_channels(stand_in, weight, checks.check_groups(groups), 0)
    checks.check_fits(stand_in, kernel, dilation, pairs)
    out = tuple(map(windows_that_fit, shape[1:], kernel, stride, dilation, pairs))
    _require_budget(math.prod(out) * weight.numel(), weight)
    rows, columns, entries = _entries(
        shape, tuple(weight.shape), out, stride, [p[0] for p in pairs], dilation, groups
    )
    size = (weight.shape[0] * math.prod(out), math.prod(shape))
    values = weight.reshape(-1)[entries.to(weight.device)]
    indices = torch.stack([rows, columns]).to(weight.device)
    return torch.sparse_coo_tensor(indices, values, size, is_coalesced=True, check_invariants=False)


def _require_budget(entries: int, weight: torch.Tensor) -> None:
    refusal = over_budget(entries * (6 * 8 + 2 * weight.element_size()))
    if refusal is not None:
        raise BudgetError("input_shape", "a matrix within the memory budget", refusal, "use ops.conv2d instead")


def _entries(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    out: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and weight of every entry, in order of rows and, within one, of columns."""
    ndim = len(out)
    inside = torch.ones((), dtype=torch.bool)
    place = torch.zeros((), dtype=torch.int64)
    for axis in range(ndim):
        first = torch.arange(out[axis]) * stride[axis] - before[axis]
        at = first[:, None] + torch.arange(weight_shape[2 + axis]) * dilation[axis]
        view = [1] * (2 * ndim)
        view[axis], view[ndim + axis] = at.shape
        inside = inside & ((at >= 0) & (at < shape[1 + axis])).view(view)
        place = place * shape[1 + axis] + at.view(view)
    places, taps = math.prod(out), math.prod(weight_shape[2:])
    channels = torch.arange(weight_shape[0])
    first_channel = channels // (weight_shape[0] // groups) * weight_shape[1]
    full = (weight_shape[0], places, weight_shape[1], taps)
    keep = inside.reshape(1, places, 1, taps).expand(full)
    rows = (channels[:, None] * places + torch.arange(places)).view(weight_shape[0], places, 1, 1)
    channel = first_channel.view(-1, 1, 1, 1) + torch.arange(weight_shape[1]).view(1, 1, -1, 1)
    columns = channel * math.prod(shape[1:]) + place.reshape(1, places, 1, taps)
    entries = torch.arange(math.prod(weight_shape)).view(weight_shape[0], 1, weight_shape[1], taps)
    return rows.expand(full)[keep], columns.expand(full)[keep], entries.expand(full)[keep]


def dense_tensor(
    weight: torch.Tensor,
    input_size: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """The dense layer that a convolution is: ``W[i,j,k,l]`` with ``Y[i,j] = sum W[i,j,k,l] X[k,l]`` (row A4).

    Args:
        weight: ``(kH, kW)`` (one plane), or ``(O, C/groups, *kernel)``.
        input_size: spatial size of the input.
        stride: as in `conv2d`.
        padding: as in `conv2d`, zeros.
        dilation: as in `conv2d`.
        groups: as in `conv2d`.

    Returns:
        ``(*out, *input_size)`` for one plane; ``(O, *out, C, *input_size)`` with channels.

    Raises:
        ShapeError: shapes that do not fit.
        BudgetError: the tensor would be above the memory budget.
    """
    sizes = tuple(int(n) for n in input_size)
    plane = weight.dim() == len(sizes)
    kernels = weight[None, None] if plane else weight
    channels = kernels.shape[1] * groups
    matrix = toeplitz_matrix(kernels, (channels, *sizes), stride, padding, dilation, groups)
    refusal = over_budget(math.prod(matrix.shape) * weight.element_size())
    if refusal is not None:
        raise BudgetError("input_size", "a dense tensor within the memory budget", refusal, "use toeplitz_matrix")
    ndim = len(sizes)
    spans = as_ints(stride, ndim, "stride"), as_ints(dilation, ndim, "dilation")
    pairs = conv_padding(padding, sizes, tuple(kernels.shape[2:]), *spans)
    out = tuple(map(windows_that_fit, sizes, kernels.shape[2:], *spans, pairs))
    if plane:
        return matrix.to_dense().view(*out, *sizes)
    return matrix.to_dense().view(kernels.shape[0], *out, channels, *sizes)


def as_convolution(
    dense: torch.Tensor, padding: int = 0, *, max_kernel: int | Sequence[int] | None = None, tolerance: float = 0.0
) -> torch.Tensor:
    """The kernel of a dense layer that is a convolution of stride 1: `dense_tensor` taken back (row A4).

    Args:
        dense: ``W[i, j, k, l]``, or with one or three spatial axes; outputs first, then inputs.
        padding: zeros on each side that the convolution had.
        max_kernel: locality asked for: places per axis that the kernel may span. Default: what the sizes of
            outputs and inputs leave, ``n + 2*padding - m + 1``.
        tolerance: largest difference between weights that count as the same.

    Returns:
        The kernel, ``max_kernel`` per axis.

    Raises:
        ArgumentError: the tensor breaks translation invariance or locality; says which, and where.
    """
    if dense.dim() not in (2, 4, 6):
        raise ShapeError("dense", "2, 4 or 6 dimensions (*out, *in)", tuple(dense.shape))
    ndim = dense.dim() // 2
    out, sizes = tuple(dense.shape[:ndim]), tuple(dense.shape[ndim:])
    widest = tuple(n + 2 * padding - m + 1 for n, m in zip(sizes, out, strict=True))
    kernel = widest if max_kernel is None else as_ints(max_kernel, ndim, "max_kernel", at_least=1)
    if min(widest) < 1:
        raise ShapeError("padding", f"outputs {out} to come from inputs {sizes}", padding, fix="pad more")
    centred = _by_offset(dense, out, sizes, padding)
    given = centred.isfinite()
    low = centred.masked_fill(~given, math.inf).flatten(0, ndim - 1).amin(0)
    high = centred.masked_fill(~given, -math.inf).flatten(0, ndim - 1).amax(0)
    differs = (high - low) > tolerance
    if bool(differs.any()):
        _raise_variance(centred, differs, padding, ndim)
    values = torch.where(high == -math.inf, torch.zeros_like(high), high)
    # offsets run from -(padding + m - 1): the kernel begins at -padding
    begin = [m - 1 for m in out]
    local = values[tuple(slice(b, b + k) for b, k in zip(begin, kernel, strict=True))]
    rest = values.clone()
    rest[tuple(slice(b, b + k) for b, k in zip(begin, kernel, strict=True))] = 0
    if bool((rest.abs() > tolerance).any()):
        where = rest.abs().flatten().argmax()
        offset = _unravel(int(where), rest.shape)
        offset = tuple(o - b - padding for o, b in zip(offset, begin, strict=True))
        expected = f"locality: no weight outside a kernel of {kernel}"
        raise ArgumentError("dense", expected, f"{rest.flatten()[where].item():g} at offset {offset}")
    return local


def _by_offset(dense: torch.Tensor, out: Sequence[int], sizes: Sequence[int], padding: int) -> torch.Tensor:
    """``V[i, j, a, b] = W[i, j, i+a, j+b]``, NaN where that lies outside; first offset ``-(padding + m - 1)``."""
    ndim = len(out)
    spans = [n + padding + m - 1 + max(0, padding) for n, m in zip(sizes, out, strict=True)]
    flat = dense.reshape(*out, -1)
    place, inside = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
    for axis in range(ndim):
        offsets = torch.arange(spans[axis]) - (out[axis] - 1) - padding
        at = torch.arange(out[axis])[:, None] + offsets
        view = [1] * (2 * ndim)
        view[axis], view[ndim + axis] = at.shape
        inside = inside & ((at >= 0) & (at < sizes[axis])).view(view)
        place = place * sizes[axis] + at.clamp(0, sizes[axis] - 1).view(view)
    picked = flat.gather(-1, place.reshape(*out, -1).to(dense.device)).view(*out, *spans)
    return picked.masked_fill(~inside.to(dense.device), math.nan)


def _raise_variance(centred: torch.Tensor, differs: torch.Tensor, padding: int, ndim: int) -> None:
    """Name the two outputs that weigh the same offset differently."""
    offset = _unravel(int(differs.flatten().int().argmax()), differs.shape)
    index: tuple[Any, ...] = (..., *offset)
    at = centred[index]
    flat = at.flatten()
    first = int(flat.nan_to_num(math.inf).argmin())
    second = int(flat.nan_to_num(-math.inf).argmax())
    out = at.shape
    shown = tuple(o - (m - 1) - padding for o, m in zip(offset, out, strict=True))
    raise ArgumentError(
        "dense",
        "translation invariance: one weight for each offset, wherever the output",
        f"{flat[first].item():g} at output {_unravel(first, out)} and {flat[second].item():g} at output "
        f"{_unravel(second, out)} for the input at offset {shown}",
    )


def _unravel(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    places = []
    for size in reversed(shape):
        index, place = divmod(index, size)
        places.append(place)
    return tuple(reversed(places))
