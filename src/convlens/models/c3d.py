"""A small net for volumes, after Tran et al.: Learning spatiotemporal features with 3D CNNs, ICCV 2015."""

from __future__ import annotations

from torch import nn

from convlens import layers
from convlens.models import initialise
from convlens.models.blocks import conv_norm_relu, global_average
from convlens.models.network import Network

__all__ = ["c3d_small"]


def c3d_small(in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.2) -> Network:
    """3×3×3 convolutions as in C3D, a quarter of its widths, batch norm, and a mean instead of its dense layers.

    At 16×32×32: 16×16×32×32, pool 1×2×2, 32, pool 2×2×2, 64, 64, pool 2×2×2, 128, 128×4×4×4, mean, dense.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: ``(depth, height, width)``, 4×8×8 or more.
        dropout: probability that a value is dropped before the dense layer, while training.
    """
    parts: list[nn.Module] = []
    channels = in_channels
    for widths, pool in (((16,), (1, 2, 2)), ((32,), 2), ((64, 64), 2), ((128, 128), 0)):
        for width in widths:
            parts += conv_norm_relu(3, channels, width, 3, padding=1)
            channels = width
        if pool:
            parts.append(layers.MaxPool3d(pool))
    classifier = nn.Sequential(*global_average(3), nn.Dropout(dropout), nn.Linear(channels, num_classes))
    network = Network(nn.Sequential(*parts), classifier, in_channels=in_channels, ndim=3)
    initialise.he(network, last=classifier[-1])
    return network
