"""I4: first weights scaled to fan-in keep signals at one size through depth."""

import math

import pytest
import torch
from torch import nn

from convlens import models
from convlens.models import initialise


def second_moments(network, input):
    """Mean square of what each convolution or dense layer puts out."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: found.append(output.square().mean().item()))
        for layer in network.modules()
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and layer.weight.ndim >= 2
    ]
    with torch.no_grad():
        network(input)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name, size", [("nin", 64), ("nin32", 32), ("lenet5", 28), ("googlenet", 64)])
def test_i4_signals_neither_vanish_nor_explode(name, size):
    torch.manual_seed(0)
    network = models.create(name, 3, 10, input_size=size).features
    moments = second_moments(network, torch.randn(4, 3, size, size))
    assert min(moments) > 0.1 and max(moments) < 10.0


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v2", "convnet-m", "convnet-s"])
def test_i4_logits_of_a_fresh_net_are_of_order_one(name):
    torch.manual_seed(0)
    logits = models.create(name, 3, 10, input_size=32)(torch.randn(16, 3, 32, 32))
    assert 0.01 < logits.square().mean().item() < 30.0


@pytest.mark.parametrize("scale, gain", [(initialise.he, math.sqrt(2)), (initialise.lecun, 1.0)])
def test_deviation_is_gain_over_root_fan_in(scale, gain):
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 128, 3)
    scale(layer)
    assert layer.weight.std().item() == pytest.approx(gain / math.sqrt(32 * 9), rel=0.02)
    assert layer.bias.abs().max() == 0.0


def test_a_badly_scaled_net_would_be_seen():
    torch.manual_seed(0)
    network = models.create("nin", 3, 10, input_size=64).features
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert min(second_moments(network, torch.randn(2, 3, 64, 64))) < 0.1
