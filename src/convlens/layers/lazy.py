"""Convolution layers that learn ``in_channels`` from their first input, as torch.nn's lazy ones."""

# torch's lazy mixin declares attributes and a self type that no subclass of a layer satisfies
# mypy: disable-error-code="misc,call-arg,assignment"

from __future__ import annotations

from typing import Any, ClassVar

from torch.nn.modules.conv import _LazyConvXdMixin
from torch.nn.parameter import UninitializedParameter

from convlens.layers.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    checked_channels,
)

__all__ = [
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]


class _LazyConvolution(_LazyConvXdMixin):
    """A convolution that learns ``in_channels`` from its first input, and then becomes ``cls_to_become``."""

    ndim: ClassVar[int]

    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        flip: bool = False,
        algorithm: str = "auto",
    ) -> None:
        checked_channels(0, out_channels, groups)
        window = (kernel_size, stride, padding, dilation, groups, False, padding_mode, device, dtype)
        super().__init__(0, 0, *window, flip=flip, algorithm=algorithm)
        _uninitialised(self, out_channels, bias, device, dtype)

    def _get_num_spatial_dims(self) -> int:
        return self.ndim


class _LazyTransposed(_LazyConvXdMixin):
    """A transposed convolution that learns ``in_channels`` from its first input."""

    ndim: ClassVar[int]

    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        flip: bool = False,
        algorithm: str = "auto",
    ) -> None:
        checked_channels(0, out_channels, groups)
        window = (
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            False,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        super().__init__(0, 0, *window, flip=flip, algorithm=algorithm)
        _uninitialised(self, out_channels, bias, device, dtype)

    def _get_num_spatial_dims(self) -> int:
        return self.ndim


def _uninitialised(layer: Any, out_channels: int, bias: bool, device: Any, dtype: Any) -> None:
    layer.weight = UninitializedParameter(device=device, dtype=dtype)
    layer.out_channels = out_channels
    if bias:
        layer.bias = UninitializedParameter(device=device, dtype=dtype)


class LazyConv1d(_LazyConvolution, Conv1d):
    """`Conv1d` whose in_channels come from the first input."""

    cls_to_become = Conv1d


class LazyConv2d(_LazyConvolution, Conv2d):
    """`Conv2d` whose in_channels come from the first input."""

    cls_to_become = Conv2d


class LazyConv3d(_LazyConvolution, Conv3d):
    """`Conv3d` whose in_channels come from the first input."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(_LazyTransposed, ConvTranspose1d):
    """`ConvTranspose1d` whose in_channels come from the first input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyTransposed, ConvTranspose2d):
    """`ConvTranspose2d` whose in_channels come from the first input."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyTransposed, ConvTranspose3d):
    """`ConvTranspose3d` whose in_channels come from the first input."""

    cls_to_become = ConvTranspose3d
