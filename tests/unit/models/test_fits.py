"""Sizes from window arithmetic against sizes from running the nets on the meta device."""

import pytest
import torch
from torch import nn

from convlens import layers, models
from convlens.errors import ShapeError
from convlens.models.fits import feature_size, smallest_input


@pytest.mark.parametrize("name", models.names())
def test_feature_size_is_what_comes_out(name):
    entry = models.info(name)
    size = tuple(n + 5 for n in entry.input_size)
    with torch.device("meta"):
        network = models.create(name, input_size=size).eval()
        out = network.features(torch.empty(1, entry.in_channels, *size))
    assert feature_size(network.features, size) == out.shape[2:]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 5, stride=3, padding=1, dilation=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 3, padding=1, ceil_mode=True),
        nn.AvgPool2d((2, 5), (3, 1), ceil_mode=True),
        layers.Conv2d(1, 1, 4, stride=3, padding="same"),
        layers.Conv2d(1, 1, 3, padding="full"),
        layers.Conv2d(1, 1, 4, padding=((2, 1), (0, 3))),
        layers.Conv2d(1, 1, 3, padding="valid"),
        nn.AdaptiveAvgPool2d((3, None)),
    ],
    ids=repr,
)
def test_each_window_over_many_sizes(layer):
    smallest = smallest_input(layer, 2)
    for rows in range(smallest[0], smallest[0] + 9):
        size = (rows, smallest[1] + 3)
        assert feature_size(layer, size) == layer(torch.zeros(1, 1, *size)).shape[2:]
    for axis in range(2):
        if smallest[axis] > 1:
            with pytest.raises(ShapeError, match="or more"):
                feature_size(layer, tuple(n - (i == axis) for i, n in enumerate(smallest)))


@pytest.mark.parametrize(
    "name, smallest",
    [
        ("alexnet", (67, 67)),
        ("alexnet-2014", (63, 63)),
        ("c3d-small", (4, 8, 8)),
        ("convnet-m", (8, 8)),
        ("convnet-s", (4, 4)),
        ("convnext-tiny", (32, 32)),
        ("genome1d", (3,)),
        ("googlenet", (31, 31)),
        ("lenet5", (4, 4)),
        ("lenet5-1998", (12, 12)),
        ("net39", (15, 15)),
        ("nin", (39, 39)),
        ("nin32", (4, 4)),
        ("resnet50", (1, 1)),
        ("spectral-pixel", (1, 1)),
        ("spectral1d", (4,)),
        ("vgg16", (32, 32)),
    ],
)
def test_smallest_legal_sizes_are_as_documented(name, smallest):
    assert models.smallest_size(name) == smallest
