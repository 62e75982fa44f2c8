"""LeNet-5: the modern reading (ReLU, max pooling) and the net as it was published in 1998.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from convlens import layers, ops
from convlens.errors import ArgumentError
from convlens.models import initialise
from convlens.models.blocks import ConvBlock2d
from convlens.models.fits import feature_size
from convlens.models.network import Network

__all__ = ["lenet5", "lenet5_1998"]


def lenet5(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """LeNet-5 with ReLU, max pooling and a linear output: 61,706 weights for 28×28 or 32×32 grey, 10 classes.

    Shapes at 28×28: conv 5×5 padded by 2 → 6×28×28, pool → 6×14×14, conv 5×5 → 16×10×10, pool → 16×5×5,
    then dense 400 → 120 → 84 → classes. Inputs of 32 or more need no padding; inputs under 16 pad the
    second convolution too, which takes the net down to 4×4. The dense part is built for ``input_size``.

    Small pictures are better enlarged than padded: the 8×8 digits reach 97 % as they are, 98.6 % enlarged to
    32×32 (30 epochs, mean of 3 seeds).
    """
    first_padding = 2 if min(input_size) < 32 else 0
    second_padding = 2 if min(input_size) < 16 else 0
    features = nn.Sequential(
        OrderedDict(
            conv1=ConvBlock2d(in_channels, 6, 5, padding=first_padding, pool=2),
            conv2=ConvBlock2d(6, 16, 5, padding=second_padding, pool=2),
        )
    )
    inputs = 16 * math.prod(feature_size(features, input_size))
    classifier = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            dense1=nn.Linear(inputs, 120),
            relu3=nn.ReLU(),
            dense2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            output=nn.Linear(84, num_classes),
        )
    )
    network = Network(features, classifier, in_channels=in_channels, built_for=input_size)
    initialise.he(network, last=classifier[-1])
    return network


class ScaledTanh(nn.Module):
    """``1.7159 tanh(2x/3)``: close to the identity at unit variance, f(±1) = ±1 (appendix A of the paper)."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as the input."""
        return 1.7159 * torch.tanh(input * (2.0 / 3.0))


class Subsampling(nn.Module):
    """Sum of each 2×2 patch times one trainable coefficient plus one trainable bias per channel."""

    kernel_size = stride = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        # 1/2 rather than 1/4: the sum of four independent units of variance 1 then has variance 1.
        self.coefficient = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` → ``(batch, channels, h // 2, w // 2)``."""
        return ops.avg_pool2d(input, 2) * (4.0 * self.coefficient) + self.bias


# Table I of the paper: which maps of S2 each of the 16 maps of C3 sees.
_THREES = [(i, (i + 1) % 6, (i + 2) % 6) for i in range(6)]
_FOURS = [(i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)]
_SPLIT = [(0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)]
C3_TABLE: list[tuple[int, ...]] = [*_THREES, *_FOURS, *_SPLIT, (0, 1, 2, 3, 4, 5)]


class SparseConv2d(nn.Module):
    """A convolution whose output maps see only the input maps of a table; the other kernels do not exist.

    Args:
        table: for each output map, the input maps it sees.
        in_channels: number of input maps.
        kernel_size: side of the square window.
    """

    stride, padding, dilation = 1, 0, 1
    places: Tensor

    def __init__(self, table: list[tuple[int, ...]], in_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.table, self.in_channels, self.kernel_size = table, in_channels, kernel_size
        places = [out * in_channels + seen for out, maps in enumerate(table) for seen in maps]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(places), kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(len(table)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 1 / fan-in), where the fan-in of a map is the number of maps it sees times the window."""
        area = self.kernel_size**2
        deviations = [1.0 / math.sqrt(len(maps) * area) for maps in self.table for _ in maps]
        with torch.no_grad():
            self.weight.normal_().mul_(torch.tensor(deviations).view(-1, 1, 1))
            self.bias.zero_()

    def dense_weight(self) -> Tensor:
        """The kernel bank with zeros where the table has no connection: ``(out, in, k, k)``."""
        k, outs = self.kernel_size, len(self.table)
        bank = self.weight.new_zeros(outs * self.in_channels, k, k).index_copy(0, self.places, self.weight)
        return bank.view(outs, self.in_channels, k, k)

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, in_channels, h, w)`` → ``(batch, len(table), h - k + 1, w - k + 1)``."""
        return ops.conv2d(input, self.dense_weight(), self.bias)


class RadialBasisOutput(nn.Module):
    """Minus the squared distance to one fixed code of ±1 per class, as logits. Nothing to learn.

    The paper draws its ten codes as 7×12 characters, so that similar characters get similar codes; here
    they are drawn once at random (seeded), which the paper names as the alternative.
    """

    codes: Tensor

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(1998)
        bits = torch.randint(0, 2, (num_classes, inputs), generator=generator, device="cpu")
        self.register_buffer("codes", (bits * 2 - 1).to(torch.get_default_dtype()).to(torch.get_default_device()))

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, inputs)`` → ``(batch, num_classes)``, all ≤ 0."""
        return -(input[:, None, :] - self.codes).square().sum(-1)


def lenet5_1998(in_channels: int, num_classes: int, input_size: tuple[int, ...], output: str = "rbf") -> Network:
    """LeNet-5 as published: 60,000 trainable weights for 32×32 grey (28×28 is padded by 2), 10 classes.

    C1 156, S2 12, C3 1,516 (sparse table), S4 32, C5 48,120, F6 10,164; the output layer is fixed.

    Args:
        in_channels: channels of the input (1 in the paper).
        num_classes: classes (10 in the paper).
        input_size: ``(height, width)``, 12×12 or more. C5's window covers whatever S4 leaves (5×5 in the paper).
        output: ``"rbf"`` as published, or ``"linear"`` for a trained dense output.
    """
    if output not in ("rbf", "linear"):
        raise ArgumentError("output", "'rbf' or 'linear'", repr(output))
    c3 = SparseConv2d(C3_TABLE, 6, 5)
    features = nn.Sequential(
        OrderedDict(
            c1=layers.Conv2d(in_channels, 6, 5, padding=2 if min(input_size) < 32 else 0),
            tanh1=ScaledTanh(),
            s2=Subsampling(6),
            tanh2=ScaledTanh(),
            c3=c3,
            tanh3=ScaledTanh(),
            s4=Subsampling(16),
            tanh4=ScaledTanh(),
        )
    )
    rows, columns = feature_size(features, input_size)
    last = RadialBasisOutput(84, num_classes) if output == "rbf" else nn.Linear(84, num_classes)
    classifier = nn.Sequential(
        OrderedDict(
            c5=layers.Conv2d(16, 120, (rows, columns)),
            tanh5=ScaledTanh(),
            flatten=nn.Flatten(),
            f6=nn.Linear(120, 84),
            tanh6=ScaledTanh(),
            output=last,
        )
    )
    network = Network(features, classifier, in_channels=in_channels, built_for=input_size)
    initialise.lecun(network)
    c3.reset_parameters()  # its fan-in is in the table, not in the shape of its weight
    return network
