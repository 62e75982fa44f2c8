"""A call of a convolution, normalised once: what its shapes and arguments decide.

Looking a recipe up costs about a microsecond; making one checks every argument, lays out the padding and asks
the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from convlens.ops import checks
from convlens.ops.arguments import Pairs, hashable, require_tensor
from convlens.ops.core import Geometry, is_plain, is_transformed, planned
from convlens.ops.layout import wants_channels_last
from convlens.planner import settings
from convlens.window import Direction

__all__ = ["Recipe", "Recipes", "autocast_dtype", "must_stay_native", "prepare_tensors"]

_MOST_RECIPES = 8192


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type that autocast would compute in on ``device`` now, or None."""
    if not torch.amp.is_autocast_available(device):  # the meta device
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def must_stay_native(algorithm: str) -> bool:
    """Whether torch's own operator computes although not planned: under `torch.func` it knows best."""
    return algorithm in ("auto", "vendor") and is_transformed()


def prepare_tensors(ndim: int, input: Any, weight: Any, bias: Any) -> torch.dtype:
    """Check what the operands are; returns the type that they are computed in."""
    require_tensor(input, "input")
    require_tensor(weight, "weight")
    if bias is not None:
        require_tensor(bias, "bias")
    dtype = checks.check_dtypes(input, weight, bias, autocast_dtype(input.device.type))
    checks.check_dims(input, weight, ndim)
    return dtype


@dataclass(slots=True)
class Recipe:
    """One call, normalised."""

    geometry: Geometry
    dtype: torch.dtype
    """What the operands are computed in: their own type, autocast's, or int32 for 8-bit ones."""
    integer: bool
    mode: str
    border: Pairs | None
    """What is written out before a planned kernel: every mode but zeros."""
    written: Pairs | None
    """What is written out before torch's own operator, which pads both sides alike."""
    native_padding: tuple[int, ...]
    batched: bool
    direct: bool
    """torch's own kernel computes this direction ..."""
    direct_training: bool | None
    """... and both of its derivatives; None as long as nobody asked."""
    input_size: tuple[int, ...] = ()
    """Transposed convolution: the size of its result."""
    output_padding: tuple[int, ...] = ()
    call: tuple[Any, ...] | None = None
    """Everything after the bias for torch's own operator, where nothing else is to be done."""

    @property
    def whole(self) -> bool:
        """Whether whole numbers are computed with."""
        return not (self.dtype.is_floating_point or self.dtype.is_complex)

    @classmethod
    def make(
        cls,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        window: tuple[tuple[int, ...], Pairs, tuple[int, ...], int],
        *,
        mode: str,
        algorithm: str,
    ) -> Recipe:
        """Lay out the padding and plan all three directions."""
        stride, pairs, dilation, groups = window
        ndim = len(stride)
        border = pairs if mode != "zeros" and any(map(any, pairs)) else None
        zeros = ((0, 0),) * ndim if border else pairs
        uneven = any(before != after for before, after in pairs)
        written = border or (pairs if uneven else None)
        batched = input.dim() == ndim + 2
        traced = torch.compiler.is_compiling() or not is_plain(input, weight, bias)
        inner = input if batched else input.unsqueeze(0)
        channels_last = None if traced else wants_channels_last(inner, weight, stride, dilation, groups)
        flat = tuple(amount for pair in zeros for amount in pair)
        geometry = Geometry(stride, flat, dilation, groups, channels_last, algorithm)
        direct: bool = algorithm == "vendor"
        if not traced:
            spread = inner.shape[2:] if border is None else map(_sum, inner.shape[2:], pairs)
            shape = (*inner.shape[:2], *spread)
            direct = is_native(
                "forward", shape, tuple(weight.shape), bias is not None, dtype, input.device, geometry
            )
        native = (0,) * ndim if written else tuple(before for before, _ in pairs)
        integer = dtype == torch.int32 and input.dtype != torch.int32
        return cls(
            geometry=geometry,
            dtype=dtype,
            integer=integer,
            mode=mode,
            border=border,
            written=written,
            native_padding=native,
            batched=batched,
            direct=direct,
            direct_training=None,
            call=None if written or integer else (stride, native, dilation, groups),
        )

    @classmethod
    def make_transposed(
        cls,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        window: tuple[tuple[int, ...], Pairs, tuple[int, ...], int],
        *,
        result: tuple[int, ...],
        extra: tuple[int, ...],
        algorithm: str,
    ) -> Recipe:
        """The same for a transposed convolution: the input gradient of the convolution from ``result``."""
        stride, pairs, dilation, groups = window
        ndim = len(stride)
        batched = input.dim() == ndim + 2
        traced = torch.compiler.is_compiling() or not is_plain(input, weight, bias)
        inner = input if batched else input.unsqueeze(0)
        channels_last = None if traced else wants_channels_last(inner, weight, stride, dilation, groups, True)
        flat = tuple(amount for pair in pairs for amount in pair)
        geometry = Geometry(stride, flat, dilation, groups, channels_last, algorithm)
        direct: bool = algorithm == "vendor"
        if not traced:
            shape = (inner.shape[0], weight.shape[1] * groups, *result)
            direct = is_native("input_grad", shape, tuple(weight.shape), False, dtype, input.device, geometry)
        even = tuple(min(pair) for pair in pairs)
        uneven = any(before != after for before, after in pairs)
        beyond = tuple((0, e // s) for e, s in zip(extra, stride, strict=True))
        whole = not (dtype.is_floating_point or dtype.is_complex)
        return cls(
            geometry=geometry,
            dtype=dtype,
            integer=dtype == torch.int32 and input.dtype != torch.int32,
            mode="zeros",
            border=tuple((b - e, a - e) for (b, a), e in zip(pairs, even, strict=True)) if uneven else None,
            written=beyond if any(map(any, beyond)) else None,
            native_padding=even,
            batched=batched,
            direct=direct,
            direct_training=None,
            input_size=result,
            output_padding=extra,
            call=None if uneven or whole else (stride, even, extra, groups, dilation),
        )

    def is_direct(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Whether torch's own operator computes all that is needed of this call."""
        if not self.direct or self.direct_training:
            return self.direct
        if not torch.is_grad_enabled() or not (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return True
        if self.direct_training is None:
            self.direct_training = self._trains_directly(input, weight, bias)
        return self.direct_training

    def _trains_directly(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        if torch.compiler.is_compiling() or self.geometry.channels_last is None:
            return self.geometry.algorithm == "vendor"
        if self.dtype == torch.bfloat16 and self._has_places_without_a_window(weight):
            return False  # torch 2.13 gives wrong second gradients of this type there
        batch = input.shape[0] if self.batched else 1
        first: Direction = "input_grad"
        if self.input_size:
            first = "forward"
            shape = (batch, weight.shape[1] * self.geometry.groups, *self.input_size)
        else:
            space = input.shape[-len(self.geometry.stride) :]
            spread = space if self.border is None else map(_sum, space, self.border)
            shape = (batch, weight.shape[1] * self.geometry.groups, *spread)
        rest = self.dtype, input.device, self.geometry
        kernel = tuple(weight.shape)
        return is_native(first, shape, kernel, False, *rest) and is_native(
            "weight_grad", shape, kernel, bias is not None and not self.input_size, *rest
        )

    def _has_places_without_a_window(self, weight: torch.Tensor) -> bool:
        """Whether output padding adds places that no window reaches, on some axis."""
        spans = (d * (k - 1) for d, k in zip(self.geometry.dilation, weight.shape[2:], strict=True))
        return any(extra > span for extra, span in zip(self.output_padding, spans, strict=False))

    def cast(self, tensor: Any) -> Any:
        """An operand in the type that it is computed in."""
        return tensor if tensor is None or tensor.dtype == self.dtype else tensor.to(self.dtype)


def is_native(
    direction: Direction,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias: bool,
    dtype: torch.dtype,
    device: torch.device,
    geometry: Geometry,
) -> bool:
    """Whether torch's own operator may compute this direction: planned, asked for, or nothing to compute."""
    if 0 in (*input_shape[:2], *weight_shape[:2]) or device.type == "meta":
        return True
    if geometry.algorithm == "auto" and not (dtype.is_floating_point or dtype.is_complex):
        return True
    if settings.current().batch_invariant and input_shape[0] > 1 and direction != "weight_grad":
        return False
    if geometry.algorithm == "vendor":
        return True
    return planned(direction, input_shape, weight_shape, bias, dtype, device.type, geometry).kernel == "vendor"


def _sum(size: int, pair: tuple[int, int]) -> int:
    return size + sum(pair)


class Recipes:
    """The recipes of one family of operators, by everything that they depend on."""

    def __init__(self) -> None:
        self._recipes: dict[Any, Recipe] = {}
        settings.on_change(self.clear)

    def find(
        self, ndim: int, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arguments: Any
    ) -> Recipe | None:
        """The recipe of an earlier call like this one; None if there is none, or while tracing."""
        if torch.compiler.is_compiling():
            return None
        try:
            # written out rather than called, as this is what every call of an operator pays for
            return self._recipes.get(
                (
                    ndim,
                    input.shape,
                    weight.shape,
                    input.stride(),
                    weight.stride(),
                    input.dtype,
                    weight.dtype,
                    None if bias is None else (bias.shape, bias.dtype),
                    input.device,
                    arguments,
                    autocast_dtype(input.device.type) if torch._C._is_any_autocast_enabled() else None,
                    torch.get_num_threads(),
                )
            )
        except (TypeError, AttributeError, RuntimeError):
            pass
        try:  # again with tuples in place of lists
            return self._recipes.get(_key(ndim, input, weight, bias, hashable(arguments)))
        except (TypeError, AttributeError, RuntimeError):  # no tensors, symbolic shapes, a layout without strides
            return None

    def keep(
        self,
        recipe: Recipe,
        ndim: int,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        arguments: Any,
    ) -> None:
        """Remember a recipe, unless it was made while tracing."""
        if recipe.geometry.channels_last is None:
            return
        if len(self._recipes) >= _MOST_RECIPES:
            self._recipes.clear()
        self._recipes[_key(ndim, input, weight, bias, hashable(arguments))] = recipe

    def clear(self) -> None:
        """Forget: plans may have changed."""
        self._recipes.clear()


def _key(
    ndim: int, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (
        ndim,
        input.shape,
        weight.shape,
        input.stride(),
        weight.stride(),
        input.dtype,
        weight.dtype,
        None if bias is None else (bias.shape, bias.dtype),
        input.device,
        arguments,
        autocast_dtype(input.device.type) if torch._C._is_any_autocast_enabled() else None,
        torch.get_num_threads(),
    )
