"""What a convolution's tensors must satisfy, said as arithmetic that a person can follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convlens.errors import ArgumentError, DtypeError, ShapeError
from convlens.ops.arguments import Pairs

__all__ = [
    "check_bias",
    "check_channels",
    "check_dims",
    "check_dtypes",
    "check_fits",
    "check_groups",
    "check_output_padding",
    "check_transposed_channels",
    "check_transposed_sizes",
]

AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_WORDS = {3: "three", 4: "four", 5: "five"}
_FLOATING = "float64, float32, float16, bfloat16, complex64 or complex128"


def check_dims(input: torch.Tensor, weight: torch.Tensor, ndim: int) -> None:
    """Weight has two axes more than the space, input one (unbatched) or two."""
    space = ", ".join(AXES[ndim])
    if weight.dim() != ndim + 2:
        agree = f"weight should have at least {_WORDS.get(ndim + 2)} dimensions"
        if weight.dim() > 2:
            agree = f"Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight"
        expected = f"{ndim + 2} dimensions (out_channels, in_channels/groups, {space}): {agree}"
        raise ShapeError("weight", expected, f"{weight.dim()}: {tuple(weight.shape)}")
    if input.dim() not in (ndim + 1, ndim + 2):
        expected = (
            f"{ndim + 2} dimensions (batch, channels, {space}) or {ndim + 1} (channels, {space}): "
            f"Expected {ndim + 2}-dimensional input for {ndim + 2}-dimensional weight"
        )
        fix = "input.unsqueeze(0) adds the channel axis" if input.dim() == ndim else None
        raise ShapeError("input", expected, f"{input.dim()}: {tuple(input.shape)}", fix=fix)


def check_dtypes(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, amp: torch.dtype | None
) -> torch.dtype:
    """The one type of input, weight and bias (what autocast makes of them); returns it."""
    found = [_under_autocast(t.dtype, amp) for t in (input, weight, *(() if bias is None else (bias,)))]
    small = {torch.int8, torch.uint8}
    if found[0] in small and found[1] in small:
        if bias is not None and bias.dtype != torch.int32:
            raise DtypeError("bias", "int32, the type of the sums of 8-bit products", bias.dtype)
        return torch.int32
    for name, dtype in zip(("weight", "bias"), found[1:], strict=False):
        if dtype != found[0]:
            expected = f"{found[0]} as the input (Input type and {name} type should be the same)"
            raise DtypeError(name, expected, dtype, fix=f"{name}.to({found[0]})")
    if found[0] == torch.bool or found[0].itemsize < 1:
        raise DtypeError("input", _FLOATING, found[0], fix="input.float()")
    return found[0]


def _under_autocast(dtype: torch.dtype, amp: torch.dtype | None) -> torch.dtype:
    return amp if amp is not None and dtype.is_floating_point and dtype != torch.float64 else dtype


def check_groups(groups: object) -> int:
    """A positive whole number."""
    if not isinstance(groups, int):
        raise DtypeError("groups", "a whole number", f"{groups!r} ({type(groups).__name__})")
    if groups <= 0:
        raise ArgumentError("groups", "1 or more (non-positive groups is not supported)", groups)
    return groups


def check_channels(input: torch.Tensor, weight: torch.Tensor, groups: int, channel_axis: int) -> None:
    """Channels of input and weight agree, and the groups divide them."""
    channels, out = input.shape[channel_axis], weight.shape[0]
    if out < groups:
        expected = f"at least {groups} filters (expected weight to be at least {groups} at dimension 0)"
        raise ShapeError("weight", expected, f"{out}: {tuple(weight.shape)}")
    if out % groups:
        expected = f"out_channels to be a multiple of groups={groups}"
        raise ShapeError("weight", expected, f"{out} ({out} = {out // groups}*{groups} + {out % groups})")
    per_group = weight.shape[1]
    if channels != per_group * groups:
        expected = f"{per_group * groups} channels (weight.shape[1]*groups = {per_group}*{groups})"
        received = f"{channels}: {tuple(input.shape)}"
        fix = None
        if channels % groups == 0:
            fix = f"set in_channels={channels} (weight {(out, channels // groups, *weight.shape[2:])})"
        elif channels == 0 or per_group and channels % per_group == 0:
            fix = f"set groups={channels // per_group}"
        raise ShapeError("input", expected, received, fix=fix)


def check_bias(bias: torch.Tensor | None, out_channels: int) -> None:
    """One number per output channel."""
    if bias is not None and tuple(bias.shape) != (out_channels,):
        expected = f"1 dimension with {out_channels} elements, one per output channel"
        raise ShapeError("bias", expected, f"shape {tuple(bias.shape)}")


def check_fits(input: torch.Tensor, kernel_size: Sequence[int], dilation: Sequence[int], pairs: Pairs) -> None:
    """At least one window on each axis; no axis of the input empty."""
    ndim = len(kernel_size)
    sizes = input.shape[-ndim:]
    for axis, n, k, d, (before, after) in zip(AXES[ndim], sizes, kernel_size, dilation, pairs, strict=True):
        if k < 1:
            raise ShapeError("weight", f"a kernel {axis} of 1 or more", f"{k}: {tuple(kernel_size)}")
        if n < 1:
            expected = f"at least 1 element of {axis} (only batch and channels may be empty)"
            raise ShapeError("input", expected, f"{tuple(input.shape)}")
        reach, room = d * (k - 1) + 1, n + before + after
        if reach > room:
            short = reach - room
            expected = (
                f"a {axis} of at least {reach - before - after} (the window spans "
                f"{d}*({k}-1)+1 = {reach}; Kernel size can't be greater than actual input size)"
            )
            received = f"{n} + {before} + {after} (padding) = {room}, {short} too few"
            raise ShapeError("input", expected, received, fix=f"pad {-(-short // 2)} more, or use padding='same'")


def check_output_padding(output_padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> None:
    """Smaller than the stride or the dilation, else those places would be no one's."""
    for o, s, d in zip(output_padding, stride, dilation, strict=True):
        if o >= max(s, d):
            expected = f"less than max(stride, dilation) = {max(s, d)}: output padding must be smaller than either"
            raise ArgumentError("output_padding", f"{expected} stride or dilation", tuple(output_padding))


def check_transposed_channels(input: torch.Tensor, weight: torch.Tensor, groups: int, channel_axis: int) -> None:
    """The input has the channels of the weight's first axis, and the groups divide them."""
    channels, taken = input.shape[channel_axis], weight.shape[0]
    if taken < groups:
        expected = f"at least {groups} channels (expected weight to be at least {groups} at dimension 0)"
        raise ShapeError("weight", expected, f"{taken}: {tuple(weight.shape)}")
    if taken % groups:
        raise ShapeError("weight", f"channels (axis 0) to be a multiple of groups={groups}", taken)
    if channels != taken:
        expected = f"{taken} channels (weight.shape[0] of a transposed convolution)"
        fix = f"set in_channels={channels} (weight {(channels, *weight.shape[1:])})"
        raise ShapeError("input", expected, f"{channels}: {tuple(input.shape)}", fix=fix)


def check_transposed_sizes(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pairs: Pairs,
    extra: Sequence[int],
    result: Sequence[int],
) -> None:
    """Something is left after the padding is cut."""
    for axis, n, k, s, d, (before, after), e, out in zip(
        AXES[len(size)], size, kernel_size, stride, dilation, pairs, extra, result, strict=True
    ):
        if k < 1:
            raise ShapeError("weight", f"a kernel {axis} of 1 or more", f"{k}: {tuple(kernel_size)}")
        if n < 1:
            raise ShapeError("input", f"at least 1 element of {axis} (only batch and channels may be empty)", n)
        if out < 1:
            formula = f"({n}-1)*{s} - {before} - {after} + {d}*({k}-1) + {e} + 1 = {out}"
            expected = f"a result {axis} of 1 or more (Output size is too small: {formula})"
            raise ShapeError("padding", expected, (before, after), fix=f"cut {1 - out} fewer")
