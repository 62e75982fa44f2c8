"""Convolution layers: torch.nn's constructors, state_dict keys and printed form, computed by `convlens.ops`.

Each is a subclass of its torch.nn namesake, so that code which asks ``isinstance(layer, torch.nn.Conv2d)``
(initial weights, pruning, counting) goes on working. What is ours sits in `_Convolution` and `_Transposed`; the
rest are fronts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from convlens import ops
from convlens.errors import ArgumentError
from convlens.ops.arguments import as_ints, conv_padding
from convlens.ops.padding import require_mode

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
]


def checked_channels(in_channels: Any, out_channels: Any, groups: Any) -> None:
    as_ints(in_channels, 1, "in_channels", at_least=0)
    as_ints(out_channels, 1, "out_channels", at_least=0)
    as_ints(groups, 1, "groups", at_least=1, phrase="groups must be a positive integer")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            near = max(groups, channels // groups * groups)
            raise ArgumentError(
                name,
                f"a multiple of groups={groups} ({name} must be divisible by groups)",
                f"{channels} = {channels // groups}*{groups} + {channels % groups}",
                f"set {name}={near} or {near + groups}, or groups=1",
            )


def _stored_padding(padding: Any, ndim: int) -> Any:
    """``padding`` as the layer keeps it: a name, numbers per axis as torch has them, or pairs per axis."""
    if isinstance(padding, str):
        conv_padding(padding, (1,) * ndim, (1,) * ndim, (1,) * ndim, (1,) * ndim)  # refuses an unknown name
        return padding
    if isinstance(padding, (tuple, list)) and any(isinstance(side, (tuple, list)) for side in padding):
        return conv_padding(padding, (1,) * ndim, (1,) * ndim, (1,) * ndim, (1,) * ndim)
    return as_ints(padding, ndim, "padding", at_least=0)


class _Convolution(torch.nn.modules.conv._ConvNd):
    """An N-d convolution layer; see `Conv2d`."""

    ndim: ClassVar[int]
    compute: ClassVar[Callable[..., torch.Tensor]]
    # class attributes, so that a torch.nn layer whose class is exchanged for ours has them too
    flip: bool = False
    algorithm: str = "auto"

    def __init__(
        self,
        in_channels: int,
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
        ndim = self.ndim
        require_mode(padding_mode)
        checked_channels(in_channels, out_channels, groups)
        kept = _stored_padding(padding, ndim)
        window = (
            as_ints(kernel_size, ndim, "kernel_size", at_least=1),
            as_ints(stride, ndim, "stride", at_least=1),
        )
        holes = as_ints(dilation, ndim, "dilation", at_least=1)
        # torch's constructor knows fewer paddings: it is given none, and ours are set afterwards
        known: tuple[Any, ...] = (*window, 0, holes, groups, bias, "zeros", device, dtype)
        super().__init__(in_channels, out_channels, *known)
        self.padding = kept
        self.padding_mode = padding_mode  # type: ignore[assignment]
        pairs = conv_padding(kept, (1,) * ndim, window[0], (1,) * ndim, holes)
        self._reversed_padding_repeated_twice = [amount for pair in reversed(pairs) for amount in pair]
        if flip:
            self.flip = True
        if algorithm != "auto":
            self.algorithm = algorithm

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return type(self).compute(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            flip=self.flip,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        """As torch.nn prints it, with what is ours where it is set."""
        text: str = super().extra_repr() + _extras(self)
        return text


def _extras(layer: Any) -> str:
    text = ", flip=True" if layer.flip else ""
    return text + (f", algorithm={layer.algorithm}" if layer.algorithm != "auto" else "")


class Conv1d(_Convolution, torch.nn.Conv1d):
    """1-D convolution of ``(N, C, L)`` or ``(C, L)``; arguments as `Conv2d`."""

    ndim = 1
    compute = staticmethod(ops.conv1d)


class Conv2d(_Convolution, torch.nn.Conv2d):
    """2-D convolution of ``(N, C, H, W)`` or ``(C, H, W)`` with torch.nn.Conv2d's arguments, and more.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: as torch.nn.Conv2d.
        padding: a number, one per axis, pairs ``((top, bottom), (left, right))``, or ``"valid"``, ``"same"`` (any
            stride), ``"same_lower"``, ``"full"``.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"symmetric"``, ``"replicate"`` or ``"circular"``.
        flip: true convolution (the kernel turned around) instead of cross-correlation.
        algorithm: as `convlens.ops.conv2d`.

    Raises:
        ArgumentError: an argument out of range.
    """

    ndim = 2
    compute = staticmethod(ops.conv2d)


class Conv3d(_Convolution, torch.nn.Conv3d):
    """3-D convolution of ``(N, C, D, H, W)`` or ``(C, D, H, W)``; arguments as `Conv2d`."""

    ndim = 3
    compute = staticmethod(ops.conv3d)


class _Transposed(torch.nn.modules.conv._ConvTransposeNd):
    """An N-d transposed convolution layer; see `ConvTranspose2d`."""

    ndim: ClassVar[int]
    compute: ClassVar[Callable[..., torch.Tensor]]
    flip: bool = False
    algorithm: str = "auto"

    def __init__(
        self,
        in_channels: int,
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
        ndim = self.ndim
        if padding_mode != "zeros":
            raise ArgumentError(
                "padding_mode",
                f"'zeros' (Only `zeros` padding mode is supported for {type(self).__name__}: its padding cuts "
                "the result, there is nothing to fill)",
                repr(padding_mode),
            )
        checked_channels(in_channels, out_channels, groups)
        kept = _stored_padding(padding, ndim)
        super().__init__(
            in_channels,
            out_channels,
            as_ints(kernel_size, ndim, "kernel_size", at_least=1),
            as_ints(stride, ndim, "stride", at_least=1),
            0,
            as_ints(output_padding, ndim, "output_padding", at_least=0),
            groups,
            bias,
            as_ints(dilation, ndim, "dilation", at_least=1),
            padding_mode,
            device,
            dtype,
        )
        self.padding = kept
        if flip:
            self.flip = True
        if algorithm != "auto":
            self.algorithm = algorithm

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Transposed convolution of ``input``; ``output_size`` picks among the sizes that a stride leaves open."""
        return type(self).compute(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding if output_size is None else self._missing(input, output_size),
            self.groups,
            self.dilation,
            flip=self.flip,
            algorithm=self.algorithm,
        )

    def _missing(self, input: torch.Tensor, output_size: Any) -> tuple[int, ...]:
        """The output padding that makes the result ``output_size``."""
        ndim = self.ndim
        wanted = tuple(output_size)
        if len(wanted) == input.dim():
            wanted = wanted[-ndim:]
        if len(wanted) != ndim:
            raise ArgumentError("output_size", f"{ndim} or {ndim + 2} numbers", tuple(output_size))
        size = tuple(input.shape[-ndim:])
        pairs = conv_padding(self.padding, wanted, self.kernel_size, self.stride, self.dilation)
        missing = []
        for axis, (n, k, s, d, pair) in enumerate(
            zip(size, self.kernel_size, self.stride, self.dilation, pairs, strict=True)
        ):
            least = (n - 1) * s - sum(pair) + d * (k - 1) + 1
            if not least <= wanted[axis] < least + s:
                raise ArgumentError(
                    "output_size",
                    f"axis {axis} from {least} to {least + s - 1} "
                    f"(({n}-1)*{s} - {sum(pair)} + {d}*({k}-1) + 1 = {least}, plus less than the stride {s})",
                    f"requested an output size of {wanted}",
                )
            missing.append(wanted[axis] - least)
        return tuple(missing)

    def extra_repr(self) -> str:
        """As torch.nn prints it, with what is ours where it is set."""
        text: str = super().extra_repr() + _extras(self)
        return text


class ConvTranspose1d(_Transposed, torch.nn.ConvTranspose1d):
    """1-D transposed convolution; arguments as `ConvTranspose2d`."""

    ndim = 1
    compute = staticmethod(ops.conv_transpose1d)


class ConvTranspose2d(_Transposed, torch.nn.ConvTranspose2d):
    """2-D transposed convolution with torch.nn.ConvTranspose2d's arguments, and more.

    Args:
        in_channels, out_channels, kernel_size, stride, output_padding, groups, bias, dilation, padding_mode: as
            torch.nn.ConvTranspose2d.
        device, dtype: as torch.nn.ConvTranspose2d.
        padding: what is cut from the result: numbers, pairs, or a name.
        flip, algorithm: as `Conv2d`.

    Raises:
        ArgumentError: an argument out of range.
    """

    ndim = 2
    compute = staticmethod(ops.conv_transpose2d)


class ConvTranspose3d(_Transposed, torch.nn.ConvTranspose3d):
    """3-D transposed convolution; arguments as `ConvTranspose2d`."""

    ndim = 3
    compute = staticmethod(ops.conv_transpose3d)
