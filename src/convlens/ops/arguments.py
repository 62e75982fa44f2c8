"""Arguments as torch writes them, normalised once at the door: below it only tuples of ints."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from convlens.errors import ArgumentError, DtypeError, ShapeError

__all__ = ["Pairs", "as_ints", "as_pairs", "conv_padding", "hashable", "require_tensor", "same_padding"]

Pairs = tuple[tuple[int, int], ...]
"""Padding per axis: ``(before, after)``."""

PADDING_NAMES = ("valid", "same", "same_lower", "full")
PADDING_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")


def hashable(value: Any) -> Any:
    """``value`` with lists turned into tuples, so that it can be part of a key."""
    if isinstance(value, (list, tuple)):
        return tuple(hashable(item) for item in value)
    return value


def require_tensor(value: object, name: str) -> torch.Tensor:
    """``value`` if it is a tensor; otherwise a `DtypeError` that says what it is."""
    if not isinstance(value, torch.Tensor):
        raise DtypeError(name, "a torch.Tensor", type(value).__name__, fix=f"{name}=torch.as_tensor(...)")
    return value


def _as_int(value: Any, name: str) -> int:
    if isinstance(value, (int, torch.SymInt)):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)
    except TypeError:
        raise DtypeError(name, "whole numbers", f"{value!r} ({type(value).__name__})") from None


def as_ints(value: Any, ndim: int, name: str, *, at_least: int | None = None, phrase: str = "") -> tuple[int, ...]:
    """One whole number per axis, from an int, a sequence of one, or a sequence of ``ndim``.

    Args:
        value: what the caller gave.
        ndim: number of spatial axes.
        name: the argument's name, for the error.
        at_least: smallest value allowed, if any.
        phrase: torch's words for the mistake of being smaller, kept so that code which looks for them still works.

    Raises:
        DtypeError: not whole numbers.
        ShapeError: the wrong number of them.
        ArgumentError: one below ``at_least``.
    """
    items: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    if len(items) not in (1, ndim):
        fix = f"give one number, or {ndim} (one per axis)"
        raise ShapeError(name, f"1 or {ndim} numbers", f"{len(items)}: {value}", fix=fix)
    numbers = tuple(_as_int(item, name) for item in items)
    if at_least is not None:
        for number in numbers:
            if number < at_least:
                said = f" ({phrase})" if phrase else ""
                raise ArgumentError(name, f"{at_least} or more{said}", value)
    return numbers * ndim if len(numbers) == 1 else numbers


def as_pairs(value: Any, ndim: int, name: str = "padding") -> Pairs:
    """Padding per axis as ``(before, after)``, from an int, ints per axis, or pairs per axis.

    A bare pair of numbers in 2-D means *per axis*, as in torch; sides are given as ``((1, 2), (0, 0))``.

    Raises:
        DtypeError: not whole numbers.
        ShapeError: the wrong number of axes or sides.
        ArgumentError: a negative number.
    """
    if isinstance(value, (tuple, list)) and any(isinstance(item, (tuple, list)) for item in value):
        if len(value) not in (1, ndim):
            raise ShapeError(name, f"{ndim} pairs (before, after), one per axis", f"{len(value)}: {value}")
        pairs = tuple(_one_pair(item, value, name) for item in value)
        pairs = pairs * ndim if len(pairs) == 1 else pairs
    else:
        pairs = tuple((n, n) for n in as_ints(value, ndim, name))
    for before, after in pairs:
        if before < 0 or after < 0:
            fix = f"crop the input instead: input[..., {max(-before, 0)}:]"
            raise ArgumentError(name, "0 or more (negative padding is not supported)", value, fix=fix)
    return pairs


def _one_pair(item: Any, value: Any, name: str) -> tuple[int, int]:
    if not isinstance(item, (tuple, list)):
        number = _as_int(item, name)
        return number, number
    if len(item) != 2:
        raise ShapeError(name, "2 numbers (before, after) on each axis", f"{len(item)} on one: {value}")
    return _as_int(item[0], name), _as_int(item[1], name)


def same_padding(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    lower: bool = False,
) -> Pairs:
    """Padding that leaves ``ceil(size / stride)`` windows on each axis.

    An odd amount puts the extra row *after* (TensorFlow's and torch's ``"same"``, ONNX ``SAME_UPPER``), or
    with ``lower`` *before* (row B5 of the lectures, ONNX ``SAME_LOWER``).
    """
    pairs = []
    for n, k, s, d in zip(input_size, kernel_size, stride, dilation, strict=True):
        reach = d * (k - 1)
        # at stride 1 the total does not depend on the size: no guard on it under torch.compile
        total = reach if s == 1 else max((-(-n // s) - 1) * s + reach + 1 - n, 0)
        small, large = total // 2, total - total // 2
        pairs.append((large, small) if lower else (small, large))
    return tuple(pairs)


def conv_padding(
    padding: Any,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    """The padding of a convolution or pooling, from any of its forms, as ``(before, after)`` per axis.

    Args:
        padding: an int, ints per axis, pairs per axis, or a name: ``"valid"`` (none), ``"same"`` (``ceil(size /
            stride)`` outputs, an odd row after), ``"same_lower"`` (the odd row before: row B5), ``"full"``
            (every window that touches the input).
        input_size: spatial size of the input.
        kernel_size: spatial size of the window.
        stride: per axis.
        dilation: per axis.

    Raises:
        ArgumentError: an unknown name or a negative number.
    """
    if not isinstance(padding, str):
        return as_pairs(padding, len(kernel_size))
    if padding == "valid":
        return ((0, 0),) * len(kernel_size)
    if padding in ("same", "same_lower"):
        return same_padding(input_size, kernel_size, stride, dilation, lower=padding == "same_lower")
    if padding == "full":
        return tuple((d * (k - 1), d * (k - 1)) for k, d in zip(kernel_size, dilation, strict=True))
    names = ", ".join(repr(name) for name in PADDING_NAMES)
    raise ArgumentError("padding", f"a number, numbers per axis, pairs, or one of {names}", repr(padding))
