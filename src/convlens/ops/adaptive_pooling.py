"""Pooling to a given output size, and over the whole plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F

from convlens.errors import ArgumentError, ShapeError
from convlens.ops.pool_arguments import check_input, per_axis
from convlens.ops.pool_explain import raise_explained

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "global_avg_pool1d",
    "global_avg_pool2d",
    "global_avg_pool3d",
    "global_max_pool1d",
    "global_max_pool2d",
    "global_max_pool3d",
]

OutputSize = int | None | Sequence[int | None]

_AVG: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_MAX: dict[int, Any] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def _adaptive(kind: str, ndim: int, input: torch.Tensor, output_size: Any, *indices: bool) -> Any:
    function = f"adaptive_{kind}_pool{ndim}d"
    pool = (_MAX if kind == "max" else _AVG)[ndim]
    if ndim == 1 and isinstance(output_size, (tuple, list)) and tuple(output_size) == (None,):
        output_size = None
    if ndim == 1 and output_size is None:  # torch has this for 2-D and 3-D only
        output_size = input.shape[-1]
    try:
        return pool(input, output_size, *indices)
    except Exception as error:
        raise_explained(error, lambda: _check(function, ndim, input, output_size))


def _check(function: str, ndim: int, input: Any, output_size: Any) -> None:
    size = check_input(function, input, ndim)
    wanted = list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * ndim
    if len(wanted) not in (1, ndim):
        raise ArgumentError("output_size", f"1 or {ndim} numbers (None keeps an axis)", repr(output_size))
    per_axis("output_size", [0 if n is None else n for n in wanted], ndim, minimum=0)
    if 0 in size:
        raise ShapeError(
            "input", "at least one element on every axis that is pooled", f"shape {tuple(input.shape)}"
        )
    if 0 in input.shape[-ndim - 1 :]:
        raise ShapeError("input", "at least one channel", f"shape {tuple(input.shape)}")


def adaptive_avg_pool1d(input: torch.Tensor, output_size: OutputSize) -> torch.Tensor:
    """The mean of each region; as `adaptive_avg_pool2d`, for ``(N, C, length)``."""
    pooled: torch.Tensor = _adaptive("avg", 1, input, output_size)
    return pooled


def adaptive_avg_pool2d(input: torch.Tensor, output_size: OutputSize) -> torch.Tensor:
    """The mean of each of ``output_size`` regions that tile the plane as evenly as they can.

    Args:
        input: ``(N, C, height, width)`` or ``(C, height, width)``, floating point.
        output_size: outputs per axis; None keeps an axis. Output ``i`` of ``m`` covers the input from
            ``floor(i*n/m)`` to ``ceil((i+1)*n/m)``.

    Returns:
        ``(N, C, *output_size)``.

    Raises:
        ArgumentError: an output size of the wrong form.
        ShapeError: an input of the wrong rank, or without elements.
    """
    pooled: torch.Tensor = _adaptive("avg", 2, input, output_size)
    return pooled


def adaptive_avg_pool3d(input: torch.Tensor, output_size: OutputSize) -> torch.Tensor:
    """The mean of each region; as `adaptive_avg_pool2d`, for ``(N, C, depth, height, width)``."""
    pooled: torch.Tensor = _adaptive("avg", 3, input, output_size)
    return pooled


@overload
def adaptive_max_pool1d(
    input: torch.Tensor, output_size: OutputSize, return_indices: Literal[False] = False
) -> torch.Tensor: ...


@overload
def adaptive_max_pool1d(input: torch.Tensor, output_size: OutputSize, return_indices: bool = False) -> Any: ...


def adaptive_max_pool1d(input: torch.Tensor, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The largest value of each region; as `adaptive_max_pool2d`, for ``(N, C, length)``."""
    return _adaptive("max", 1, input, output_size, return_indices)


@overload
def adaptive_max_pool2d(
    input: torch.Tensor, output_size: OutputSize, return_indices: Literal[False] = False
) -> torch.Tensor: ...


@overload
def adaptive_max_pool2d(input: torch.Tensor, output_size: OutputSize, return_indices: bool = False) -> Any: ...


def adaptive_max_pool2d(input: torch.Tensor, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The largest value of each region; regions as in `adaptive_avg_pool2d`.

    Args:
        input: ``(N, C, height, width)`` or ``(C, height, width)``, floating point.
        output_size: outputs per axis; None keeps an axis.
        return_indices: also give where each maximum lies, int64, counted in its plane.

    Returns:
        ``(N, C, *output_size)``, or the pair of values and indices.

    Raises:
        ArgumentError: an output size of the wrong form.
        ShapeError: an input of the wrong rank, or without elements.
    """
    return _adaptive("max", 2, input, output_size, return_indices)


@overload
def adaptive_max_pool3d(
    input: torch.Tensor, output_size: OutputSize, return_indices: Literal[False] = False
) -> torch.Tensor: ...


@overload
def adaptive_max_pool3d(input: torch.Tensor, output_size: OutputSize, return_indices: bool = False) -> Any: ...


def adaptive_max_pool3d(input: torch.Tensor, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The largest value of each region; as `adaptive_max_pool2d`, for ``(N, C, depth, height, width)``."""
    return _adaptive("max", 3, input, output_size, return_indices)


def global_avg_pool1d(input: torch.Tensor) -> torch.Tensor:
    """The mean of each whole plane: ``(N, C, length)`` → ``(N, C, 1)``."""
    return adaptive_avg_pool1d(input, 1)


def global_avg_pool2d(input: torch.Tensor) -> torch.Tensor:
    """The mean of each whole plane: ``(N, C, height, width)`` → ``(N, C, 1, 1)``."""
    return adaptive_avg_pool2d(input, 1)


def global_avg_pool3d(input: torch.Tensor) -> torch.Tensor:
    """The mean of each whole plane: ``(N, C, depth, height, width)`` → ``(N, C, 1, 1, 1)``."""
    return adaptive_avg_pool3d(input, 1)


def global_max_pool1d(input: torch.Tensor) -> torch.Tensor:
    """The largest value of each whole plane: ``(N, C, length)`` → ``(N, C, 1)``."""
    return adaptive_max_pool1d(input, 1)


def global_max_pool2d(input: torch.Tensor) -> torch.Tensor:
    """The largest value of each whole plane: ``(N, C, height, width)`` → ``(N, C, 1, 1)``."""
    return adaptive_max_pool2d(input, 1)


def global_max_pool3d(input: torch.Tensor) -> torch.Tensor:
    """The largest value of each whole plane: ``(N, C, depth, height, width)`` → ``(N, C, 1, 1, 1)``."""
    return adaptive_max_pool3d(input, 1)
