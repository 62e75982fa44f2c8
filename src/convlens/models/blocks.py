"""Building blocks that several networks share, for 1, 2 and 3 spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convlens import layers
from convlens.layers import ConvBlock2d

__all__ = [
    "BATCH_NORM",
    "CONV",
    "Beside",
    "ConvBlock2d",
    "Residual",
    "conv_norm_relu",
    "global_average",
]

CONV: dict[int, Any] = {1: layers.Conv1d, 2: layers.Conv2d, 3: layers.Conv3d}
BATCH_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_GLOBAL: dict[int, Any] = {1: layers.AdaptiveAvgPool1d, 2: layers.AdaptiveAvgPool2d, 3: layers.AdaptiveAvgPool3d}


class Residual(nn.Module):
    """``activation(body(x) + shortcut(x))``: the forward shortcut of He et al., 2015."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.Identity() if activation is None else activation

    def branches(self) -> list[nn.Module]:
        """The two ways through."""
        return [self.body, self.shortcut]

    def forward(self, input: Tensor) -> Tensor:
        """Both branches give the same shape, which is the output's."""
        output: Tensor = self.activation(self.body(input) + self.shortcut(input))
        return output


class Beside(nn.Module):
    """Several chains on one input, their channels put one after another (GoogLeNet's inception)."""

    def __init__(self, **chains: nn.Module) -> None:
        super().__init__()
        for name, chain in chains.items():
            self.add_module(name, chain)

    def branches(self) -> list[nn.Module]:
        """The chains, in the order of their channels."""
        return list(self.children())

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, c, ...)`` → ``(batch, sum of the chains' channels, ...)``."""
        return torch.cat([chain(input) for chain in self.children()], 1)


def conv_norm_relu(
    ndim: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    return [
        CONV[ndim](in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        BATCH_NORM[ndim](out_channels),
        nn.ReLU(inplace=True),
    ]


def global_average(ndim: int) -> nn.Sequential:
    """``(batch, channels, ...)`` → ``(batch, channels)``, the mean over all positions."""
    return nn.Sequential(_GLOBAL[ndim](1), nn.Flatten())
