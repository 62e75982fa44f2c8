"""Which memory layout torch gives a convolution's result: ours must be the same, or a net's results change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = [
    "CHANNELS_LAST",
    "channels_last_strides",
    "in_layout",
    "is_dense_either_way",
    "keeps_short_strides",
    "not_a_view",
    "wants_channels_last",
]

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
    backend = _backend(input, weight, stride, dilation, groups, transposed)
    chosen = torch._C._conv_determine_backend_memory_format(input, weight, backend)
    return chosen is CHANNELS_LAST[ndim]


def keeps_short_strides(
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
) -> bool:
    """Whether torch's gradients of this convolution keep contiguous strides where both layouts are dense.

    With one channel, or one place, a tensor is dense in either layout and only the strides of its axes of one
    place tell which was meant. oneDNN's gradients have those of channels_last; torch's other kernels leave them
    alone. Which of them torch takes depends on the type, the sizes and the number of threads.
    """
    return _backend(input, weight, stride, dilation, groups, transposed) in _SLOW


_BACKENDS: Any = vars(torch._C)["_ConvBackend"]
_SLOW = tuple(
    getattr(_BACKENDS, name)
    for name in ("Slow2d", "SlowDilated2d", "SlowTranspose2d", "Slow3d", "SlowDilated3d", "SlowTranspose3d")
)


def _backend(
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
) -> Any:
    """The library that torch would take."""
    zeros = [0] * (weight.dim() - 2)
    # any padding under which every window fits: the choice does not depend on it, the check does
    ample = zeros if transposed else [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return torch._C._select_conv_backend(
        input, weight, None, list(stride), ample, list(dilation), transposed, zeros, groups, None
    )


def in_layout(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """``tensor`` itself or a copy, dense in the layout, with its strides in axes of one place too."""
    if not (channels_last and tensor.dim() in (4, 5)):
        dense = tensor.contiguous()
        return _owner(dense, _strides(dense.shape)) if 1 in dense.shape else dense
    dense = tensor.contiguous(memory_format=CHANNELS_LAST[tensor.dim() - 2])
    if 1 not in dense.shape:
        return dense
    return _owner(dense, channels_last_strides(dense.shape))


def is_dense_either_way(shape: Sequence[int]) -> bool:
    """Whether a tensor is contiguous and in channels_last at once: one channel, or one place."""
    return len(shape) > 3 and (shape[1] == 1 or all(size == 1 for size in shape[2:]))


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of ``(N, C, *spatial)`` with the channels last."""
    batch, channels, *space = shape
    strides = _strides((batch, *space, channels))
    return (strides[0], 1, *strides[1:-1])


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))


def _owner(tensor: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """``tensor`` with other strides for its axes of one place, as a tensor of its own and not as a view."""
    if tensor.stride() == stride:
        return tensor
    place = (tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, stride)
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(*place)


def not_a_view(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, as the owner of its memory: autograd lets nobody change a function's result that is a view.

    Kernels may cut their result out of a larger block; ``torch.nn.ReLU(inplace=True)`` must work on it as well.
    """
    if not tensor._is_view():
        return tensor
    place = (tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(*place)
