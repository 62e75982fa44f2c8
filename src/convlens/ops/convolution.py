"""Convolution in one, two and three dimensions: `torch.nn.functional`'s names and arguments, and more.

The door normalises its arguments once for every distinct call (`Recipes`). Where the plan is torch's own
kernel in every direction needed, it calls `torch.nn.functional` at once, so ours is never slower than torch;
otherwise it goes through `convlens.ops.core`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from convlens.ops import checks
from convlens.ops.arguments import as_ints, conv_padding
from convlens.ops.core import convolve
from convlens.ops.fronts import fronts
from convlens.ops.padding import pad, require_mode
from convlens.ops.recipe import Recipe, Recipes, must_stay_native, prepare_tensors

__all__ = ["conv1d", "conv2d", "conv3d"]

_NATIVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_RECIPES = Recipes()


def _any_conv(
    ndim: int,
    /,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    flip: bool = False,
    algorithm: str = "auto",
) -> torch.Tensor:
    """2-D convolution (cross-correlation; rows B1-B10 of the lectures).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float64/32/16, bfloat16, complex; int8 and uint8 are summed in
            int32 (ONNX ConvInteger).
        weight: ``(O, C/groups, kH, kW)``, of the same type.
        bias: ``(O,)`` or None.
        stride: one number, or one per axis.
        padding: a number, one per axis, pairs ``((top, bottom), (left, right))``, or ``"valid"`` (none),
            ``"same"`` (``ceil(size / stride)`` outputs at any stride, an odd row below, as torch and TensorFlow),
            ``"same_lower"`` (the odd row above, as the lectures' row B5), ``"full"`` (every overlap).
        dilation: one number, or one per axis.
        groups: number of groups that channels are split into.
        padding_mode: what the border holds: ``"zeros"``, ``"reflect"``, ``"symmetric"`` (mirror that repeats the
            edge), ``"replicate"``, ``"circular"``.
        flip: turn the kernel around: true convolution (row B3).
        algorithm: ``"auto"`` (the planner's choice) or ``"definition"``, ``"toeplitz"``, ``"im2col"``,
            ``"fourier"``, ``"winograd"``, ``"direct"``, ``"vendor"``; gradients are computed by the same one.

    Returns:
        ``(N, O, H', W')`` or ``(O, H', W')`` with
        ``H' = floor((H + top + bottom - dilation*(kH-1) - 1) / stride) + 1``,
        stored as torch stores it (channels last when input or weight is).

    Raises:
        ArgumentError: and its children; the text has the argument, the expected, the received and the fix.
    """
    return _conv(ndim, input, weight, bias, (stride, padding, dilation, groups, padding_mode, algorithm), flip)


conv1d, conv2d, conv3d = fronts(
    _any_conv,
    "conv",
    "1-D convolution of ``(N, C, L)`` or ``(C, L)`` with ``(O, C/groups, k)``. Arguments as `conv2d`.",
    "3-D convolution of ``(N, C, D, H, W)`` with ``(O, C/groups, kD, kH, kW)``. Arguments as `conv2d`.",
)


def _conv(
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
            globals()[f"conv{ndim}d"],
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
            return _NATIVE[ndim](input, weight, bias, *arguments[:4])
        recipe = _prepare(ndim, input, weight, bias, arguments)
        _RECIPES.keep(recipe, ndim, input, weight, bias, arguments)
    if (recipe.direct and recipe.direct_training) or recipe.is_direct(input, weight, bias):
        if recipe.call is not None and not flip:
            return _NATIVE[ndim](input, weight, bias, *recipe.call)
        return _direct(ndim, recipe, input, weight, bias, flip)
    return _planned(ndim, recipe, input, weight, bias, flip)


def _prepare(
    ndim: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    arguments: tuple[Any, ...],
) -> Recipe:
    """Check and normalise a call."""
    stride, padding, dilation, groups, mode, algorithm = arguments
    require_mode(mode)
    dtype = prepare_tensors(ndim, input, weight, bias)
    stride = as_ints(stride, ndim, "stride", at_least=1, phrase="non-positive stride is not supported")
    dilation = as_ints(dilation, ndim, "dilation", at_least=1, phrase="dilation should be greater than zero")
    groups = checks.check_groups(groups)
    kernel = tuple(weight.shape[2:])
    pairs = conv_padding(padding, tuple(input.shape[-ndim:]), kernel, stride, dilation)
    checks.check_channels(input, weight, groups, input.dim() - ndim - 1)
    checks.check_bias(bias, weight.shape[0])
    checks.check_fits(input, kernel, dilation, pairs)
    return Recipe.make(
        input, weight, bias, dtype, (stride, pairs, dilation, groups), mode=mode, algorithm=algorithm
    )


def _direct(
    ndim: int, recipe: Recipe, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, flip: bool
) -> torch.Tensor:
    """Torch's own operator, which knows autograd, autocast and functorch by itself."""
    if recipe.integer:
        input, weight = input.int(), weight.int()
    if flip:
        weight = weight.flip(tuple(range(2, ndim + 2)))
    if recipe.written is not None:
        input = pad(input, recipe.written, recipe.mode)
    g = recipe.geometry
    return _NATIVE[ndim](input, weight, bias, g.stride, recipe.native_padding, g.dilation, g.groups)


def _planned(
    ndim: int, recipe: Recipe, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, flip: bool
) -> torch.Tensor:
    """The plan's kernel, in batches and in one type."""
    if must_stay_native(recipe.geometry.algorithm):
        return _direct(ndim, recipe, input, weight, bias, flip)
    input, weight, bias = recipe.cast(input), recipe.cast(weight), recipe.cast(bias)
    if flip:
        weight = weight.flip(tuple(range(2, ndim + 2)))
    if not recipe.batched:
        input = input.unsqueeze(0)
    if recipe.border is not None:
        input = pad(input, recipe.border, recipe.mode)
    out = convolve(input, weight, bias, recipe.geometry)
    return out if recipe.batched else out.squeeze(0)
