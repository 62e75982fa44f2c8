"""fully_convolutional: equal output at the original size, one answer per place on larger images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convlens
from convlens import fully_convolutional, layers, models
from convlens.errors import ArgumentError, DtypeError, UnsupportedError


def lenet():
    return nn.Sequential(
        layers.Conv2d(1, 4, 5),
        layers.Tanh(),
        layers.AvgPool2d(2),
        layers.Conv2d(4, 6, 5),
        layers.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 16, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(20, 10, bias=False),
        nn.LogSoftmax(-1),
    )


class Viewed(nn.Module):
    """Flattened by view, functional all through."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(5 * 3 * 2, 7)
        self.norm = nn.LayerNorm(7)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = x.view(x.size(0), -1)
        return F.softmax(F.dropout(F.relu(self.norm(self.fc(x))), training=self.training), dim=1)


class Excited(nn.Module):
    """A residual net with squeeze-and-excitation and a global mean."""

    def __init__(self, keepdim=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 4)
        self.keepdim = keepdim

    def forward(self, x):
        x = self.conv(x)
        scale = torch.sigmoid(self.gate(x.mean((2, 3))))
        x = x + x * scale[:, :, None, None]
        x = x.mean((2, 3), keepdim=self.keepdim)
        return self.fc(x.flatten(1) if self.keepdim else x)


class Uneven(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(out)
        self.fc = nn.Linear(2 * out * out, 3)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.conv(x)), 1))


def one_d():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4 * 9, 3))


def three_d():
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(2, 3))


CASES = {
    "lenet": (lenet, (1, 28, 28), 4),
    "viewed": (Viewed, (3, 8, 6), 2),
    "excited": (Excited, (3, 6, 6), 1),
    "kept": (lambda: Excited(True), (3, 6, 6), 1),
    "tiled": (lambda: Uneven(2), (1, 8, 8), None),
    "whole": (lambda: Uneven(4), (1, 4, 4), 1),
    "signal": (one_d, (2, 20), 2),
    "volume": (three_d, (1, 6, 6, 6), 1),
}


def trained(make):
    torch.manual_seed(0)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize("name", CASES)
def test_equal_at_the_original_size(name):
    make, shape, _ = CASES[name]
    net = trained(make)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(2, *shape)
    converted = fully_convolutional(net, shape)
    torch.testing.assert_close(converted(x).flatten(1), net(x))
    assert converted(x).shape[2:] == (1,) * (len(shape) - 1)
    assert {key.replace("norm.ln", "norm") for key in converted.state_dict()} == set(before)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["lenet", "viewed", "signal", "volume"])
def test_a_larger_image_gives_the_answer_of_each_place(name):
    """Without padding inside, the answer at a place is the model's on the part of the image under it."""
    make, shape, step = CASES[name]
    net = trained(make)
    larger = torch.randn(1, shape[0], *(n + 2 * step for n in shape[1:]))
    answers = fully_convolutional(net, shape)(larger)
    assert answers.shape[2:] == (3,) * (len(shape) - 1)
    for place in range(3):
        window = (slice(None), slice(None), *(slice(place * step, place * step + n) for n in shape[1:]))
        at = (slice(None), slice(None), *(place,) * (len(shape) - 1))
        torch.testing.assert_close(answers[at], net(larger[window]))


def test_the_size_is_found_where_flattening_leaves_one():
    net = trained(lenet)
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(fully_convolutional(net)(x).flatten(1), net(x))
    with pytest.raises(ArgumentError, match="input_shape"):
        fully_convolutional(trained(Excited))


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("net39", (3, 39, 39))])
def test_networks_of_ours(name, shape):
    net = models.create(name, in_channels=shape[0], num_classes=10).eval()
    x = torch.randn(2, *shape)
    converted = fully_convolutional(net, shape)
    torch.testing.assert_close(converted(x).flatten(1), net(x).flatten(1))
    assert min(converted(torch.randn(1, shape[0], shape[1] + 32, shape[2] + 32)).shape[2:]) > 1


def test_training_mode_gradients_and_an_accelerated_model():
    net = convlens.accelerate(trained(lenet), report=False).train()
    converted = fully_convolutional(net, (1, 28, 28))
    assert converted.training
    converted(torch.randn(2, 1, 36, 36)).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return torch.cumsum(self.conv(x).flatten(1), 1)


@pytest.mark.parametrize(
    ("make", "shape", "error", "words"),
    [
        (lambda: Uneven(3), (1, 8, 8), UnsupportedError, "regions are equal"),
        (Branching, (1, 4, 4), UnsupportedError, "without branches"),
        (Strange, (1, 4, 4), UnsupportedError, "cumsum"),
        (lambda: nn.Conv2d(1, 2, 3), (1, 4, 4), UnsupportedError, "none found"),
        (lenet, (3, 28, 28), ArgumentError, "input_shape"),
        (lambda: nn.Linear(2, 3), None, ArgumentError, "a net with convolutions"),
        (lambda: 7, None, DtypeError, "torch.nn.Module"),
    ],
)
def test_what_cannot_be_converted_says_why(make, shape, error, words):
    with pytest.raises(error, match=words):
        fully_convolutional(make(), shape)
