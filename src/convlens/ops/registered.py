"""The operators as torch knows them: ``torch.ops.convlens.conv``, ``conv_transposed``, ``conv_weight_grad``.

With fake kernels, gradients of any order, autocast and vmap, so that they pass through `torch.compile`,
`torch.export` and `torch.func`. Their arguments are already normal: batched tensors, one number per axis,
padding as ``before, after`` of each axis in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from convlens.ops import batching, core
from convlens.ops.core import Geometry
from convlens.ops.layout import CHANNELS_LAST, is_dense_either_way
from convlens.window import windows_that_fit

__all__: list[str] = []

_GEOMETRY = (
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, bool? channels_last, str algorithm"
)
_LIBRARY = torch.library.Library("convlens", "DEF")


def _define(name: str, schema: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convlens::{name}", fake, lib=_LIBRARY)
    packet = getattr(torch.ops.convlens, name)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, _autocast(packet, device.lower()), f"Autocast{device}")


def _autocast(packet: Any, device: str) -> Callable[..., Any]:
    """Inputs in autocast's type, as torch's own convolutions have it."""

    def run(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch.amp.autocast(device, enabled=False):
            return packet(*(cast(arg, dtype) for arg in args))

    return run


def cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` in ``dtype`` if autocast would convert it."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _geometry(args: Sequence[Any]) -> Geometry:
    stride, padding, dilation, groups, channels_last, algorithm = args
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups, channels_last, algorithm)


def _empty(like: torch.Tensor, shape: Sequence[int], channels_last: bool | None) -> torch.Tensor:
    out = like.new_empty(shape)
    if channels_last and len(shape) in (4, 5):
        return torch.empty_like(out, memory_format=CHANNELS_LAST[len(shape) - 2])
    return out


# --- convolution ----------------------------------------------------------------------------------------------


def _conv(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *args: Any) -> torch.Tensor:
    return core.run_convolve(input, weight, bias, _geometry(args))


def _conv_fake(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *args: Any) -> torch.Tensor:
    g = core.settled(_geometry(args), input, weight)
    pads = list(zip(g.padding[::2], g.padding[1::2], strict=True))
    sizes = zip(input.shape[2:], weight.shape[2:], g.stride, g.dilation, pads, strict=True)
    shape = [input.shape[0], weight.shape[0], *(windows_that_fit(*size) for size in sizes)]
    return _empty(input, shape, g.channels_last)


def _conv_setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    input, weight, _, *args = inputs
    ctx.save_for_backward(input, weight)
    ctx.geometry = core.settled(_geometry(args), input, weight)


def _conv_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return *core.convolve_backward(ctx, grad), *(None,) * 6


_define("conv", f"(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor", _conv, _conv_fake)
torch.library.register_autograd("convlens::conv", _conv_backward, setup_context=_conv_setup, lib=_LIBRARY)


# --- transposed convolution -----------------------------------------------------------------------------------


def _transposed(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_size: Sequence[int],
    *args: Any,
) -> torch.Tensor:
    return core.run_transpose(grad_output, weight, bias, tuple(input_size), _geometry(args))


def _transposed_fake(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_size: Sequence[int],
    *args: Any,
) -> torch.Tensor:
    g = core.settled(_geometry(args), grad_output, weight, transposed=True)
    return _empty(grad_output, [grad_output.shape[0], weight.shape[1] * g.groups, *input_size], g.channels_last)


def _transposed_setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    grad_output, weight, _, _, *args = inputs
    ctx.save_for_backward(grad_output, weight)
    ctx.geometry = core.settled(_geometry(args), grad_output, weight, transposed=True)


def _transposed_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return *core.transpose_backward(ctx, grad), *(None,) * 7


_define(
    "conv_transposed",
    f"(Tensor grad_output, Tensor weight, Tensor? bias, SymInt[] input_size, {_GEOMETRY}) -> Tensor",
    _transposed,
    _transposed_fake,
)
torch.library.register_autograd(
    "convlens::conv_transposed", _transposed_backward, setup_context=_transposed_setup, lib=_LIBRARY
)


# --- gradient of the weight -----------------------------------------------------------------------------------


def _weight_grad(
    grad_output: torch.Tensor, input: torch.Tensor, kernel_size: Sequence[int], with_bias: bool, *args: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return core.run_weight_grad(grad_output, input, tuple(kernel_size), with_bias, _geometry(args))


def _weight_grad_fake(
    grad_output: torch.Tensor, input: torch.Tensor, kernel_size: Sequence[int], with_bias: bool, *args: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    g = _geometry(args)
    shape = [grad_output.shape[1], input.shape[1] // g.groups, *kernel_size]
    bias = input.new_empty(grad_output.shape[1] if with_bias else 0)
    return _empty(input, shape, g.channels_last and not is_dense_either_way(shape)), bias


def _weight_grad_setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    grad_output, input, _, ctx.with_bias, *args = inputs
    ctx.save_for_backward(grad_output, input)
    ctx.geometry = _geometry(args)


def _weight_grad_backward(ctx: Any, grad: torch.Tensor, grad_bias: torch.Tensor) -> tuple[Any, ...]:
    return *core.weight_grad_backward(ctx, grad, grad_bias), *(None,) * 8


_define(
    "conv_weight_grad",
    f"(Tensor grad_output, Tensor input, SymInt[] kernel_size, bool bias, {_GEOMETRY}) -> (Tensor, Tensor)",
    _weight_grad,
    _weight_grad_fake,
)
torch.library.register_autograd(
    "convlens::conv_weight_grad", _weight_grad_backward, setup_context=_weight_grad_setup, lib=_LIBRARY
)

batching.register(_LIBRARY)
