"""VGG: 3×3 convolutions all the way. Simonyan, Zisserman: Very deep convolutional networks, ICLR 2015."""

from __future__ import annotations

from torch import nn

from convlens import layers
from convlens.models import initialise
from convlens.models.blocks import ConvBlock2d
from convlens.models.network import Network

__all__ = ["vgg11", "vgg16", "vgg19"]

_WIDTHS = (64, 128, 256, 512, 512)


def vgg11(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], batch_norm: bool = False, dropout: float = 0.5
) -> Network:
    """Configuration A: 132,863,336 weights for 1000 classes. See `vgg16` for the arguments."""
    return _vgg((1, 1, 2, 2, 2), in_channels, num_classes, batch_norm, dropout)


def vgg16(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], batch_norm: bool = False, dropout: float = 0.5
) -> Network:
    """Configuration D: 138,357,544 weights for 1000 classes, receptive field 212, 15.5 G multiply-adds at 224.

    At 224×224: 64×112×112 after the first pooling, then 128×56×56, 256×28×28, 512×14×14, 512×7×7, and dense
    layers 4096, 4096, classes.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any from 32×32 up; maps are averaged (or repeated) to 7×7 before the dense layers.
        batch_norm: put a batch norm after each convolution, as later versions do.
        dropout: probability that a dense input is dropped while training.
    """
    return _vgg((2, 2, 3, 3, 3), in_channels, num_classes, batch_norm, dropout)


def vgg19(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], batch_norm: bool = False, dropout: float = 0.5
) -> Network:
    """Configuration E: 143,667,240 weights for 1000 classes. See `vgg16` for the arguments."""
    return _vgg((2, 2, 4, 4, 4), in_channels, num_classes, batch_norm, dropout)


def _vgg(depths: tuple[int, ...], in_channels: int, num_classes: int, batch_norm: bool, dropout: float) -> Network:
    parts: list[nn.Module] = []
    channels = in_channels
    for depth, width in zip(depths, _WIDTHS, strict=True):
        for place in range(depth):
            pool = 2 if place == depth - 1 else 0
            if batch_norm:
                parts += [
                    layers.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                parts += [layers.MaxPool2d(pool)] if pool else []
            else:
                parts.append(ConvBlock2d(channels, width, 3, padding=1, pool=pool))
            channels = width
    classifier = nn.Sequential(
        layers.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),
    )
    network = Network(nn.Sequential(*parts), classifier, in_channels=in_channels)
    initialise.he(network, last=classifier[-1])
    return network
