"""MobileNets: one window per channel, then 1×1 mixing, 8 to 9 times fewer multiplications than full 3×3.

Howard et al.: MobileNets, arXiv 1704.04861 (2017); Sandler et al.: MobileNetV2, CVPR 2018.
"""

from __future__ import annotations

from torch import nn

from convlens.models import initialise
from convlens.models.blocks import Residual, conv_norm_relu, global_average
from convlens.models.network import Network

__all__ = ["mobilenet_v1", "mobilenet_v2"]

# Output width and stride of each pair of layers.
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# Expansion, output width, repeats, stride of the first.
_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def _scaled(channels: int, width: float) -> int:
    """``channels × width`` to the nearest multiple of 8, never more than 10 % down."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels * width else rounded + 8


def mobilenet_v1(in_channels: int, num_classes: int, input_size: tuple[int, ...], width: float = 1.0) -> Network:
    """Depthwise 3×3 and 1×1 in turn: 4,231,976 weights for 1000 classes, 0.57 G multiply-adds at 224.

    At 224×224: 32×112×112, then 13 pairs down to 1024×7×7, global mean, dense.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any.
        width: multiplier of every channel count, above 0.
    """
    channels = _scaled(32, width)
    layers = [nn.Sequential(*conv_norm_relu(2, in_channels, channels, 3, 2, 1))]
    for out, stride in _V1:
        layers.append(
            nn.Sequential(
                *conv_norm_relu(2, channels, channels, 3, stride, 1, groups=channels),
                *conv_norm_relu(2, channels, _scaled(out, width), 1),
            )
        )
        channels = _scaled(out, width)
    classifier = nn.Sequential(*global_average(2), nn.Linear(channels, num_classes))
    network = Network(nn.Sequential(*layers), classifier, in_channels=in_channels)
    initialise.he(network, last=classifier[-1])
    return network


def mobilenet_v2(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], width: float = 1.0, dropout: float = 0.2
) -> Network:
    """Widen, one window per channel, narrow, with shortcuts: 3,504,872 weights for 1000 classes, 0.30 G at 224.

    At 224×224: 32×112×112, 17 blocks down to 320×7×7, 1×1 to 1280, global mean, dense. Arguments as in
    `mobilenet_v1`; ``dropout`` is the probability that a value is dropped before the dense layer, while training.
    """
    channels = _scaled(32, width)
    layers: list[nn.Module] = [_clipped(in_channels, channels, 3, 2)]
    for expansion, out, repeats, first_stride in _V2:
        for place in range(repeats):
            stride = 1 if place else first_stride
            layers.append(_inverted(channels, _scaled(out, width), expansion, stride))
            channels = _scaled(out, width)
    last = _scaled(1280, max(1.0, width))
    layers.append(_clipped(channels, last, 1, 1))
    classifier = nn.Sequential(*global_average(2), nn.Dropout(dropout), nn.Linear(last, num_classes))
    network = Network(nn.Sequential(*layers), classifier, in_channels=in_channels)
    initialise.he(network, last=classifier[-1])
    return network


def _clipped(channels: int, out: int, kernel_size: int, stride: int, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, and a ReLU that stops at 6."""
    conv, norm, _ = conv_norm_relu(2, channels, out, kernel_size, stride, kernel_size // 2, groups)
    return nn.Sequential(conv, norm, nn.ReLU6(inplace=True))


def _inverted(channels: int, out: int, expansion: int, stride: int) -> nn.Module:
    inner = channels * expansion
    widen = [_clipped(channels, inner, 1, 1)] if expansion > 1 else []
    body = nn.Sequential(
        *widen, _clipped(inner, inner, 3, stride, groups=inner), *conv_norm_relu(2, inner, out, 1)[:2]
    )
    return Residual(body) if stride == 1 and channels == out else body
