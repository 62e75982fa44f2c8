"""Transposed convolution: the input gradient of a convolution, as an operator of its own.

``conv_transpose(y, w)`` computes what `conv` with the same arguments would send back to its input, so each
padding name means the transpose of the convolution padded that way: ``"same"`` gives ``size * stride``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from convlens.errors import UnsupportedError
from convlens.ops import checks
from convlens.ops.arguments import Pairs, as_ints, conv_padding, same_padding
from convlens.ops.core import transpose
from convlens.ops.fronts import fronts
from convlens.ops.padding import require_mode
from convlens.ops.recipe import Recipe, Recipes, must_stay_native, prepare_tensors

__all__ = ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

_NATIVE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_RECIPES = Recipes()


def _any_conv_transpose(
    ndim: int,
    /,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    padding_mode: str = "zeros",
    flip: bool = False,
    algorithm: str = "auto",
) -> torch.Tensor:
    """2-D transposed convolution (row C5 of the lectures: the error times the transposed matrix).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: ``(C, O/groups, kH, kW)``, of the same type.
        bias: ``(O,)`` or None.
        stride: of the convolution that this transposes: the result is about ``stride`` times as large.
        padding: rows and columns cut from the result: a number, one per axis, pairs ``((top, bottom), (left,
            right))``, ``"valid"`` (none), ``"same"`` or ``"same_lower"`` (``size * stride`` results), ``"full"``.
        output_padding: rows and columns added at the end, fewer than the stride or the dilation.
        groups: number of groups that channels are split into.
        dilation: one number, or one per axis.
        padding_mode: ``"zeros"`` only: nothing is padded here, the result is cut.
        flip: turn the kernel around.
        algorithm: as in `conv2d`.

    Returns:
        ``(N, O, H', W')`` or ``(O, H', W')`` with
        ``H' = (H-1)*stride - top - bottom + dilation*(kH-1) + output_padding + 1``.

    Raises:
        ArgumentError: and its children.
    """
    arguments = (stride, padding, output_padding, groups, dilation, padding_mode, algorithm)
    return _conv_transpose(ndim, input, weight, bias, arguments, flip)


conv_transpose1d, conv_transpose2d, conv_transpose3d = fronts(
    _any_conv_transpose,
    "conv_transpose",
    "1-D transposed convolution of ``(N, C, L)`` with ``(C, O/groups, k)``. Arguments as `conv_transpose2d`.",
    "3-D transposed convolution, weight ``(C, O/groups, kD, kH, kW)``. Arguments as `conv_transpose2d`.",
)


def _conv_transpose(
    ndim: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arguments: tuple[Any, ...],
    flip: bool,
) -> torch.Tensor:
    if has_torch_function((input, weight)):  # fx proxies, function modes, tensors of other libraries
        *positional, mode, algorithm = arguments
        out: torch.Tensor = handle_torch_function(
            globals()[f"conv_transpose{ndim}d"],
            (input, weight),
            *(input, weight, bias, *positional),
            padding_mode=mode,
            flip=flip,
            algorithm=algorithm,
        )
        return out
    recipe = _RECIPES.find(ndim, input, weight, bias, arguments)
    if recipe is None:
        tensors = [t for t in (input, weight, bias) if isinstance(t, torch.Tensor)]
        if any(t.layout is not torch.strided for t in tensors):
            return _NATIVE[ndim](input, weight, bias, *arguments[:5])
        recipe = _prepare(ndim, input, weight, bias, arguments)
        _RECIPES.keep(recipe, ndim, input, weight, bias, arguments)
    if flip:
        weight = weight.flip(tuple(range(2, ndim + 2)))
    if recipe.is_direct(input, weight, bias) or must_stay_native(recipe.geometry.algorithm):
        if recipe.call is not None:
            return _NATIVE[ndim](input, weight, bias, *recipe.call)
        return _direct(ndim, recipe, input, weight, bias)
    input, weight, bias = recipe.cast(input), recipe.cast(weight), recipe.cast(bias)
    if not recipe.batched:
        input = input.unsqueeze(0)
    if recipe.written is not None:
        # places that only output padding reaches: further inputs, all zero
        input = F.pad(input, [n for pair in reversed(recipe.written) for n in pair])
    out = transpose(input, weight, bias, recipe.input_size, recipe.geometry)
    return out if recipe.batched else out.squeeze(0)


def _direct(
    ndim: int, recipe: Recipe, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Torch's own operator; what it cannot cut from one side only is cut afterwards."""
    if recipe.whole:
        # torch's transposed convolution knows one integer type
        input, weight = input.long(), weight.long()
        bias = None if bias is None else bias.long()
    g = recipe.geometry
    out = _NATIVE[ndim](
        input, weight, bias, g.stride, recipe.native_padding, recipe.output_padding, g.groups, g.dilation
    )
    if recipe.border is not None:
        for axis, (before, after) in enumerate(recipe.border, start=out.dim() - ndim):
            out = out.narrow(axis, before, out.shape[axis] - before - after)
        out = out.contiguous()
    return out.to(recipe.dtype) if recipe.whole else out


def _prepare(
    ndim: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arguments: tuple[Any, ...],
) -> Recipe:
    """Check and normalise a call."""
    stride, padding, output_padding, groups, dilation, mode, algorithm = arguments
    require_mode(mode)
    if mode != "zeros":
        fix = "pad the input with torch.nn.functional.pad first, or use a convolution"
        raise UnsupportedError("padding_mode", "'zeros' (a transposed convolution pads nothing)", repr(mode), fix)
    dtype = prepare_tensors(ndim, input, weight, bias)
    stride = as_ints(stride, ndim, "stride", at_least=1, phrase="non-positive stride is not supported")
    dilation = as_ints(dilation, ndim, "dilation", at_least=1, phrase="dilation should be greater than zero")
    extra = as_ints(output_padding, ndim, "output_padding", at_least=0, phrase="negative output_padding")
    groups = checks.check_groups(groups)
    checks.check_transposed_channels(input, weight, groups, input.dim() - ndim - 1)
    checks.check_bias(bias, weight.shape[1] * groups)
    checks.check_output_padding(extra, stride, dilation)
    kernel = tuple(weight.shape[2:])
    size = tuple(input.shape[-ndim:])
    pairs, extra = _cut(padding, size, kernel, stride, dilation, extra)
    result = tuple(
        (n - 1) * s - sum(pair) + d * (k - 1) + 1 + e
        for n, s, pair, d, k, e in zip(size, stride, pairs, dilation, kernel, extra, strict=True)
    )
    checks.check_transposed_sizes(size, kernel, stride, dilation, pairs, extra, result)
    return Recipe.make_transposed(
        input,
        weight,
        bias,
        dtype,
        (stride, pairs, dilation, groups),
        result=result,
        extra=extra,
        algorithm=algorithm,
    )


def _cut(
    padding: Any,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    extra: tuple[int, ...],
) -> tuple[Pairs, tuple[int, ...]]:
    """The padding of the convolution that is transposed, and the output padding that its size needs."""
    if not isinstance(padding, str) or padding not in ("same", "same_lower"):
        return conv_padding(padding, size, kernel, stride, dilation), extra
    whole = tuple(n * s for n, s in zip(size, stride, strict=True))
    pairs = same_padding(whole, kernel, stride, dilation, lower=padding == "same_lower")
    # a stride wider than the window leaves places that no window reached
    missed = (max(s - d * (k - 1) - 1, 0) for k, s, d in zip(kernel, stride, dilation, strict=True))
    return pairs, tuple(e + m for e, m in zip(extra, missed, strict=True))
