"""ConvNeXt: a residual net in the fashion of transformers. Liu et al.: A ConvNet for the 2020s, CVPR 2022."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convlens import layers
from convlens.models import initialise
from convlens.models.blocks import Residual, global_average
from convlens.models.network import Network

__all__ = ["convnext_tiny"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, on ``(batch, channels, h, w)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelScale(nn.Module):
    """One trainable factor per channel, small at first, so that a deep net begins near the identity."""

    def __init__(self, channels: int, initial: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), initial))

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input."""
        return input * self.scale.view(-1, 1, 1)


class SkipInTraining(nn.Module):
    """Stochastic depth: while training, zeroes a whole sample with this probability and scales the others up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input."""
        if not self.training or self.probability == 0.0:
            return input
        kept = input.new_empty(input.shape[0], 1, 1, 1).bernoulli_(1.0 - self.probability)
        return input * kept / (1.0 - self.probability)


def _block(channels: int, skip: float) -> Residual:
    """Depthwise 7×7, then per pixel: norm, widen 4×, GELU, narrow."""
    return Residual(
        nn.Sequential(
            layers.Conv2d(channels, channels, 7, padding=3, groups=channels),
            ChannelNorm(channels, eps=1e-6),
            layers.Conv2d(channels, 4 * channels, 1),
            nn.GELU(),
            layers.Conv2d(4 * channels, channels, 1),
            ChannelScale(channels),
            SkipInTraining(skip),
        )
    )


def convnext_tiny(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], stochastic_depth: float = 0.1
) -> Network:
    """Stages of 3, 3, 9, 3 blocks: 28,589,128 weights for 1000 classes, 4.46 G multiply-adds at 224.

    At 224×224: 4×4 patches to 96×56×56, then 192×28×28, 384×14×14, 768×7×7, global mean, norm, dense.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any from 32×32 up (the patches of the stem and of the three reductions must fit).
        stochastic_depth: probability with which the last block is skipped while training; earlier blocks less.
    """
    depths, widths = (3, 3, 9, 3), (96, 192, 384, 768)
    stages: list[nn.Module] = []
    placed, channels = 0, in_channels
    for depth, width in zip(depths, widths, strict=True):
        if stages:
            reduce = [ChannelNorm(channels, eps=1e-6), layers.Conv2d(channels, width, 2, stride=2)]
        else:
            reduce = [layers.Conv2d(channels, width, 4, stride=4), ChannelNorm(width, eps=1e-6)]
        skips = [stochastic_depth * (placed + i) / (sum(depths) - 1) for i in range(depth)]
        stages.append(nn.Sequential(*reduce, *(_block(width, skip) for skip in skips)))
        placed, channels = placed + depth, width
    head = nn.Linear(channels, num_classes)
    classifier = nn.Sequential(*global_average(2), nn.LayerNorm(channels, eps=1e-6), head)
    network = Network(nn.Sequential(*stages), classifier, in_channels=in_channels)
    initialise.lecun(network)
    return network
