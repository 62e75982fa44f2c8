"""Which memory layout torch gives a convolution's result: ours must be the same, or a net's results change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["CHANNELS_LAST", "in_layout", "not_a_view", "wants_channels_last"]

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
"""torch's channels-last format by number of spatial axes."""


def wants_channels_last(
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
) -> bool:
    """Whether torch stores the result of this convolution with the channels last.

    Args:
        input: batched, ``(N, C, *spatial)``.
        weight: as the convolution takes it.
        stride: per axis.
        dilation: per axis.
        groups: number of groups.
        transposed: whether it is a transposed convolution.
    """
    ndim = weight.dim() - 2
    if ndim == 1:
        return False
    zeros = [0] * ndim
    # any padding under which every window fits: the layout does not depend on it, the check does
    ample = zeros if transposed else [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    backend = torch._C._select_conv_backend(
        input, weight, None, list(stride), ample, list(dilation), transposed, zeros, groups, None
    )
    chosen = torch._C._conv_determine_backend_memory_format(input, weight, backend)
    return chosen is CHANNELS_LAST[ndim]


def in_layout(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """``tensor`` itself or a copy, dense in the layout."""
    if channels_last and tensor.dim() in (4, 5):
        return tensor.contiguous(memory_format=CHANNELS_LAST[tensor.dim() - 2])
    return tensor.contiguous()


def not_a_view(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, as the owner of its memory: autograd lets nobody change a function's result that is a view.

    Kernels may cut their result out of a larger block; ``torch.nn.ReLU(inplace=True)`` must work on it as well.
    """
    if not tensor._is_view():
        return tensor
    place = (tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(*place)
