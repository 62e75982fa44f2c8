"""The 39×39×3 net of the lectures: three convolutions, one dense layer (row F3)."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from convlens.models import initialise
from convlens.models.blocks import ConvBlock2d
from convlens.models.fits import feature_size
from convlens.models.network import Network

__all__ = ["net39"]


def net39(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """Three convolutions and a dense layer.

    10 filters 3×3 → 37×37×10; 20 filters 5×5 stride 2 → 17×17×20; 40 filters 5×5 stride 2 → 7×7×40 = 1960
    → logits.

    The dense layer is built for ``input_size``; 39×39×3 with 10 classes has 44,970 weights.
    """
    features = nn.Sequential(
        OrderedDict(
            conv1=ConvBlock2d(in_channels, 10, 3),
            conv2=ConvBlock2d(10, 20, 5, stride=2),
            conv3=ConvBlock2d(20, 40, 5, stride=2),
        )
    )
    inputs = 40 * math.prod(feature_size(features, input_size))
    classifier = nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=nn.Linear(inputs, num_classes)))
    network = Network(features, classifier, in_channels=in_channels, built_for=input_size)
    initialise.he(network, last=classifier[-1])
    return network
