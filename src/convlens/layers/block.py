"""Convolution, activation and pooling as one layer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from convlens import ops
from convlens.errors import ArgumentError
from convlens.layers.convolution import Conv2d
from convlens.layers.pooling import MaxPool2d
from convlens.ops.block import ACTIVATIONS

__all__ = ["ConvBlock2d"]


class ConvBlock2d(Conv2d):
    """Convolution, activation and, where ``pool`` is above 1, max pooling with that window and stride.

    The keys of its state are the convolution's, ``weight`` and ``bias``; computed by `ops.conv_block2d`.

    Args:
        *args: as for `Conv2d`.
        activation: one of ``none relu leaky_relu elu gelu sigmoid silu tanh``.
        pool: window and stride of the max pooling; 0 for none.
        **kwargs: as for `Conv2d`.
    """

    def __init__(self, *args: Any, activation: str = "relu", pool: int = 0, **kwargs: Any) -> None:
        if activation not in ACTIVATIONS:
            raise ArgumentError("activation", " or ".join(map(repr, ACTIVATIONS)), repr(activation))
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.pool = pool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` → ``(N, O, H', W')``."""
        if self.flip:
            out = ACTIVATIONS[self.activation](super().forward(input))
            return ops.max_pool2d(out, self.pool) if self.pool > 1 else out
        return ops.conv_block2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=self.activation,
            pool=self.pool,
            algorithm=self.algorithm,
        )

    def parts(self) -> torch.nn.Sequential:
        """The same computation as separate layers that share the weights: ``conv``, ``activation``, ``pool``."""
        conv = Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, self.padding_mode, flip=self.flip, algorithm=self.algorithm,
            device="meta",
        )  # fmt: skip
        conv.weight, conv.bias = self.weight, self.bias
        chain: OrderedDict[str, torch.nn.Module] = OrderedDict(conv=conv, activation=_MODULES[self.activation]())
        if self.pool > 1:
            chain["pool"] = MaxPool2d(self.pool)
        return torch.nn.Sequential(chain).train(self.training)

    def extra_repr(self) -> str:
        """As `Conv2d`, with the activation and the pooling."""
        text = f"{super().extra_repr()}, activation={self.activation}"
        return f"{text}, pool={self.pool}" if self.pool > 1 else text


_MODULES: dict[str, type[torch.nn.Module]] = {
    "none": torch.nn.Identity,
    "relu": torch.nn.ReLU,
    "leaky_relu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "gelu": torch.nn.GELU,
    "sigmoid": torch.nn.Sigmoid,
    "silu": torch.nn.SiLU,
    "tanh": torch.nn.Tanh,
}
