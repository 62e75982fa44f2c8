"""Network in Network: each window followed by 1×1 layers, and no dense layer. Lin, Chen, Yan, ICLR 2014."""

from __future__ import annotations

from torch import nn

from convlens import layers
from convlens.models import initialise
from convlens.models.blocks import ConvBlock2d, global_average
from convlens.models.network import Network

__all__ = ["nin", "nin32"]


def nin(in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.5) -> Network:
    """The ImageNet net: 7,595,176 weights for 1000 classes (29 MiB, as its authors publish it).

    At 224×224: 96×54×54, pool 27×27 (rounded up), 256×27×27, pool 13×13, 384×13×13, pool 6×6, 1024×6×6; the last
    1×1 layer gives one map per class, and the mean of a map is its logit.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any from 39×39 up.
        dropout: probability that a value is dropped before the last window, while training.
    """
    features = nn.Sequential(
        *_window_and_mix(in_channels, (96, 96, 96), 11, stride=4),
        layers.MaxPool2d(3, 2, ceil_mode=True),
        *_window_and_mix(96, (256, 256, 256), 5, padding=2),
        layers.MaxPool2d(3, 2, ceil_mode=True),
        *_window_and_mix(256, (384, 384, 384), 3, padding=1),
        layers.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        *_window_and_mix(384, (1024, 1024), 3, padding=1),
    )
    return _with_class_maps(features, 1024, in_channels, num_classes)


def nin32(in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.5) -> Network:
    """The paper's net for 32×32 pictures: 966,986 weights for 3 channels and 10 classes.

    192×32×32, pool 16×16, 192×16×16, pool 8×8, 192×8×8, one map per class.

    Arguments as in `nin`; any size from 4×4 up.
    """
    features = nn.Sequential(
        *_window_and_mix(in_channels, (192, 160, 96), 5, padding=2),
        layers.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        *_window_and_mix(96, (192, 192, 192), 5, padding=2),
        layers.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(dropout),
        *_window_and_mix(192, (192, 192), 3, padding=1),
    )
    return _with_class_maps(features, 192, in_channels, num_classes)


def _window_and_mix(
    channels: int, widths: tuple[int, ...], kernel_size: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """One window, then a 1×1 layer for each further width: a small dense net slid over the picture (row B8)."""
    parts: list[nn.Module] = [ConvBlock2d(channels, widths[0], kernel_size, stride=stride, padding=padding)]
    parts += [ConvBlock2d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False)]
    return parts


def _with_class_maps(features: nn.Module, channels: int, in_channels: int, num_classes: int) -> Network:
    classifier = nn.Sequential(layers.Conv2d(channels, num_classes, 1), *global_average(2))
    network = Network(features, classifier, in_channels=in_channels)
    initialise.he(network, last=classifier[0])
    return network
