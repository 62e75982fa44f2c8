"""Pooling beyond torch's arguments: padding on one side, of any amount and of any mode.

Everything here is composed of torch's own differentiable functions, so gradients of every order, vmap,
autocast, torch.compile and torch.export follow. Where torch's pooling of the padded input gives the answer it is
used; max pooling falls back on `max_by_taps`, which follows torch's rules one window element at a time, where
positions must be told or where a window may see nothing but padding. In a traced graph that is the registered
operator ``torch.ops.convlens.max_pool``; every other pooling is traced as torch's own registered operators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from convlens.ops.arguments import Pairs
from convlens.ops.core import is_plain, is_transformed
from convlens.ops.padding import pad
from convlens.ops.pool_arguments import PoolWindow, pool_window

__all__ = ["avg_pool_padded", "max_by_taps", "max_pool_padded", "same_layout"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _padded(input: torch.Tensor, padding: Pairs, mode: str, value: float = 0.0) -> torch.Tensor:
    """As `convlens.ops.padding.pad`, but zeros mode fills with ``value``."""
    if mode != "zeros":
        return pad(input, padding, mode)
    return F.pad(input, [amount for pair in reversed(padding) for amount in pair], value=value)


def same_layout(result: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """``result`` in channels_last where ``input`` is; torch's pooling keeps the layout, so does ours."""
    layout = _CHANNELS_LAST.get(input.dim())
    if layout is None or input.is_contiguous() or not input.is_contiguous(memory_format=layout):
        return result.contiguous()
    return result.contiguous(memory_format=layout)


def _cut(result: torch.Tensor, output_size: tuple[int, ...]) -> torch.Tensor:
    """Without the windows that start in the padding after the input, which ceil_mode does not count."""
    for axis, size in enumerate(reversed(output_size), start=1):
        if result.shape[-axis] != size:
            result = result.narrow(-axis, 0, size)
    return result


def max_pool_padded(
    input: torch.Tensor,
    window: PoolWindow,
    padding_mode: str,
    return_indices: bool,
    torch_pool: Callable[..., torch.Tensor],
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Max pooling with the padding written out; zeros mode pads with what can never win.

    Args:
        input: ``(N, C, *size)`` or ``(C, *size)``, real.
        window: the checked arguments.
        padding_mode: one of the five.
        return_indices: also give the position of each maximum in its unpadded plane, int64.
        torch_pool: torch's max pooling of this many axes.
    """
    if return_indices or window.wholly_in_padding() or (padding_mode == "zeros" and not input.is_floating_point()):
        return max_by_taps(input, window, padding_mode, return_indices)
    padded = _padded(input, window.padding, padding_mode, float("-inf"))
    pooled = torch_pool(padded, window.kernel_size, window.stride, 0, window.dilation, window.ceil_mode)
    return same_layout(_cut(pooled, window.output_size), input)


def max_by_taps(
    input: torch.Tensor, window: PoolWindow, padding_mode: str, return_indices: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Max pooling one window element at a time: position first, then the values are gathered from ``input``.

    torch's rules: the first of equal values wins, NaN wins over everything, padding of mode zeros never wins.
    A window wholly in padding gives −inf (the lowest number for integers), an index inside the plane and no
    gradient, where torch 2.13 gives an index outside. Arguments as in `max_pool_padded`.
    """
    if torch.compiler.is_compiling() or not (is_plain(input) or is_transformed()):
        values, source = torch.ops.convlens.max_pool(input, *_arguments(window), padding_mode)
    else:
        values, source = _composed(input, window, padding_mode)
    return (values, source) if return_indices else values


def _composed(input: torch.Tensor, window: PoolWindow, padding_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and positions, of torch's differentiable functions."""
    ndim = len(window.input_size)
    source, misses = _winning_positions(input.detach(), window, padding_mode)
    flat = input.flatten(-ndim)
    values = flat.gather(-1, source.flatten(-ndim)).view(source.shape)
    values = values.masked_fill(misses, _lowest(input.dtype))
    return same_layout(values, input), same_layout(source, input)


def _arguments(window: PoolWindow) -> tuple[Any, ...]:
    """A window as the registered operator takes it."""
    pads = [amount for pair in window.padding for amount in pair]
    return window.kernel_size, window.stride, pads, window.dilation, window.ceil_mode


# --- max pooling as torch knows it: one node of a graph instead of one for each window element -----------------


def _window(input: torch.Tensor, *arguments: Any) -> PoolWindow:
    kernel, stride, pads, dilation, ceil_mode = arguments
    pairs = tuple(zip(pads[::2], pads[1::2], strict=True))
    return pool_window(tuple(input.shape[-len(kernel) :]), kernel, stride, pairs, dilation, ceil_mode)


def _max_pool(input: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *window, padding_mode = arguments
    return _composed(input, _window(input, *window), padding_mode)


def _max_pool_fake(input: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    size = _window(input, *arguments[:-1]).output_size
    values = same_layout(input.new_empty((*input.shape[: -len(size)], *size)), input)
    return values, torch.empty_like(values, dtype=torch.long)


def _max_pool_setup(ctx: Any, inputs: Sequence[Any], output: Sequence[torch.Tensor]) -> None:
    input, *window, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.window, ctx.shape = _window(input, *window), input.shape
    ctx.mode = inputs[-1]


def _max_pool_backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[Any, ...]:
    (source,) = ctx.saved_tensors
    ndim = len(ctx.window.input_size)
    if ctx.mode == "zeros":
        grad = grad.masked_fill(_sees_nothing(ctx.window, grad.device), 0)
    zeros = grad.new_zeros(ctx.shape).flatten(-ndim)
    summed = zeros.scatter_add(-1, source.flatten(-ndim), grad.flatten(-ndim))
    return summed.view(ctx.shape), *(None,) * 6


def _sees_nothing(window: PoolWindow, device: torch.device) -> torch.Tensor:
    """Which windows touch no element of the input, in mode zeros: those that touch none on some axis."""
    ndim = len(window.input_size)
    missing = torch.zeros((1,) * ndim, dtype=torch.bool, device=device)
    for axis, kernel in enumerate(window.kernel_size):
        seen = torch.stack([_tap_source(window, axis, tap, "zeros", device)[1] for tap in range(kernel)]).any(0)
        missing = missing | ~seen.view(tuple(-1 if other == axis else 1 for other in range(ndim)))
    return missing


_LIBRARY = torch.library.Library("convlens", "FRAGMENT")
_LIBRARY.define(
    "max_pool(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "bool ceil_mode, str padding_mode) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.impl("max_pool", _max_pool, "CompositeExplicitAutograd")
torch.library.register_fake("convlens::max_pool", _max_pool_fake, lib=_LIBRARY)
torch.library.register_autograd(
    "convlens::max_pool", _max_pool_backward, setup_context=_max_pool_setup, lib=_LIBRARY
)


def _lowest(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _winning_positions(
    input: torch.Tensor, window: PoolWindow, padding_mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat position of every window's maximum in the unpadded plane, and which windows see only padding."""
    taps = itertools.product(*(range(k) for k in window.kernel_size))
    best, best_at = _read_tap(input, window, next(taps), padding_mode)
    for tap in taps:
        value, at = _read_tap(input, window, tap, padding_mode)
        wins = (value > best) | (best_at < 0)
        if value.is_floating_point():
            wins = wins | value.isnan()
        wins = wins & (at >= 0)
        best, best_at = torch.where(wins, value, best), torch.where(wins, at, best_at)
    return best_at.clamp(min=0), best_at < 0


def _read_tap(
    input: torch.Tensor, window: PoolWindow, taps: tuple[int, ...], padding_mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """One element of every window: its value, and its flat position in the plane (-1 for padding)."""
    ndim = len(window.input_size)
    value = input
    at = torch.zeros((1,) * ndim, dtype=torch.long, device=input.device)
    inside = torch.ones((1,) * ndim, dtype=torch.bool, device=input.device)
    for axis, tap in enumerate(taps):
        place, seen = _tap_source(window, axis, tap, padding_mode, input.device)
        shape = tuple(-1 if other == axis else 1 for other in range(ndim))
        value = value.index_select(axis - ndim, place)
        at = at * window.input_size[axis] + place.view(shape)
        inside = inside & seen.view(shape)
    return value, torch.where(inside, at, -1).expand(value.shape)


def _tap_source(
    window: PoolWindow, axis: int, tap: int, padding_mode: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """For one window element on one axis: the input position that each output reads, and whether it reads any."""
    size, (before, after) = window.input_size[axis], window.padding[axis]
    outputs = torch.arange(window.output_size[axis], device=device)
    position = outputs * window.stride[axis] + tap * window.dilation[axis] - before
    if padding_mode == "zeros":
        return position.clamp(0, size - 1), (position >= 0) & (position < size)
    copies = pad(torch.arange(size, device=device).view(1, size), ((before, after),), padding_mode).view(-1)
    inside = position < size + after  # ceil_mode windows overhang even the padding
    return copies[(position + before).clamp(max=len(copies) - 1)], inside


def avg_pool_padded(
    input: torch.Tensor,
    window: PoolWindow,
    padding_mode: str,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    """Average pooling with the padding written out. Arguments as in `max_pool_padded`.

    Each sum is divided by ``divisor_override``, or by the number of elements that the window covers: padding
    counts if ``count_include_pad``, the overhang of ceil_mode never. A window wholly in uncounted padding gives 0.
    """
    padded = pad(input, window.padding, padding_mode)
    counted = count_include_pad or not any(map(any, window.padding))
    if window.larger_than_padded():  # torch's 3-D function takes no such window: write the overhang out
        sizes = zip(window.kernel_size, window.padded_size, strict=True)
        padded = pad(padded, tuple((0, max(k - n, 0)) for k, n in sizes))
    elif divisor_override is None and counted:
        return same_layout(_cut(_avg(padded, window, None), window.output_size), input)
    if divisor_override is not None:
        return same_layout(_cut(_avg(padded, window, divisor_override), window.output_size), input)
    half = input.dtype in (torch.float16, torch.bfloat16)
    sums = _cut(_avg(padded.float() if half else padded, window, 1), window.output_size)
    counts = _covered(window, sums, counted)
    means = sums / counts if input.is_floating_point() else sums.div(counts, rounding_mode="trunc")
    return same_layout(means.to(input.dtype), input)


def _avg(padded: torch.Tensor, window: PoolWindow, divisor: int | None) -> torch.Tensor:
    kernel, stride = window.kernel_size, window.stride
    if len(kernel) == 1:  # torch's 1-D function takes no divisor
        flat = torch._C._nn.avg_pool2d(
            padded.unsqueeze(-2), (1, *kernel), (1, *stride), (0, 0), window.ceil_mode, True, divisor
        )
        return flat.squeeze(-2)
    pool = torch._C._nn.avg_pool2d if len(kernel) == 2 else torch._C._nn.avg_pool3d
    pooled: torch.Tensor = pool(padded, kernel, stride, 0, window.ceil_mode, True, divisor)
    return pooled


def _covered(window: PoolWindow, like: torch.Tensor, with_padding: bool) -> torch.Tensor:
    """How many elements of the (padded) input each window covers, at least 1: ``(*output_size)``."""
    ndim = len(window.input_size)
    total = torch.ones((1,) * ndim, dtype=torch.long, device=like.device)
    for axis in range(ndim):
        size, kernel = window.input_size[axis], window.kernel_size[axis]
        start = torch.arange(window.output_size[axis], device=like.device) * window.stride[axis]
        before, after = window.padding[axis]
        low, high = (-before, size + after) if with_padding else (0, size)
        start = start - before
        covered = (start + kernel).clamp(max=high) - start.clamp(min=low)
        shape = tuple(-1 if other == axis else 1 for other in range(ndim))
        total = total * covered.clamp(min=0).view(shape)
    return total.clamp(min=1).to(like.dtype)
