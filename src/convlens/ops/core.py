"""The three convolutions that are each other's derivatives (row C5), below the door.

With ``x`` the input, ``w`` the weight and ``g`` the gradient of the output:

- `convolve` ``(x, w)``; its derivatives are `transpose` ``(g, w)`` and `weight_grad` ``(g, x)``;
- `transpose` ``(g, w)``, the transposed convolution; its derivatives are `convolve` and `weight_grad`;
- `weight_grad` ``(g, x)``; its derivatives are `convolve` and `transpose`.

So every derivative of any order is again computed by the algorithm that was asked for. Plain tensors go
straight to the kernel; under `torch.compile`, fake tensors, functorch or a dispatch mode the same functions are
the registered operators of `convlens.ops.registered`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from convlens.ops.layout import (
    channels_last_strides,
    in_layout,
    is_dense_either_way,
    keeps_short_strides,
    not_a_view,
    wants_channels_last,
)
from convlens.planner import Plan, execute, plan, settings
from convlens.window import ConvProblem, Direction, Epilogue

__all__ = ["Geometry", "convolve", "is_plain", "transpose", "weight_grad"]


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Geometry(NamedTuple):
    """What a convolution needs to know besides its tensors, in the order of the registered operators."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    """Zeros: ``before, after`` of each axis in turn."""
    dilation: tuple[int, ...]
    groups: int
    channels_last: bool | None
    """Layout of inputs, outputs and gradients; None: as torch has it for the input and weight at hand."""
    algorithm: str


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether these are ordinary tensors with nothing watching, so that the dispatcher can be left out."""
    if torch._C._len_torch_dispatch_stack() > 0 or is_transformed():
        return False
    for tensor in tensors:  # noqa: SIM110  (asked in every call, and a generator takes twice the time)
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return False
    return True


def is_transformed() -> bool:
    """Whether `torch.func`, forward-mode differentiation or `torch.jit.trace` (ONNX export) is at work."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._get_tracing_state() is not None:
        return True
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
) -> torch.Tensor:
    """Cross-correlation of ``(N, C, *spatial)`` with ``(O, C/groups, *kernel)``: differentiable."""
    if torch.compiler.is_compiling() or not is_plain(input, weight, bias):
        door = _transforms().Convolve.apply if is_transformed() else torch.ops.convlens.conv
        out: torch.Tensor = door(input, weight, bias, *geometry)
        return out
    if torch.is_grad_enabled() and _any_requires_grad(input, weight, bias):
        return _Convolve.apply(input, weight, bias, geometry)  # type: ignore[no-any-return]
    return run_convolve(input, weight, bias, geometry)


def transpose(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_size: tuple[int, ...],
    geometry: Geometry,
) -> torch.Tensor:
    """Transposed convolution of ``(N, O, *out)`` with ``(O, C/groups, *kernel)`` to ``(N, C, *input_size)``."""
    if torch.compiler.is_compiling() or not is_plain(grad_output, weight, bias):
        door = _transforms().Transpose.apply if is_transformed() else torch.ops.convlens.conv_transposed
        out: torch.Tensor = door(grad_output, weight, bias, input_size, *geometry)
        return out
    if torch.is_grad_enabled() and _any_requires_grad(grad_output, weight, bias):
        return _Transpose.apply(grad_output, weight, bias, input_size, geometry)  # type: ignore[no-any-return]
    return run_transpose(grad_output, weight, bias, input_size, geometry)


def weight_grad(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kernel_size: tuple[int, ...],
    with_bias: bool,
    geometry: Geometry,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weight and bias from ``(N, O, *out)`` and ``(N, C, *spatial)``; bias empty if not asked for."""
    args = (grad_output, input, kernel_size, with_bias)
    if torch.compiler.is_compiling() or not is_plain(grad_output, input):
        door = _transforms().WeightGrad.apply if is_transformed() else torch.ops.convlens.conv_weight_grad
        grads: tuple[torch.Tensor, torch.Tensor] = door(*args, *geometry)
        return grads
    if torch.is_grad_enabled() and _any_requires_grad(grad_output, input):
        return _WeightGrad.apply(*args, geometry)  # type: ignore[no-any-return]
    return run_weight_grad(*args, geometry)


def _transforms() -> Any:
    from convlens.ops import transforms

    return transforms


def _any_requires_grad(*tensors: torch.Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def settled(geometry: Geometry, input: torch.Tensor, weight: torch.Tensor, transposed: bool = False) -> Geometry:
    """``geometry`` with its layout decided."""
    if geometry.channels_last is not None:
        return geometry
    last = wants_channels_last(input, weight, geometry.stride, geometry.dilation, geometry.groups, transposed)
    return geometry._replace(channels_last=last)


# --- computing: no autograd below this line -------------------------------------------------------------------


def run_convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
) -> torch.Tensor:
    """`convolve` without autograd: plan, execute."""
    geometry = settled(geometry, input, weight)
    chosen = planned(
        "forward", input.shape, weight.shape, bias is not None, input.dtype, input.device.type, geometry
    )
    (out,) = _execute(chosen, input, weight, bias)
    return in_layout(out, bool(geometry.channels_last))


def run_transpose(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_size: tuple[int, ...],
    geometry: Geometry,
) -> torch.Tensor:
    """`transpose` without autograd: plan, execute, add the bias."""
    geometry = settled(geometry, grad_output, weight, transposed=True)
    shape = (grad_output.shape[0], weight.shape[1] * geometry.groups, *input_size)
    dtype, device = grad_output.dtype, grad_output.device.type
    chosen = planned("input_grad", shape, weight.shape, False, dtype, device, geometry)
    (out,) = _execute(chosen, grad_output, weight)
    out = in_layout(out, bool(geometry.channels_last))
    return out if bias is None else out.add_(bias.view(-1, *(1,) * len(input_size)))


def run_weight_grad(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    kernel_size: tuple[int, ...],
    with_bias: bool,
    geometry: Geometry,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight_grad` without autograd: plan, execute."""
    shape = (grad_output.shape[1], input.shape[1] // geometry.groups, *kernel_size)
    chosen = planned("weight_grad", input.shape, shape, with_bias, input.dtype, input.device.type, geometry)
    grads = _execute(chosen, grad_output, input)
    weight = in_layout(grads[0], bool(geometry.channels_last) and not is_dense_either_way(shape))
    return weight, grads[1] if with_bias else weight.new_empty(0)


def _execute(chosen: Plan, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    if not torch._C._is_any_autocast_enabled():
        return execute(chosen, *operands)
    # the operands are in the right type already: autocast must not narrow the sums inside a kernel
    with torch.autocast(chosen.problem.device, enabled=False):
        return execute(chosen, *operands)


@lru_cache(maxsize=8192)
def planned(
    direction: Direction,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias: bool,
    dtype: torch.dtype,
    device: str,
    geometry: Geometry,
) -> Plan:
    """The plan for one direction of a convolution."""
    pads = geometry.padding
    problem = ConvProblem(
        direction,
        batch=input_shape[0],
        in_channels=input_shape[1],
        input_size=tuple(input_shape[2:]),
        out_channels=weight_shape[0],
        kernel_size=tuple(weight_shape[2:]),
        stride=geometry.stride,
        padding=tuple(zip(pads[::2], pads[1::2], strict=True)),
        dilation=geometry.dilation,
        groups=geometry.groups,
        dtype=str(dtype).removeprefix("torch."),
        layout="channels_last" if geometry.channels_last else "contiguous",
        device=device,
        epilogue=Epilogue(bias=bias),
    )
    return plan(problem, geometry.algorithm)


settings.on_change(planned.cache_clear)


# --- differentiating: shared by the eager functions and the registered operators ------------------------------


def convolve_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Gradients of `convolve` with respect to input, weight and bias."""
    input, weight = ctx.saved_tensors
    geometry: Geometry = ctx.geometry
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_input = grad_weight = grad_bias = None
    backend = (input, weight, geometry, False)
    if need_input:
        there = _complex(_unless_short(geometry, input, backend), grad)
        grad_input = transpose(grad, weight.conj(), None, tuple(input.shape[2:]), there)
    if need_weight:
        kernel = tuple(weight.shape[2:])
        there = _complex(geometry, grad)
        grad_weight, grad_bias = weight_grad(grad, input.conj(), kernel, need_bias, there)
        grad_weight = _with_strides_of(grad_weight, there, backend)
    elif need_bias:
        grad_bias = _sum_to_channels(grad)
    return grad_input, grad_weight, grad_bias if need_bias else None


def transpose_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Gradients of `transpose` with respect to its first tensor, weight and bias."""
    grad_output, weight = ctx.saved_tensors
    geometry: Geometry = ctx.geometry
    need_output, need_weight, need_bias = ctx.needs_input_grad[:3]
    to_output = to_weight = None
    if need_output:
        to_output = convolve(grad, weight.conj(), None, _complex(geometry, grad))
    if need_weight:
        kernel = tuple(weight.shape[2:])
        there = _complex(geometry, grad)
        to_weight, _ = weight_grad(grad_output.conj(), grad, kernel, False, there)
        to_weight = _with_strides_of(to_weight, there, (grad_output, weight, geometry, True))
    return to_output, to_weight, _sum_to_channels(grad) if need_bias else None


def weight_grad_backward(ctx: Any, grad: torch.Tensor, grad_bias: torch.Tensor | None) -> tuple[Any, ...]:
    """Gradients of `weight_grad` with respect to its two tensors."""
    grad_output, input = ctx.saved_tensors
    geometry = _complex(ctx.geometry, grad)
    need_output, need_input = ctx.needs_input_grad[:2]
    to_output = to_input = None
    if need_output:
        to_output = convolve(input.conj(), grad, grad_bias if ctx.with_bias else None, geometry)
    if need_input:
        to_input = transpose(grad_output.conj(), grad, None, tuple(input.shape[2:]), geometry)
    return to_output, to_input


_Backend = tuple[torch.Tensor, torch.Tensor, Geometry, bool]


def _leaves_short(backend: _Backend) -> bool:
    input, weight, geometry, transposed = backend
    return keeps_short_strides(input, weight, geometry.stride, geometry.dilation, geometry.groups, transposed)


def _unless_short(geometry: Geometry, input: torch.Tensor, backend: _Backend) -> Geometry:
    """The geometry for an input gradient, whose strides are torch's in axes of one place too."""
    if geometry.channels_last and input.shape[1] == 1 and _leaves_short(backend):
        return geometry._replace(channels_last=False)
    return geometry


def _with_strides_of(grad_weight: torch.Tensor, geometry: Geometry, backend: _Backend) -> torch.Tensor:
    """A weight's gradient with torch's strides in axes of one place."""
    if not (geometry.channels_last and is_dense_either_way(grad_weight.shape)) or _leaves_short(backend):
        return grad_weight
    return grad_weight.as_strided(grad_weight.shape, channels_last_strides(grad_weight.shape))


def _sum_to_channels(grad: torch.Tensor) -> torch.Tensor:
    return grad.sum([0, *range(2, grad.dim())])


def _complex(geometry: Geometry, grad: torch.Tensor) -> Geometry:
    """Torch computes complex gradients from their parts and returns them contiguous."""
    return geometry._replace(channels_last=False) if geometry.channels_last and grad.is_complex() else geometry


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Any, weight: Any, bias: Any, geometry: Geometry) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        return not_a_view(run_convolve(input, weight, bias, geometry))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *convolve_backward(ctx, *grads), None


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_output: Any, weight: Any, bias: Any, input_size: tuple[int, ...], geometry: Geometry
    ) -> torch.Tensor:
        ctx.save_for_backward(grad_output, weight)
        ctx.geometry = geometry
        return not_a_view(run_transpose(grad_output, weight, bias, input_size, geometry))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *transpose_backward(ctx, *grads), None, None


class _WeightGrad(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_output: Any, input: Any, kernel_size: tuple[int, ...], with_bias: bool, geometry: Geometry
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(grad_output, input)
        ctx.geometry = geometry
        ctx.with_bias = with_bias
        return run_weight_grad(grad_output, input, kernel_size, with_bias, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *weight_grad_backward(ctx, *grads), None, None, None
