"""Max unpooling: each value goes back to where the maximum was found, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from convlens.errors import ArgumentError, DtypeError, ShapeError
from convlens.ops.pool_arguments import check_input, per_axis
from convlens.ops.pool_explain import raise_explained

__all__ = ["max_unpool1d", "max_unpool2d", "max_unpool3d"]

Size = int | Sequence[int]

_UNPOOL: dict[int, Any] = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}


def _max_unpool(
    ndim: int,
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
) -> torch.Tensor:
    function = f"max_unpool{ndim}d"
    if isinstance(padding, str) or (isinstance(padding, (tuple, list)) and any(map(_is_pair, padding))):
        return _unpool_pairs(function, ndim, input, indices, kernel_size, stride, padding, output_size)
    try:
        unpooled: torch.Tensor = _UNPOOL[ndim](input, indices, kernel_size, stride, padding, output_size)
        return unpooled
    except Exception as error:
        raise_explained(
            error,
            lambda: _check(function, ndim, input, indices, kernel_size, stride, padding, output_size),
        )


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, (tuple, list))


def _unpool_pairs(
    function: str,
    ndim: int,
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
) -> torch.Tensor:
    """Padding in pairs only moves the default output size, which torch is then told."""
    if isinstance(padding, str) and padding != "valid":
        raise ArgumentError(
            "padding", "numbers or pairs for unpooling", repr(padding), "give output_size and padding=0 instead"
        )
    wanted = _check(function, ndim, input, indices, kernel_size, stride, padding, output_size)
    # torch takes no pairs: it is told a window, at stride 1, from which the same output size follows
    window = tuple(w - n + 1 for w, n in zip(wanted, input.shape[-ndim:], strict=True))
    unpooled: torch.Tensor = _UNPOOL[ndim](input, indices, window, 1, 0, wanted)
    return unpooled


def _check(
    function: str,
    ndim: int,
    input: Any,
    indices: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
) -> tuple[int, ...]:
    """Check every argument; returns the spatial output size."""
    size = check_input(function, input, ndim)
    if not isinstance(indices, torch.Tensor):
        raise DtypeError(
            "indices", "an int64 tensor, from a pooling with return_indices=True", type(indices).__name__
        )
    if indices.dtype != torch.int64:
        raise DtypeError("indices", "torch.int64", indices.dtype, "indices.long()")
    if indices.shape != input.shape:
        raise ShapeError("indices", f"the shape of input, {tuple(input.shape)}", f"shape {tuple(indices.shape)}")
    kernel = per_axis("kernel_size", kernel_size, ndim)
    steps = kernel if stride is None else per_axis("stride", stride, ndim)
    entries = padding if isinstance(padding, (tuple, list)) else (0 if isinstance(padding, str) else padding,)
    entries = tuple(entries) * (ndim if len(entries) == 1 else 1)
    if len(entries) != ndim:
        raise ArgumentError("padding", f"one number, or {ndim} numbers or pairs", repr(padding))
    pads = [per_axis("padding", entry, 2, minimum=0) for entry in entries]
    default = tuple((n - 1) * s + k - sum(p) for n, s, k, p in zip(size, steps, kernel, pads, strict=True))
    wanted = default if output_size is None else _given_size(ndim, output_size, default, steps)
    if any(n < 1 for n in wanted):
        raise ShapeError(
            "output_size",
            f"at least 1 on every axis; (input-1)*stride - padding + kernel_size = {default}",
            wanted,
            "pad less, or give output_size",
        )
    if 0 in size:
        raise ShapeError("input", "at least one element on every axis", f"shape {tuple(input.shape)}")
    room = 1
    for n in wanted:
        room *= n
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= room):
        raise ArgumentError(
            "indices",
            f"positions in a plane of {' x '.join(map(str, wanted))} = {room} elements (0 to {room - 1})",
            f"{int(indices.min())} to {int(indices.max())}",
            "give output_size=, the size of what was pooled",
        )
    return wanted


def _given_size(ndim: int, output_size: Any, default: tuple[int, ...], steps: tuple[int, ...]) -> tuple[int, ...]:
    form = f"{ndim} numbers, or {ndim + 2} with batch and channels"
    if not isinstance(output_size, (tuple, list, torch.Size)) or len(output_size) not in (ndim, ndim + 2):
        raise ArgumentError("output_size", form, repr(output_size))
    wanted = tuple(output_size)[-ndim:]
    for axis, (n, middle, step) in enumerate(zip(wanted, default, steps, strict=True)):
        if not middle - step < n < middle + step:
            raise ArgumentError(
                "output_size",
                f"axis {axis} between {middle - step + 1} and {middle + step - 1} "
                f"((input-1)*stride - padding + kernel_size = {middle}, less than stride = {step} away)",
                repr(tuple(output_size)),
            )
    return wanted


def max_unpool1d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size | Sequence[Sequence[int]] = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """Put each maximum back where it was; as `max_unpool2d`, for ``(N, C, length)``."""
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size | Sequence[Sequence[int]] = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """Put each maximum back where it was, zeros elsewhere: the partial inverse of `max_pool2d`.

    Args:
        input: ``(N, C, height, width)`` or ``(C, height, width)``, what the pooling gave.
        indices: int64, as input: the pooling's indices.
        kernel_size, stride, padding: the pooling's arguments; padding may be pairs.
        output_size: size of what was pooled, where the arguments leave a choice.

    Returns:
        ``(N, C, *output_size)``; by default ``(input-1)*stride - padding + kernel_size`` on each axis.

    Raises:
        ArgumentError: indices outside the output, or an output size that the pooling cannot have had.
        ShapeError: shapes that do not fit.
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size | Sequence[Sequence[int]] = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """Put each maximum back where it was; as `max_unpool2d`, for ``(N, C, depth, height, width)``."""
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)
