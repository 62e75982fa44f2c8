"""`torch.vmap` of the registered operators: the mapped axis joins the images, or becomes groups.

An axis mapped over images only joins the batch; one mapped over the weight makes its copies further groups, each
with its own images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["conv_rule", "register", "weight_grad_rule"]

_GROUPS = 3  # place of ``groups`` after stride, padding and dilation


def _front(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """The mapped axis first; a view that repeats the tensor where it is not mapped."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _with_groups(geometry: Sequence[Any], groups: int) -> list[Any]:
    changed = list(geometry)
    changed[_GROUPS] = groups
    return changed


def _plus(out: torch.Tensor, bias: torch.Tensor | None, dim: int | None) -> torch.Tensor:
    """``(B, N, O, *spatial)`` plus a bias that may be mapped."""
    if bias is None:
        return out
    space = (1,) * (out.dim() - 3)
    bias = bias.movedim(dim, 0).unsqueeze(1) if dim is not None else bias
    return out + bias.reshape(*bias.shape, *space)


def _join(op: Callable[..., torch.Tensor], first: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Images ``(B, N, ...)`` through ``op`` as one batch; ``(B, N, ...)`` out."""
    out = op(first.reshape(-1, *first.shape[2:]), *rest)
    return out.reshape(*first.shape[:2], *out.shape[1:])


def _over_weight(
    op: Callable[..., torch.Tensor],
    size: int,
    first: tuple[torch.Tensor, int | None],
    weight: tuple[torch.Tensor, int],
    between: Sequence[Any],
    geometry: Sequence[Any],
) -> torch.Tensor:
    """Weight mapped (axis B): images repeated as further groups, so that every copy has its own."""
    groups = geometry[_GROUPS]
    images = _front(*first, size)  # B, N, C, ...
    images = images.movedim(0, 1).flatten(1, 2)  # N, B*C, ...
    kernels = _front(*weight, size).flatten(0, 1)  # B*O, C/g, ...
    out = op(images, kernels, None, *between, *_with_groups(geometry, groups * size))
    result: torch.Tensor = out.unflatten(1, (size, -1)).movedim(1, 0)
    return result


def conv_rule(op: Callable[..., torch.Tensor], between_count: int) -> Callable[..., Any]:
    """The rule of ``conv`` and ``conv_transposed``, which differ in what stands before the geometry."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[torch.Tensor, int]:
        first, weight, bias, *others = args
        between, geometry = others[:between_count], others[between_count:]
        first_dim, weight_dim, bias_dim = in_dims[:3]
        size = info.batch_size
        if weight_dim is None:
            plain_bias = bias if bias_dim is None else None
            if first_dim is None:
                out = op(first, weight, plain_bias, *between, *geometry).unsqueeze(0)
            else:
                out = _join(op, first.movedim(first_dim, 0), weight, plain_bias, *between, *geometry)
            if bias_dim is not None:
                out = _plus(out.expand(size, *out.shape[1:]), bias, bias_dim)
            return out, 0
        out = _over_weight(op, size, (first, first_dim), (weight, weight_dim), between, geometry)
        return _plus(out, bias, bias_dim), 0

    return rule


def weight_grad_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of ``conv_weight_grad``: every copy has its own groups."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        grad, input, kernel_size, bias, *geometry = args
        size, groups = info.batch_size, geometry[_GROUPS]
        grads = _front(grad, in_dims[0], size).movedim(0, 1).flatten(1, 2)  # N, B*O, ...
        inputs = _front(input, in_dims[1], size).movedim(0, 1).flatten(1, 2)
        weight, to_bias = op(grads, inputs, kernel_size, bias, *_with_groups(geometry, groups * size))
        if not bias:
            to_bias = to_bias.expand(size, 0)
        return (weight.unflatten(0, (size, -1)), to_bias.reshape(size, -1)), (0, 0)

    return rule


def register(library: torch.library.Library) -> None:
    """Tell torch the rules."""
    ops = torch.ops.convlens
    torch.library.register_vmap("convlens::conv", conv_rule(ops.conv, 0), lib=library)
    torch.library.register_vmap("convlens::conv_transposed", conv_rule(ops.conv_transposed, 1), lib=library)
    torch.library.register_vmap("convlens::conv_weight_grad", weight_grad_rule(ops.conv_weight_grad), lib=library)
