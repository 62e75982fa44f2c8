"""One number taken apart: window × kernel, products, sum, bias (row B12), and the same for each gradient (C5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convlens.errors import ArgumentError

__all__ = ["Convolution", "OutputPixel", "WeightGradient", "InputGradient", "input_gradient", "output_pixel",
           "weight_gradient"]  # fmt: skip

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Convolution:
    """The numbers a convolution layer is made of, zero-padded, per axis.

    ``weight`` is ``(out_channels, in_channels / groups, *kernel_size)``; ``padding`` is ``(before, after)``
    per axis, with zeros.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, layer: torch.nn.Module) -> Convolution:
        """The convolution that a torch.nn or convlens layer computes.

        Raises:
            ArgumentError: not a convolution, transposed, or padded with other than zeros.
        """
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 3 or getattr(layer, "transposed", True):
            raise ArgumentError("layer", "a convolution (Conv1d, Conv2d, Conv3d)", type(layer).__name__)
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ArgumentError("layer", "padding_mode='zeros'", repr(layer.padding_mode))
        kernel = tuple(weight.shape[2:])
        dilation = _axes(layer.dilation, len(kernel))
        bias = getattr(layer, "bias", None)
        return cls(
            weight=weight.detach(),
            bias=bias.detach() if isinstance(bias, Tensor) else None,
            stride=_axes(layer.stride, len(kernel)),
            padding=_padding(layer.padding, kernel, dilation),
            dilation=dilation,
            groups=int(layer.groups),  # type: ignore[arg-type]
        )

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output for an input of spatial ``size``."""
        return tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                size, self.padding, self.dilation, self.weight.shape[2:], self.stride, strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class OutputPixel:
    """How one output value came to be.

    Attributes:
        channel, position: which value.
        inputs: input channels that take part.
        start: input coordinates of the window's first tap; may be negative (padding).
        window: ``(channels, *kernel_size)`` input values under the window, 0 in the padding.
        inside: bool ``kernel_size``, False where the window lies in the padding.
        kernel, products: the same shape as ``window``.
        sums: sum of the products of each channel.
        bias, value: ``value == sums.sum() + bias``.
    """

    channel: int
    position: tuple[int, ...]
    inputs: tuple[int, ...]
    start: tuple[int, ...]
    window: Values
    inside: npt.NDArray[np.bool_]
    kernel: Values
    products: Values
    sums: Values
    bias: float
    value: float


@dataclass(frozen=True, slots=True)
class WeightGradient:
    """How one weight's gradient came to be: upstream × input, summed over the shared positions and the batch.

    ``upstream``, ``inputs`` and ``products`` are ``(batch, *output_size)``; ``value`` is the sum of ``products``.
    """

    channel: int
    input_channel: int
    tap: tuple[int, ...]
    upstream: Values
    inputs: Values
    products: Values
    value: float


@dataclass(frozen=True, slots=True)
class InputGradient:
    """How one input pixel's gradient came to be: every output whose window holds the pixel sends its error back.

    ``terms`` lists ``(output channel, output position, weight, upstream, product)``; ``value`` is their sum.
    """

    channel: int
    position: tuple[int, ...]
    terms: tuple[tuple[int, tuple[int, ...], float, float, float], ...]
    value: float


def output_pixel(convolution: Convolution, input: Tensor, channel: int, position: Sequence[int]) -> OutputPixel:
    """Take one output value apart.

    Args:
        convolution: the layer's numbers.
        input: one input ``(in_channels, *size)``.
        channel: output channel.
        position: output coordinates.

    Raises:
        ArgumentError: a channel or position that the output doesn't have.
    """
    place = _checked(convolution, input, channel, position)
    per_group = convolution.weight.shape[1]
    first = channel // (len(convolution.weight) // convolution.groups) * per_group
    start = tuple(p * s - pad[0] for p, s, pad in zip(place, convolution.stride, convolution.padding, strict=True))
    window, inside = _window(input[first : first + per_group].double(), convolution, start)
    kernel = convolution.weight[channel].double().cpu().numpy()
    products = window * kernel
    sums = products.reshape(per_group, -1).sum(axis=1)
    bias = 0.0 if convolution.bias is None else float(convolution.bias[channel])
    return OutputPixel(
        channel=channel,
        position=place,
        inputs=tuple(range(first, first + per_group)),
        start=start,
        window=window,
        inside=inside,
        kernel=kernel,
        products=products,
        sums=sums,
        bias=bias,
        value=float(sums.sum()) + bias,
    )


def weight_gradient(
    convolution: Convolution, input: Tensor, upstream: Tensor, channel: int, input_channel: int, tap: Sequence[int]
) -> WeightGradient:
    """Take the gradient of one weight apart.

    Args:
        convolution: the layer's numbers.
        input: ``(batch, in_channels, *size)``.
        upstream: gradient arriving at the output, ``(batch, out_channels, *output_size)``.
        channel: the weight's output channel.
        input_channel: the weight's input channel *within its group*.
        tap: its place in the kernel.
    """
    per_group = convolution.weight.shape[1]
    first = channel // (len(convolution.weight) // convolution.groups) * per_group
    plane = input[:, first + input_channel].double()
    flat = [amount for pad in reversed(convolution.padding) for amount in pad]
    plane = torch.nn.functional.pad(plane, flat)
    sizes = upstream.shape[2:]
    for axis, (t, s, d, n) in enumerate(zip(tap, convolution.stride, convolution.dilation, sizes, strict=True)):
        begin = t * d
        plane = plane.narrow(1 + axis, begin, (n - 1) * s + 1)
        plane = plane[(slice(None),) * (1 + axis) + (slice(None, None, s),)]
    errors = upstream[:, channel].double()
    products = (plane * errors).cpu().numpy()
    return WeightGradient(
        channel,
        input_channel,
        tuple(tap),
        errors.cpu().numpy(),
        plane.cpu().numpy(),
        products,
        float(products.sum()),
    )


def input_gradient(
    convolution: Convolution, size: Sequence[int], upstream: Tensor, channel: int, position: Sequence[int]
) -> InputGradient:
    """Take the gradient of one input pixel apart.

    Args:
        convolution: the layer's numbers.
        size: spatial size of the input.
        upstream: gradient arriving at the output of one input, ``(out_channels, *output_size)``.
        channel: input channel.
        position: input coordinates.
    """
    weight = convolution.weight.double()
    per_group = weight.shape[1]
    outputs = len(weight) // convolution.groups
    group, inner = divmod(channel, per_group)
    terms = []
    for tap in np.ndindex(*weight.shape[2:]):
        place = _reached_by(convolution, tap, position, convolution.output_size(size))
        if place is None:
            continue
        for out in range(group * outputs, (group + 1) * outputs):
            w, error = float(weight[(out, inner, *tap)]), float(upstream[(out, *place)])
            terms.append((out, place, w, error, w * error))
    return InputGradient(channel, tuple(position), tuple(terms), sum(term[-1] for term in terms))


def _reached_by(
    convolution: Convolution, tap: Sequence[int], position: Sequence[int], sizes: Sequence[int]
) -> tuple[int, ...] | None:
    """The output position whose window has ``position`` under ``tap``, if there is one."""
    place = []
    for p, t, s, d, pad, n in zip(
        position, tap, convolution.stride, convolution.dilation, convolution.padding, sizes, strict=True
    ):
        steps, rest = divmod(p + pad[0] - t * d, s)
        if rest or not 0 <= steps < n:
            return None
        place.append(steps)
    return tuple(place)


def _window(
    input: Tensor, convolution: Convolution, start: tuple[int, ...]
) -> tuple[Values, npt.NDArray[np.bool_]]:
    kernel = tuple(convolution.weight.shape[2:])
    window = np.zeros((len(input), *kernel))
    inside = np.zeros(kernel, dtype=bool)
    values = input.cpu().numpy()
    for tap in np.ndindex(*kernel):
        place = tuple(b + t * d for b, t, d in zip(start, tap, convolution.dilation, strict=True))
        if all(0 <= p < n for p, n in zip(place, input.shape[1:], strict=True)):
            window[(slice(None), *tap)] = values[(slice(None), *place)]
            inside[tap] = True
    return window, inside


def _checked(convolution: Convolution, input: Tensor, channel: int, position: Sequence[int]) -> tuple[int, ...]:
    sizes = convolution.output_size(input.shape[1:])
    if not 0 <= channel < len(convolution.weight):
        raise ArgumentError("channel", f"0 to {len(convolution.weight) - 1}", channel)
    place = tuple(int(p) for p in position)
    if len(place) != len(sizes) or not all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
        raise ArgumentError("position", f"coordinates within {sizes}", place)
    return place


def _axes(value: object, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]


def _padding(value: object, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if value == "valid":
        return ((0, 0),) * len(kernel)
    if value == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(value, int):
        return ((value, value),) * len(kernel)
    return tuple(
        (pad, pad) if isinstance(pad, int) else (int(pad[0]), int(pad[1]))
        for pad in value  # type: ignore[attr-defined]
    )
