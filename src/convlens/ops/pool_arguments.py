"""From a pooling call's arguments to a `PoolWindow`: every value checked, every size worked out.

torch's own functions do their checks themselves; this runs where a call goes beyond torch, and after torch
has turned a call away, to say what is wrong in numbers that a person can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from convlens.errors import ArgumentError, DtypeError, ShapeError
from convlens.ops.arguments import Pairs, as_ints, conv_padding

__all__ = [
    "TORCH_AVG",
    "TORCH_MAX_WITH_PLACES",
    "PoolWindow",
    "check_input",
    "output_length",
    "per_axis",
    "pool_window",
    "torch_takes",
]

TORCH_MAX_WITH_PLACES: dict[int, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    1: torch.max_pool1d_with_indices,
    2: torch._C._nn.max_pool2d_with_indices,
    3: torch._C._nn.max_pool3d_with_indices,
}
"""torch's max pooling by number of axes."""
TORCH_AVG: dict[int, Callable[..., torch.Tensor]] = {
    1: torch.avg_pool1d,
    2: torch._C._nn.avg_pool2d,
    3: torch._C._nn.avg_pool3d,
}
"""torch's average pooling by number of axes."""

_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PoolWindow:
    """A pooling window with every argument one integer per axis, padding one pair ``(before, after)``."""

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    output_size: tuple[int, ...]

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Sizes with the padding written out."""
        return tuple(n + before + after for n, (before, after) in zip(self.input_size, self.padding, strict=True))

    def larger_than_padded(self) -> bool:
        """Whether a window reaches over everything there is, which only ``ceil_mode`` allows."""
        spans = (d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return any(span > n for span, n in zip(spans, self.padded_size, strict=True))

    def wholly_in_padding(self) -> bool:
        """Whether some window touches no element of the input: torch's max pooling goes wrong there."""
        return any(
            _some_window_misses(*axis)
            for axis in zip(
                self.input_size,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.output_size,
                strict=True,
            )
        )


def _some_window_misses(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, outputs: int
) -> bool:
    for start in range(-padding[0], outputs * stride - padding[0], stride):
        first_inside = start if start >= 0 else start + -(start // dilation) * dilation
        if not (first_inside < size and first_inside <= start + dilation * (kernel - 1)):
            return True
    return False


def output_length(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil_mode: bool
) -> int:
    """Output length of one axis: ``floor((size + before + after - dilation*(kernel-1) - 1) / stride) + 1``.

    With ``ceil_mode`` one more where a remainder is left; as in torch, that last window may overhang what is
    padded but must start in the input or in the padding before it.
    """
    before, after = padding
    room = size + before + after - dilation * (kernel - 1) - 1
    outputs = room // stride + 1
    if ceil_mode and room % stride and outputs * stride < size + before:
        outputs += 1
    return outputs


def per_axis(name: str, value: Any, ndim: int, minimum: int = 1) -> tuple[int, ...]:
    """``value`` as ``ndim`` integers from ``minimum`` up; one number stands for all axes.

    Raises:
        DtypeError: something other than integers.
        ArgumentError: the wrong count, or a number out of range.
    """
    numbers = as_ints(value, ndim, name, at_least=minimum)
    for number in numbers:
        if number > _LARGEST:
            raise ArgumentError(name, f"at most {_LARGEST}", repr(value))
    return numbers


def check_input(function: str, input: Any, ndim: int) -> tuple[int, ...]:
    """The spatial sizes of ``input``, ``(N, C, *size)`` or ``(C, *size)``.

    Raises:
        DtypeError: it is no tensor.
        ShapeError: it has another number of axes.
    """
    if not isinstance(input, torch.Tensor):
        raise DtypeError("input", "a torch.Tensor", type(input).__name__, "torch.as_tensor(input)")
    if input.dim() in (ndim + 1, ndim + 2):
        return tuple(input.shape[-ndim:])
    axes = ("length", "height, width", "depth, height, width")[ndim - 1]
    other = input.dim() - 2
    fix = f"use {function[:-2]}{other}d" if 1 <= other <= 3 and function[-1] == "d" else None
    if input.dim() == ndim:
        fix = "add the channel axis: input.unsqueeze(0)"
    raise ShapeError(
        "input",
        f"{ndim + 2} axes (batch, channels, {axes}) or {ndim + 1} (without batch) for {function}",
        f"shape {tuple(input.shape)} with {input.dim()}",
        fix,
    )


def pool_window(
    input_size: Sequence[int],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    *,
    at_most_half: bool = True,
) -> PoolWindow:
    """Check every argument of a pooling and work out its sizes.

    Args:
        input_size: spatial sizes of the input.
        kernel_size, stride, padding, dilation, ceil_mode: as the caller wrote them.
        at_most_half: apply torch's rule that a padding number is at most half of the window.

    Raises:
        ArgumentError: an argument of the wrong form or out of range.
        ShapeError: the window is larger than the padded input.
    """
    ndim = len(input_size)
    size = tuple(input_size)
    kernel = per_axis("kernel_size", kernel_size, ndim)
    # torch reads an empty sequence as "not given"
    steps = (
        kernel
        if stride is None or (not isinstance(stride, torch.Tensor) and stride in ((), []))
        else per_axis("stride", stride, ndim)
    )
    holes = per_axis("dilation", dilation, ndim)
    pads = _padding_pairs(padding, size, kernel, steps, holes, at_most_half)
    outputs = tuple(
        output_length(n, k, s, p, d, bool(ceil_mode))
        for n, k, s, p, d in zip(size, kernel, steps, pads, holes, strict=True)
    )
    for axis, out in enumerate(outputs):
        if out < 1:
            raise _does_not_fit(axis, ndim, size, kernel, steps, pads, holes)
    return PoolWindow(size, kernel, steps, pads, holes, bool(ceil_mode), outputs)


_AXIS_NAMES = {1: ("positions",), 2: ("rows", "columns"), 3: ("planes", "rows", "columns")}


def _does_not_fit(
    axis: int,
    ndim: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> ShapeError:
    unit = _AXIS_NAMES[ndim][axis]
    before, after = pads[axis]
    span = dilation[axis] * (kernel[axis] - 1) + 1
    padded = size[axis] + before + after
    missing = span - padded
    return ShapeError(
        "input",
        f"at least {span} {unit} under the window ({dilation[axis]}*({kernel[axis]}-1)+1 = {span})",
        f"{size[axis]} + {before} + {after} = {padded} {unit} (input {size}, kernel_size {kernel}, "
        f"stride {stride}, dilation {dilation})",
        f"{missing} {unit} are missing: a kernel_size of at most {max(1, (padded - 1) // dilation[axis] + 1)} on "
        f"this axis, padding=((0, {missing}), ...) or padding='same'",
    )


def _padding_pairs(
    padding: Any,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    at_most_half: bool,
) -> Pairs:
    pairs = conv_padding(padding, size, kernel, stride, dilation)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    for (before, after), span in zip(pairs, spans, strict=True):
        if max(before, after) > _LARGEST:
            raise ArgumentError("padding", f"at most {_LARGEST}", repr(padding))
        if at_most_half and torch_takes(padding) and before > span // 2:
            raise ArgumentError(
                "padding",
                f"at most {span}//2 = {span // 2} for kernel_size {kernel}, dilation {dilation} "
                "(pad should be at most half of effective kernel size)",
                repr(padding),
                f"write pairs, padding=(({before}, {after}), ...), if windows of padding only are meant",
            )
    return pairs


def torch_takes(padding: Any) -> bool:
    """Whether ``padding`` is of torch's form: one number, or one for each axis."""
    if isinstance(padding, (tuple, list)):
        return not any(isinstance(p, (tuple, list)) for p in padding)
    return not isinstance(padding, str)
