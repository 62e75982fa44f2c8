"""AlexNet: the two-tower original of 2012 and the single-tower net of 2014.

Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks, NeurIPS 2012;
Krizhevsky: One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997 (2014).
"""

from __future__ import annotations

from torch import nn

from convlens import layers
from convlens.models import initialise
from convlens.models.blocks import ConvBlock2d
from convlens.models.network import Network

__all__ = ["alexnet", "alexnet_2014"]


def alexnet(in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.5) -> Network:
    """AlexNet as published, its two GPUs written as two groups: 60,965,224 weights for 1000 classes.

    The first layer is 96 filters 11×11×3: 34,944 weights (row A3). At 227×227: 96×55×55, pool 27×27, 256×27×27,
    pool 13×13, 384, 384, 256×13×13, pool 6×6, then dense 4096, 4096, classes. The receptive field before the
    classifier is 195. The paper's 224 does not fit its own 55×55; 227 does.

    Args:
        in_channels: channels of the input (3 in the paper).
        num_classes: length of the output.
        input_size: any from 67×67 up; maps are averaged to 6×6 before the dense layers.
        dropout: probability that a dense input is dropped while training.
    """
    features = nn.Sequential(
        ConvBlock2d(in_channels, 96, 11, stride=4),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        layers.MaxPool2d(3, 2),
        ConvBlock2d(96, 256, 5, padding=2, groups=2),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        layers.MaxPool2d(3, 2),
        ConvBlock2d(256, 384, 3, padding=1),
        ConvBlock2d(384, 384, 3, padding=1, groups=2),
        ConvBlock2d(384, 256, 3, padding=1, groups=2),
        layers.MaxPool2d(3, 2),
    )
    return _with_dense_layers(features, in_channels, num_classes, dropout)


def alexnet_2014(in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.5) -> Network:
    """The single-tower AlexNet, without response normalisation: 61,100,840 weights, 0.71 G multiply-adds at 224.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any from 63×63 up.
        dropout: probability that a dense input is dropped while training.
    """
    features = nn.Sequential(
        ConvBlock2d(in_channels, 64, 11, stride=4, padding=2),
        layers.MaxPool2d(3, 2),
        ConvBlock2d(64, 192, 5, padding=2),
        layers.MaxPool2d(3, 2),
        ConvBlock2d(192, 384, 3, padding=1),
        ConvBlock2d(384, 256, 3, padding=1),
        ConvBlock2d(256, 256, 3, padding=1),
        layers.MaxPool2d(3, 2),
    )
    return _with_dense_layers(features, in_channels, num_classes, dropout)


def _with_dense_layers(features: nn.Module, in_channels: int, num_classes: int, dropout: float) -> Network:
    classifier = nn.Sequential(
        layers.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),
    )
    network = Network(features, classifier, in_channels=in_channels)
    initialise.he(network, last=classifier[-1])
    return network
