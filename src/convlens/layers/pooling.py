"""Pooling layers: torch.nn's constructors and printed form, with the paddings of `convlens.ops`.

Each is a subclass of its torch.nn namesake; what is ours sits in the underlined classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from convlens import ops
from convlens.ops.padding import require_mode

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "GlobalAvgPool1d",
    "GlobalAvgPool2d",
    "GlobalAvgPool3d",
    "GlobalMaxPool1d",
    "GlobalMaxPool2d",
    "GlobalMaxPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]


class _Padded(torch.nn.Module):
    """Padding and padding mode of a pooling layer."""

    compute: ClassVar[Callable[..., Any]]
    # a class attribute, so that a torch.nn layer whose class is exchanged for ours has it too
    padding_mode: str = "zeros"

    def _keep_padding(self, padding: Any, padding_mode: str) -> None:
        require_mode(padding_mode)
        self.padding = padding
        if padding_mode != "zeros":
            self.padding_mode = padding_mode

    def extra_repr(self) -> str:
        """As torch.nn prints it, with what is ours where it is set."""
        text = super().extra_repr()
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"


class _MaxPool(_Padded):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, 0, dilation, return_indices, ceil_mode)
        self._keep_padding(padding, padding_mode)

    def forward(self, input: torch.Tensor) -> Any:
        """The pooled input, with indices if asked for."""
        return type(self).compute(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            padding_mode=self.padding_mode,
        )


class _AvgPool(_Padded):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, 0, ceil_mode, count_include_pad, divisor_override)
        self._keep_padding(padding, padding_mode)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The pooled input."""
        pooled: torch.Tensor = type(self).compute(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            padding_mode=self.padding_mode,
        )
        return pooled


class AvgPool1d(_Padded, torch.nn.AvgPool1d):
    """The mean under each window of ``(N, C, L)``; arguments as `AvgPool2d`, without a divisor."""

    compute = staticmethod(ops.avg_pool1d)

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        padding_mode: str = "zeros",
    ) -> None:
        torch.nn.AvgPool1d.__init__(self, kernel_size, stride, 0, ceil_mode, count_include_pad)
        numbers = isinstance(padding, int)
        self._keep_padding((padding,) if numbers else padding, padding_mode)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The pooled input."""
        pooled: torch.Tensor = type(self).compute(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            padding_mode=self.padding_mode,
        )
        return pooled


class _LPPool(_Padded):
    padding: Any = 0

    def __init__(
        self,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
        *,
        padding: Any = 0,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(norm_type, kernel_size, stride, ceil_mode)
        if padding != 0:
            self._keep_padding(padding, padding_mode)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The pooled input."""
        pooled: torch.Tensor = type(self).compute(
            input,
            self.norm_type,
            self.kernel_size,
            self.stride,
            self.ceil_mode,
            padding=self.padding,
            padding_mode=self.padding_mode,
        )
        return pooled

    def extra_repr(self) -> str:
        """As torch.nn prints it, with the padding where there is one."""
        return super().extra_repr() + (f", padding={self.padding}" if self.padding != 0 else "")


class _Adaptive(torch.nn.Module):
    compute: ClassVar[Callable[..., Any]]
    output_size: Any

    def forward(self, input: torch.Tensor) -> Any:
        """The pooled input."""
        return type(self).compute(input, self.output_size)


class _AdaptiveMax(_Adaptive):
    return_indices: bool

    def forward(self, input: torch.Tensor) -> Any:
        """The pooled input, with indices if asked for."""
        return type(self).compute(input, self.output_size, self.return_indices)


class _Global(torch.nn.Module):
    compute: ClassVar[Callable[..., torch.Tensor]]

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """One value per plane, ``(N, C, 1, ...)``."""
        return type(self).compute(input)


class _MaxUnpool(_Padded):
    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        ndim = int(type(self).__name__[-2])
        super().__init__(kernel_size, stride, 0)
        self.padding = (padding,) * ndim if isinstance(padding, int) else padding

    def forward(
        self, input: torch.Tensor, indices: torch.Tensor, output_size: list[int] | None = None
    ) -> torch.Tensor:
        """Each value back where its maximum was, zeros elsewhere."""
        unpooled: torch.Tensor = type(self).compute(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
        return unpooled


class MaxPool1d(_MaxPool, torch.nn.MaxPool1d):
    """The largest value under each window; torch.nn.MaxPool1d's arguments, paddings of `ops.max_pool2d`."""

    compute = staticmethod(ops.max_pool1d)


class MaxPool2d(_MaxPool, torch.nn.MaxPool2d):
    """The largest value under each window; torch.nn.MaxPool2d's arguments, paddings of `ops.max_pool2d`."""

    compute = staticmethod(ops.max_pool2d)


class MaxPool3d(_MaxPool, torch.nn.MaxPool3d):
    """The largest value under each window; torch.nn.MaxPool3d's arguments, paddings of `ops.max_pool2d`."""

    compute = staticmethod(ops.max_pool3d)


class AvgPool2d(_AvgPool, torch.nn.AvgPool2d):
    """The mean under each window; torch.nn.AvgPool2d's arguments, paddings of `ops.avg_pool2d`."""

    compute = staticmethod(ops.avg_pool2d)


class AvgPool3d(_AvgPool, torch.nn.AvgPool3d):
    """The mean under each window; torch.nn.AvgPool3d's arguments, paddings of `ops.avg_pool2d`."""

    compute = staticmethod(ops.avg_pool3d)


class LPPool1d(_LPPool, torch.nn.LPPool1d):
    """The p-norm under each window; arguments as torch.nn.LPPool1d, and a padding."""

    compute = staticmethod(ops.lp_pool1d)


class LPPool2d(_LPPool, torch.nn.LPPool2d):
    """The p-norm under each window; arguments as torch.nn.LPPool2d, and a padding."""

    compute = staticmethod(ops.lp_pool2d)


class LPPool3d(_LPPool, torch.nn.LPPool3d):
    """The p-norm under each window; arguments as torch.nn.LPPool3d, and a padding."""

    compute = staticmethod(ops.lp_pool3d)


class AdaptiveAvgPool1d(_Adaptive, torch.nn.AdaptiveAvgPool1d):
    """The mean of each of ``output_size`` regions."""

    compute = staticmethod(ops.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_Adaptive, torch.nn.AdaptiveAvgPool2d):
    """The mean of each of ``output_size`` regions."""

    compute = staticmethod(ops.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_Adaptive, torch.nn.AdaptiveAvgPool3d):
    """The mean of each of ``output_size`` regions."""

    compute = staticmethod(ops.adaptive_avg_pool3d)


class AdaptiveMaxPool1d(_AdaptiveMax, torch.nn.AdaptiveMaxPool1d):
    """The largest value of each of ``output_size`` regions."""

    compute = staticmethod(ops.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMax, torch.nn.AdaptiveMaxPool2d):
    """The largest value of each of ``output_size`` regions."""

    compute = staticmethod(ops.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMax, torch.nn.AdaptiveMaxPool3d):
    """The largest value of each of ``output_size`` regions."""

    compute = staticmethod(ops.adaptive_max_pool3d)


class MaxUnpool1d(_MaxUnpool, torch.nn.MaxUnpool1d):
    """The partial inverse of `MaxPool1d`; padding may be pairs."""

    compute = staticmethod(ops.max_unpool1d)


class MaxUnpool2d(_MaxUnpool, torch.nn.MaxUnpool2d):
    """The partial inverse of `MaxPool2d`; padding may be pairs."""

    compute = staticmethod(ops.max_unpool2d)


class MaxUnpool3d(_MaxUnpool, torch.nn.MaxUnpool3d):
    """The partial inverse of `MaxPool3d`; padding may be pairs."""

    compute = staticmethod(ops.max_unpool3d)


class GlobalAvgPool1d(_Global):
    """The mean of each whole plane."""

    compute = staticmethod(ops.global_avg_pool1d)


class GlobalAvgPool2d(_Global):
    """The mean of each whole plane."""

    compute = staticmethod(ops.global_avg_pool2d)


class GlobalAvgPool3d(_Global):
    """The mean of each whole plane."""

    compute = staticmethod(ops.global_avg_pool3d)


class GlobalMaxPool1d(_Global):
    """The largest value of each whole plane."""

    compute = staticmethod(ops.global_max_pool1d)


class GlobalMaxPool2d(_Global):
    """The largest value of each whole plane."""

    compute = staticmethod(ops.global_max_pool2d)


class GlobalMaxPool3d(_Global):
    """The largest value of each whole plane."""

    compute = staticmethod(ops.global_max_pool3d)
