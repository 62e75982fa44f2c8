"""Max, average and power-average pooling (LECTURES D1–D3): torch's arguments, and any padding.

Where torch's function takes the arguments it is called directly, and its refusals are retold with the numbers
that do not fit. Beyond torch: ``padding`` as one ``(before, after)`` pair per axis, ``"valid"``, ``"same"`` (any
stride) or ``"full"``, and ``padding_mode`` ``"reflect"``, ``"symmetric"``, ``"replicate"`` or ``"circular"``.

Compiled kernels enter at `_max_pool` and `_avg_pool`, through `convlens.ops.pool_compiled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from torch.overrides import handle_torch_function, has_torch_function

from convlens.errors import ArgumentError, DtypeError
from convlens.ops.fronts import fronts
from convlens.ops.padding import pad, require_mode
from convlens.ops.pool_arguments import (
    TORCH_AVG,
    TORCH_MAX_WITH_PLACES,
    PoolWindow,
    check_input,
    pool_window,
    torch_takes,
)
from convlens.ops.pool_compiled import avg_pooled, max_pooled
from convlens.ops.pool_explain import explained, raise_explained
from convlens.ops.pool_general import avg_pool_padded, max_by_taps, max_pool_padded

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]

Size = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]
Pooled = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

_MAX = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
_LP = {1: F.lp_pool1d, 2: F.lp_pool2d, 3: F.lp_pool3d}


def _is_one(dilation: Any) -> bool:
    return dilation == 1 or (isinstance(dilation, (tuple, list)) and all(d == 1 for d in dilation))


def _max_pool(
    ndim: int,
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
    padding_mode: str,
) -> Any:
    """Max pooling over ``ndim`` axes; see `max_pool2d`."""
    if has_torch_function((input,)):  # fx proxies, function modes, tensors of other libraries
        arguments: Any = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        public = globals()[f"max_pool{ndim}d"]
        return handle_torch_function(public, (input,), *arguments, padding_mode=padding_mode)
    plain = padding_mode == "zeros" and torch_takes(padding)
    # a dilated window can step over the input from padding to padding: torch 2.13 then stores a position outside
    # the plane, and its backward writes there
    if plain and (_is_one(dilation) or padding == 0):
        fast = max_pooled(ndim, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        if fast is not None:
            return fast
        pool = TORCH_MAX_WITH_PLACES[ndim] if return_indices else _MAX[ndim]
        try:
            return pool(input, kernel_size, [] if stride is None else stride, padding, dilation, ceil_mode)
        except Exception as error:
            window = explained(
                error, lambda: _max_window(ndim, input, kernel_size, stride, padding, dilation, ceil_mode)
            )
            if isinstance(error, NotImplementedError):  # the integers that torch leaves out
                return max_by_taps(input, window, padding_mode, return_indices)
            raise
    require_mode(padding_mode)
    window = _max_window(ndim, input, kernel_size, stride, padding, dilation, ceil_mode)
    if not plain:
        return max_pool_padded(input, window, padding_mode, return_indices, _MAX[ndim])
    if window.wholly_in_padding() or not input.is_floating_point():
        return max_by_taps(input, window, padding_mode, return_indices)
    pool = TORCH_MAX_WITH_PLACES[ndim] if return_indices else _MAX[ndim]
    return pool(input, kernel_size, [] if stride is None else stride, padding, dilation, ceil_mode)


def _max_window(
    ndim: int, input: torch.Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> PoolWindow:
    size = check_input(f"max_pool{ndim}d", input, ndim)
    if input.is_complex() or input.dtype == torch.bool:
        raise DtypeError("input", "real numbers, which have an order", input.dtype, "pool input.abs()")
    return pool_window(size, kernel_size, stride, padding, dilation, ceil_mode)


def _avg_pool(
    ndim: int,
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    padding_mode: str,
) -> torch.Tensor:
    """Average pooling over ``ndim`` axes; see `avg_pool2d`."""
    function = f"avg_pool{ndim}d"
    if has_torch_function((input,)):
        arguments = (input, kernel_size, stride, padding, ceil_mode, count_include_pad)
        more = arguments if ndim == 1 else (*arguments, divisor_override)
        result: torch.Tensor = handle_torch_function(
            globals()[function], (input,), *more, padding_mode=padding_mode
        )
        return result
    plain = padding_mode == "zeros" and torch_takes(padding)

    def checked() -> Any:
        size = check_input(function, input, ndim)
        window = pool_window(size, kernel_size, stride, padding, 1, ceil_mode)
        _check_divisor(divisor_override)
        return window

    if plain:
        fast = avg_pooled(
            ndim, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        if fast is not None:
            return fast
        steps = [] if stride is None else stride
        try:
            if ndim == 1:
                means: torch.Tensor = TORCH_AVG[1](
                    input, kernel_size, steps, padding, ceil_mode, count_include_pad
                )
                return means
            pooled: torch.Tensor = TORCH_AVG[ndim](
                input, kernel_size, steps, padding, ceil_mode, count_include_pad, divisor_override
            )
            return pooled
        except Exception as error:
            window = explained(error, checked)
            if not (ndim == 3 and window.larger_than_padded()):
                raise_explained(error, checked)
        return avg_pool_padded(input, window, padding_mode, count_include_pad, divisor_override)
    require_mode(padding_mode)
    if padding_mode != "zeros" and not count_include_pad:
        raise ArgumentError(
            "count_include_pad",
            f"True for padding_mode={padding_mode!r}, whose padding repeats the input's own values",
            count_include_pad,
            "use padding_mode='zeros' to leave the padding out of the average",
        )
    return avg_pool_padded(input, checked(), padding_mode, count_include_pad, divisor_override)


def _check_divisor(divisor_override: Any) -> None:
    if divisor_override is None:
        return
    if isinstance(divisor_override, bool) or not isinstance(divisor_override, int):
        raise DtypeError("divisor_override", "an integer other than 0", repr(divisor_override))
    if divisor_override == 0:
        raise ArgumentError(
            "divisor_override", "an integer other than 0", 0, "leave it out to divide by the window"
        )


def _lp_pool(
    ndim: int,
    input: torch.Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any,
    ceil_mode: bool,
    padding: Any,
    padding_mode: str,
) -> torch.Tensor:
    """Power-average pooling over ``ndim`` axes; see `lp_pool2d`."""
    function = f"lp_pool{ndim}d"
    if has_torch_function((input,)):
        options = {"padding": padding, "padding_mode": padding_mode}
        arguments: Any = (input, norm_type, kernel_size, stride, ceil_mode)
        result: torch.Tensor = handle_torch_function(globals()[function], (input,), *arguments, **options)
        return result

    def checked() -> Any:
        size = check_input(function, input, ndim)
        if isinstance(norm_type, bool) or not isinstance(norm_type, (int, float)) or norm_type == 0:
            raise ArgumentError("norm_type", "a number other than 0 (2 for the root of squares)", repr(norm_type))
        return pool_window(size, kernel_size, stride, padding, 1, ceil_mode)

    if ndim == 1 and isinstance(kernel_size, (tuple, list)) and len(kernel_size) == 1:
        kernel_size = kernel_size[0]  # torch multiplies by it as a number
    if padding == 0:
        try:
            return _LP[ndim](input, norm_type, kernel_size, stride, ceil_mode)
        except Exception as error:
            raise_explained(error, checked)
    require_mode(padding_mode)
    window = checked()
    pooled = _LP[ndim](
        pad(input, window.padding, padding_mode),
        norm_type,
        kernel_size,
        stride,
        ceil_mode,
    )
    for axis, size in enumerate(window.output_size):
        pooled = pooled.narrow(axis - ndim, 0, size)
    return pooled


class _MaxPool(Protocol):
    """A max pooling as type checkers see it: a tensor, or a pair where indices are asked for."""

    @overload
    def __call__(
        self,
        input: torch.Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: Literal[False] = False,
        *,
        padding_mode: str = "zeros",
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self,
        input: torch.Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        padding_mode: str = "zeros",
    ) -> Any: ...


def _any_max_pool(
    ndim: int,
    /,
    input: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    padding_mode: str = "zeros",
) -> Any:
    """The largest value under each window (LECTURES D1).

    Args:
        input: ``(N, C, height, width)`` or ``(C, height, width)``; any real element type.
        kernel_size: window, one number or one per axis.
        stride: step between windows; the window's size if None.
        padding: numbers (at most half a window, as in torch), a pair ``(before, after)`` per axis, ``"valid"``,
            ``"same"`` (``ceil(size / stride)`` outputs) or ``"full"``.
        dilation: step between the elements of a window.
        ceil_mode: keep a last window that overhangs the padded input.
        return_indices: also give where each maximum lies, int64, counted in its unpadded plane.
        padding_mode: ``"zeros"`` pads with what never wins (−inf), as torch does; ``"reflect"``,
            ``"symmetric"``, ``"replicate"`` and ``"circular"`` repeat the input's values.

    Returns:
        ``(N, C, *output)``, in channels_last where the input is, or the pair of values and indices. A window
        wholly in padding gives −inf, an index inside the plane, and no gradient.

    Raises:
        ArgumentError: an argument of the wrong form or out of range.
        ShapeError: a window larger than the padded input, or an input of the wrong rank.
    """
    return _max_pool(ndim, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, padding_mode)


_max_pools: Any = fronts(
    _any_max_pool,
    "max_pool",
    "The largest value under each window; as `max_pool2d`, for ``(N, C, length)``.",
    "The largest value under each window; as `max_pool2d`, for ``(N, C, depth, height, width)``.",
)
max_pool1d: _MaxPool
max_pool2d: _MaxPool
max_pool3d: _MaxPool
max_pool1d, max_pool2d, max_pool3d = _max_pools


def avg_pool1d(
    input: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """The mean under each window; as `avg_pool2d`, for ``(N, C, length)``."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None, padding_mode)


def _any_avg_pool(
    ndim: int,
    /,
    input: torch.Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """The mean under each window (LECTURES D3).

    Args:
        input: ``(N, C, height, width)`` or ``(C, height, width)``; floating point, or int64 (rounded towards 0).
        kernel_size, stride, padding, ceil_mode, padding_mode: as in `max_pool2d`, but zeros mode pads with zeros.
        count_include_pad: whether padded zeros count in the divisor.
        divisor_override: divide each sum by this instead of by the number of elements covered.

    Returns:
        ``(N, C, *output)``, in channels_last where the input is.

    Raises:
        ArgumentError: an argument of the wrong form or out of range.
        ShapeError: a window larger than the padded input, or an input of the wrong rank.
    """
    return _avg_pool(
        ndim, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, padding_mode
    )


_, avg_pool2d, avg_pool3d = fronts(
    _any_avg_pool,
    "avg_pool",
    "",  # torch's has no divisor_override for one axis, and so has ours
    "The mean under each window; as `avg_pool2d`, for ``(N, C, depth, height, width)``.",
)


def _any_lp_pool(
    ndim: int,
    /,
    input: torch.Tensor,
    norm_type: float,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """The ``norm_type``-norm under each window, ``(Σ x^p)^(1/p)``: p=1 sums, p=inf is max pooling of ``|x|``.

    Args:
        input: ``(N, C, height, width)`` or ``(C, height, width)``, floating point.
        norm_type: the power p, other than 0.
        kernel_size, stride, ceil_mode, padding, padding_mode: as in `avg_pool2d`; torch has no padding here.

    Returns:
        ``(N, C, *output)``.

    Raises:
        ArgumentError: an argument of the wrong form or out of range.
        ShapeError: a window larger than the padded input, or an input of the wrong rank.
    """
    return _lp_pool(ndim, input, norm_type, kernel_size, stride, ceil_mode, padding, padding_mode)


lp_pool1d, lp_pool2d, lp_pool3d = fronts(
    _any_lp_pool,
    "lp_pool",
    "The ``norm_type``-norm under each window; as `lp_pool2d`, for ``(N, C, length)``.",
    "The ``norm_type``-norm under each window; as `lp_pool2d`, for ``(N, C, depth, height, width)``.",
)
