"""GoogLeNet: windows of several sizes side by side. Szegedy et al.: Going deeper with convolutions, CVPR 2015."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from convlens import layers
from convlens.models import initialise
from convlens.models.blocks import Beside, ConvBlock2d, global_average
from convlens.models.network import Network

__all__ = ["GoogLeNetOutputs", "googlenet"]

# Table 1 of the paper: 1×1, reduce before 3×3, 3×3, reduce before 5×5, 5×5, 1×1 after pooling.
_INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class GoogLeNetOutputs(NamedTuple):
    """Logits of the main classifier and of the two auxiliary ones, each ``(batch, num_classes)``."""

    logits: Tensor
    auxiliary_1: Tensor
    auxiliary_2: Tensor


def _inception(name: str) -> Beside:
    channels, ones, reduce_3, threes, reduce_5, fives, pooled = _INCEPTIONS[name]
    return Beside(
        one=ConvBlock2d(channels, ones, 1),
        three=nn.Sequential(ConvBlock2d(channels, reduce_3, 1), ConvBlock2d(reduce_3, threes, 3, padding=1)),
        five=nn.Sequential(ConvBlock2d(channels, reduce_5, 1), ConvBlock2d(reduce_5, fives, 5, padding=2)),
        pool=nn.Sequential(layers.MaxPool2d(3, 1, 1), ConvBlock2d(channels, pooled, 1)),
    )


def _auxiliary(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        layers.AdaptiveAvgPool2d(4),
        ConvBlock2d(channels, 128, 1),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(0.7),
        nn.Linear(1024, num_classes),
    )


class GoogLeNet(Network):
    """A `Network` with two classifiers more, half-way down, which help the gradient while training."""

    def __init__(
        self, features: nn.Sequential, classifier: nn.Module, auxiliaries: nn.ModuleList, in_channels: int
    ) -> None:
        super().__init__(features, classifier, in_channels=in_channels)
        self.auxiliaries = auxiliaries

    def forward(self, input: Tensor) -> Tensor | GoogLeNetOutputs:  # type: ignore[override]
        """Logits; while training with auxiliary classifiers, `GoogLeNetOutputs`."""
        if not (self.training and len(self.auxiliaries)):
            return super().forward(input)
        self.check_input(input)
        maps = input
        halfway: list[Tensor] = []
        for name, layer in self.features.named_children():
            maps = layer(maps)
            if name in ("inception4a", "inception4d"):
                halfway.append(self.auxiliaries[len(halfway)](maps))
        return GoogLeNetOutputs(self.classifier(maps), *halfway)


def googlenet(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], auxiliary: bool = False, dropout: float = 0.4
) -> Network:
    """GoogLeNet as published (5×5 windows, response normalisation): 6,998,552 weights.

    13,378,280 with the auxiliary classifiers, both counts for 1000 classes. At 224×224: 64×112×112, pool 56×56,
    192×56×56, pool 28×28, inceptions 3a–3b to 480, pool 14×14, 4a–4e to 832, pool 7×7, 5a–5b to 1024, global
    mean, dense. 1.58 G multiply-adds.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any from 31×31 up.
        auxiliary: add the two auxiliary classifiers; in training mode the net then returns `GoogLeNetOutputs`
            (the paper adds 0.3 of each auxiliary loss), in evaluation mode the logits alone.
        dropout: probability that a value is dropped before the dense layer, while training.
    """
    norm = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}
    features = nn.Sequential()
    features.add_module("conv1", ConvBlock2d(in_channels, 64, 7, stride=2, padding=3))
    features.add_module("pool1", layers.MaxPool2d(3, 2, ceil_mode=True))
    features.add_module("norm1", nn.LocalResponseNorm(**norm))  # type: ignore[arg-type]
    features.add_module("conv2_reduce", ConvBlock2d(64, 64, 1))
    features.add_module("conv2", ConvBlock2d(64, 192, 3, padding=1))
    features.add_module("norm2", nn.LocalResponseNorm(**norm))  # type: ignore[arg-type]
    features.add_module("pool2", layers.MaxPool2d(3, 2, ceil_mode=True))
    for name in _INCEPTIONS:
        features.add_module(f"inception{name}", _inception(name))
        if name in ("3b", "4e"):
            features.add_module(f"pool{name[0]}", layers.MaxPool2d(3, 2, ceil_mode=True))
    classifier = nn.Sequential(*global_average(2), nn.Dropout(dropout), nn.Linear(1024, num_classes))
    heads = [_auxiliary(channels, num_classes) for channels in (512, 528)] if auxiliary else []
    network = GoogLeNet(features, classifier, nn.ModuleList(heads), in_channels)
    initialise.he(network, last=classifier[-1])
    _allow_for_maxima(features)
    return network


@torch.no_grad()
def _allow_for_maxima(features: nn.Sequential) -> None:
    """Shrink the first weights of layers that see the maxima of 3×3 windows.

    The largest of nine normal values, rectified, has a mean square of 2.56 where He's rule expects 0.5; nine
    inceptions with such a branch would add that up. Behind the first pool, whose values depend on each other,
    it was measured to be about twice. The later pools may enlarge: signals shrink a little on the way to them.
    """
    for name, layer in features.named_modules():
        weight = getattr(layer, "weight", None)
        if name.endswith(".pool.1") and isinstance(weight, nn.Parameter):
            weight.mul_((0.5 / 2.56) ** 0.5)
        elif name == "conv2_reduce" and isinstance(weight, nn.Parameter):
            weight.mul_(0.5**0.5)
