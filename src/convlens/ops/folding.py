"""Patches out of a picture and back (LECTURES C3): `unfold` and `fold`, in 1-D, 2-D and 3-D.

torch has the 2-D pair. 1-D is that with a height of one; 3-D is one step over height and width and one over depth,
since a window's patches factor by axis. Both are linear and each is the other's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from convlens.errors import ArgumentError, DtypeError, ShapeError
from convlens.ops.arguments import Pairs, conv_padding
from convlens.ops.padding import pad, require_mode
from convlens.ops.pool_arguments import output_length, per_axis, torch_takes
from convlens.ops.pool_explain import raise_explained

__all__ = ["fold", "unfold"]

# through Any: torch's signatures are narrower than what it takes
_UNFOLD: Callable[..., torch.Tensor] = F.unfold
_FOLD: Callable[..., torch.Tensor] = F.fold

Size = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


def unfold(
    input: torch.Tensor,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
    *,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """Every window's elements as one column.

    Args:
        input: ``(N, C, *size)`` or ``(C, *size)`` with as many axes in ``size`` as ``kernel_size`` has numbers
            (one number alone means 2-D, or 3-D for an input of five axes).
        kernel_size: the window, per axis.
        dilation: step between the elements of a window.
        padding: numbers, pairs ``(before, after)``, ``"valid"``, ``"same"`` or ``"full"``.
        stride: step between windows.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"symmetric"``, ``"replicate"`` or ``"circular"``.

    Returns:
        ``(N, C * window elements, windows)``, without ``N`` where the input has none.

    Raises:
        ArgumentError: an argument of the wrong form or out of range.
        ShapeError: a window larger than the padded input, or an input of the wrong rank.
    """
    ndim = _axes_of(kernel_size, input.dim() if isinstance(input, torch.Tensor) else 0)
    if ndim == 2 and padding_mode == "zeros" and torch_takes(padding):
        try:
            return _UNFOLD(input, kernel_size, dilation, padding, stride)
        except Exception as error:
            raise_explained(error, lambda: _unfold_window(ndim, input, kernel_size, dilation, padding, stride))
    require_mode(padding_mode)
    kernel, holes, pads, steps, _ = _unfold_window(ndim, input, kernel_size, dilation, padding, stride)
    padded = pad(input, pads, padding_mode)
    if ndim == 1:
        return F.unfold(padded.unsqueeze(-2), (1, *kernel), (1, *holes), 0, (1, *steps))
    if ndim == 2:
        return F.unfold(padded, kernel, holes, 0, steps)
    batched = padded if padded.dim() == 5 else padded.unsqueeze(0)
    columns = _unfold3d(batched, kernel, holes, steps)
    return columns if padded.dim() == 5 else columns.squeeze(0)


def _unfold3d(
    input: torch.Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    batch, channels, depth, height, width = input.shape
    rows = input.reshape(batch, channels, depth, height * width)
    deep = F.unfold(rows, (kernel[0], 1), (dilation[0], 1), 0, (stride[0], 1))
    planes = deep.shape[-1] // (height * width)
    flat = deep.reshape(batch, channels * kernel[0] * planes, height, width)
    columns = F.unfold(flat, kernel[1:], dilation[1:], 0, stride[1:])
    taps = kernel[1] * kernel[2]
    split = columns.reshape(batch, channels * kernel[0], planes, taps, -1)
    return split.transpose(2, 3).reshape(batch, channels * math.prod(kernel), -1)


def fold(
    input: torch.Tensor,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
) -> torch.Tensor:
    """Columns of window elements summed back into place: the transpose of `unfold` (zeros mode).

    Args:
        input: ``(N, C * window elements, windows)`` or ``(C * window elements, windows)``.
        output_size: spatial sizes of the result; its count of numbers, or kernel_size's, tells 1-D, 2-D and 3-D.
        kernel_size, dilation, padding, stride: as in `unfold`.

    Returns:
        ``(N, C, *output_size)``, without ``N`` where the input has none.

    Raises:
        ArgumentError: an argument of the wrong form or out of range.
        ShapeError: columns that do not fit the windows.
    """
    ndim = _axes_of(kernel_size, 4, output_size)
    if ndim == 2 and torch_takes(padding):
        try:
            return _FOLD(input, output_size, kernel_size, dilation, padding, stride)
        except Exception as error:
            raise_explained(
                error,
                lambda: _fold_window(ndim, input, output_size, kernel_size, dilation, padding, stride),
            )
    size, kernel, holes, pads, steps = _fold_window(
        ndim, input, output_size, kernel_size, dilation, padding, stride
    )
    padded = tuple(n + before + after for n, (before, after) in zip(size, pads, strict=True))
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    if ndim == 1:
        picture = F.fold(batched, (1, *padded), (1, *kernel), (1, *holes), 0, (1, *steps)).squeeze(-2)
    elif ndim == 2:
        picture = F.fold(batched, padded, kernel, holes, 0, steps)
    else:
        picture = _fold3d(batched, padded, kernel, holes, steps)
    for axis, (n, (before, _)) in enumerate(zip(size, pads, strict=True)):
        picture = picture.narrow(axis - ndim, before, n)
    return picture if input.dim() == 3 else picture.squeeze(0)


def _fold3d(
    input: torch.Tensor,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
) -> torch.Tensor:
    batch, taps = input.shape[0], kernel[1] * kernel[2]
    channels = input.shape[1] // math.prod(kernel)
    planes = output_length(size[0], kernel[0], stride[0], (0, 0), dilation[0], False)
    split = input.reshape(batch, channels * kernel[0], taps, planes, -1).transpose(2, 3)
    flat = F.fold(
        split.reshape(batch, channels * kernel[0] * planes * taps, -1),
        size[1:],
        kernel[1:],
        dilation[1:],
        0,
        stride[1:],
    )
    deep = flat.reshape(batch, channels * kernel[0], planes * size[1] * size[2])
    rows = F.fold(deep, (size[0], size[1] * size[2]), (kernel[0], 1), (dilation[0], 1), 0, (stride[0], 1))
    return rows.reshape(batch, channels, *size)


def _axes_of(kernel_size: Any, input_axes: int, *others: Any) -> int:
    for value in (kernel_size, *others):
        if isinstance(value, (tuple, list)):
            if not 1 <= len(value) <= 3:
                raise ArgumentError("kernel_size", "1, 2 or 3 numbers, one per spatial axis", repr(value))
            return len(value)
    return 3 if input_axes == 5 else 2


def _checked_columns(function: str, input: Any) -> None:
    if not isinstance(input, torch.Tensor):
        raise DtypeError("input", "a torch.Tensor", type(input).__name__)


def _unfold_window(
    ndim: int, input: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs, tuple[int, ...], tuple[int, ...]]:
    """The checked window: kernel, dilation, padding, stride, and the number of windows per axis."""
    _checked_columns("unfold", input)
    if input.dim() not in (ndim + 1, ndim + 2):
        raise ShapeError(
            "input",
            f"{ndim + 2} axes (batch, channels, {ndim} spatial) or {ndim + 1} for a {ndim}-D window",
            f"shape {tuple(input.shape)} with {input.dim()}",
            "give kernel_size as many numbers as the input has spatial axes",
        )
    size = tuple(input.shape[-ndim:])
    if 0 in input.shape[-ndim - 1 :]:
        raise ShapeError(
            "input", "at least one element on every axis but the batch", f"shape {tuple(input.shape)}"
        )
    return _window(ndim, "input", size, kernel_size, dilation, padding, stride)


def _window(
    ndim: int, what: str, size: tuple[int, ...], kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs, tuple[int, ...], tuple[int, ...]]:
    kernel = per_axis("kernel_size", kernel_size, ndim)
    holes = per_axis("dilation", dilation, ndim)
    steps = per_axis("stride", stride, ndim)
    pads = conv_padding(padding, size, kernel, steps, holes)
    counts = tuple(
        output_length(n, k, s, p, d, False) for n, k, s, p, d in zip(size, kernel, steps, pads, holes, strict=True)
    )
    for axis, count in enumerate(counts):
        if count < 1:
            span, room = holes[axis] * (kernel[axis] - 1) + 1, size[axis] + sum(pads[axis])
            raise ShapeError(
                what,
                f"at least {span} elements on spatial axis {axis} ({holes[axis]}*({kernel[axis]}-1)+1 = {span})",
                f"{size[axis]} + {pads[axis][0]} + {pads[axis][1]} = {room}",
                f"pad {span - room} more, or use a smaller kernel_size",
            )
    return kernel, holes, pads, steps, counts


def _fold_window(
    ndim: int, input: Any, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Pairs, tuple[int, ...]]:
    """The checked window: output size, kernel, dilation, padding, stride."""
    _checked_columns("fold", input)
    if input.dim() not in (2, 3):
        raise ShapeError(
            "input",
            "3 axes (batch, channels * window elements, windows) or 2 without batch",
            f"shape {tuple(input.shape)} with {input.dim()}",
        )
    size = per_axis("output_size", output_size, ndim)
    kernel, holes, pads, steps, counts = _window(ndim, "output_size", size, kernel_size, dilation, padding, stride)
    taps, windows = math.prod(kernel), math.prod(counts)
    rows, columns = input.shape[-2:]
    if rows % taps or rows == 0:
        raise ShapeError(
            "input",
            f"a multiple of {' * '.join(map(str, kernel))} = {taps} rows (channels * window elements)",
            f"{rows} rows in shape {tuple(input.shape)}",
        )
    if columns != windows:
        raise ShapeError(
            "input",
            f"{' * '.join(map(str, counts))} = {windows} columns, one per window of output_size {size} "
            f"(kernel_size {kernel}, stride {steps}, padding {pads}, dilation {holes})",
            f"{columns} in shape {tuple(input.shape)}",
        )
    return size, kernel, holes, pads, steps
