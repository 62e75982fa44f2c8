"""Summary: weights, multiply-adds and receptive fields against published figures, for any module."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convlens
from convlens import models
from convlens.errors import ArgumentError, ShapeError
from convlens.models.summary import summary


def on_meta(name, **options):
    with torch.device("meta"):
        return models.create(name, **options)


@pytest.mark.parametrize(
    "name, options, field, stride",
    [
        ("alexnet", {}, 195, 32),
        ("alexnet-2014", {}, 195, 32),
        ("vgg16", {}, 212, 32),
        ("resnet18", {}, 435, 32),
        ("resnet50", {"stride_in": "1x1"}, 483, 32),
        ("resnet50", {}, 427, 32),
        ("mobilenet-v1", {}, 315, 32),
    ],
)
def test_receptive_field_of_the_features_is_the_published_one(name, options, field, stride):
    last = [row for row in summary(on_meta(name, **options)).rows if row.name.startswith("features")][-1]
    assert (last.receptive_field, last.stride) == ((field, field), (stride, stride))


@pytest.mark.parametrize(
    "name, published_gmacs",
    [
        ("alexnet-2014", 0.714),
        ("convnext-tiny", 4.456),
        ("mobilenet-v1", 0.569),
        ("mobilenet-v2", 0.301),
        ("resnet18", 1.814),
        ("resnet34", 3.664),
        ("resnet50", 4.089),
        ("resnet3d-18", 40.697),
        ("vgg16", 15.470),
    ],
)
def test_multiply_adds_are_the_published_ones(name, published_gmacs):
    assert summary(on_meta(name)).macs / 1e9 == pytest.approx(published_gmacs, abs=0.0015)


@pytest.mark.parametrize("name", models.names())
def test_rows_add_up_for_every_net(name):
    network = on_meta(name)
    result = summary(network)
    assert result.weights == sum(p.numel() for p in network.parameters())
    assert sum(row.weights for row in result.rows) == result.weights
    assert result.macs > 0
    assert result.rows[-1].output_shape[0] == 1
    assert str(result.weights) in str(result).replace(",", "")


def test_lenet5_layer_by_layer():
    rows = {row.name: row for row in summary(models.create("lenet5")).rows}
    conv2 = rows["features.conv2"]
    assert (conv2.weights, conv2.macs) == (2_416, 16 * 100 * 150)
    assert rows["classifier.dense1"].macs == 48_000
    assert rows["classifier.dense1"].receptive_field is None


def test_functional_calls_and_joins_count():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x):
            y = F.conv2d(x, self.weight, stride=2, padding=1)
            z = torch.cat([F.max_pool2d(y, 3, 1, 1), y], 1)
            return z.mean((2, 3)) @ torch.ones(8, 5)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.relu = Functional(), nn.ReLU()

        def forward(self, x):
            return self.inner(self.relu(x))

    result = summary(Outer(), (3, 8, 8))
    assert result.macs == 4 * 16 * 27 + 8 * 5
    assert result.weights == 108


def test_branches_take_the_wider_field_and_gates_see_everything():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(2, 2, 1)
            self.act, self.out = nn.ReLU(), nn.Sigmoid()

        def forward(self, x):
            joined = self.act(self.wide(x) + self.narrow(x))
            return self.out(joined * joined.mean((2, 3), keepdim=True))

    rows = {row.name: row for row in summary(Gated(), (2, 9, 9)).rows}
    assert rows["act"].receptive_field == (5, 5)
    assert rows["out"].receptive_field is None


@pytest.mark.parametrize(
    "layers, field, stride",
    [
        ([nn.Conv2d(1, 1, 3, dilation=4)], (9, 9), (1, 1)),
        ([nn.Conv2d(1, 1, (3, 5), stride=(2, 1)), nn.AvgPool2d(2)], (5, 6), (4, 2)),
        ([nn.ZeroPad2d(2), nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 3)], (7, 7), (1, 1)),
        ([nn.Conv2d(1, 2, 2, stride=2), nn.ConvTranspose2d(2, 1, 2, stride=2)], None, None),
    ],
)
def test_receptive_fields_of_chains(layers, field, stride):
    row = summary(nn.Sequential(*layers), (1, 40, 40)).rows[-1]
    assert (row.receptive_field, row.stride) == (field, stride)


def test_one_and_three_axes():
    signal = nn.Sequential(nn.Conv1d(1, 2, 7, stride=2), nn.MaxPool1d(3), nn.AvgPool1d(2), nn.ReLU())
    assert summary(signal, (1, 100)).rows[-1].receptive_field == (7 + 2 * 2 + 6 * 1,)
    volume = nn.Sequential(nn.Conv3d(1, 2, 3), nn.MaxPool3d((1, 2, 2)))
    assert summary(volume, (1, 8, 8, 8)).rows[-1].receptive_field == (3, 4, 4)


def test_the_batch_may_be_written_or_left_out():
    network = models.create("lenet5")
    assert summary(network, (1, 28, 28)).input_shape == (1, 1, 28, 28)
    assert summary(network, (8, 1, 28, 28)).macs == 8 * summary(network).macs
    assert summary(nn.Sequential(nn.Linear(6, 2)), (6,)).macs == 12


def test_the_model_is_left_as_it_was():
    network = models.create("resnet20").train()
    network.features[0][1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    summary(network)
    assert network.training and not network.features[0][1].training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_does_not_fit_is_one_clear_error():
    with pytest.raises(ShapeError, match="input"):
        summary(models.create("lenet5"), (1, 32, 32))
    with pytest.raises(ShapeError, match="input_shape"):
        summary(nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 8, 8))
    with pytest.raises(ArgumentError, match="input_shape"):
        summary(nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_an_operator_without_meta_kernel_is_run_for_real():
    class Counting(nn.Module):
        def forward(self, x):
            if x.device.type == "meta":
                raise NotImplementedError("no meta kernel")
            return x * 2

    assert summary(Counting(), (3, 4)).rows[0].output_shape == (1, 3, 4)


def test_record_is_json_and_the_door_is_lazy():
    record = convlens.summary(models.create("net39")).to_dict()
    assert json.loads(json.dumps(record))["weights"] == 44_950
