"""LeNet-5 in both readings and the net of row F3, against the published numbers."""

import pytest
import torch

from convlens import models
from convlens.errors import ArgumentError, ShapeError
from convlens.models.lenet import C3_TABLE


def weights(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [28, 32])
def test_f1_lenet5_has_about_60k_weights(size):
    assert weights(models.create("lenet5", input_size=size)) == 61_706


def test_lenet5_goes_down_to_4x4():
    assert models.create("lenet5", input_size=8)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert models.create("lenet5", input_size=4)(torch.zeros(2, 1, 4, 4)).shape == (2, 10)
    with pytest.raises(ShapeError, match="4×4 or more"):
        models.create("lenet5", input_size=3)


@pytest.mark.parametrize("size", [28, 32])
def test_lenet5_1998_has_the_published_weights_layer_by_layer(size):
    network = models.create("lenet5-1998", input_size=size)
    parts = [*network.features.named_children(), *network.classifier.named_children()]
    counts = {name: weights(part) for name, part in parts}
    published = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert {name: counts[name] for name in published} == published
    assert weights(network) == 60_000


def test_lenet5_1998_linear_output_is_learned():
    assert weights(models.create("lenet5-1998", output="linear")) == 60_000 + 850
    with pytest.raises(ArgumentError, match="'rbf' or 'linear'"):
        models.create("lenet5-1998", output="softmax")


def test_c3_sees_only_the_maps_of_its_table():
    c3 = models.create("lenet5-1998").features.c3
    linked = c3.dense_weight().abs().sum((2, 3)) > 0
    assert [tuple(row.nonzero().flatten().tolist()) for row in linked] == [tuple(sorted(m)) for m in C3_TABLE]
    assert sorted(map(len, C3_TABLE)) == [3] * 6 + [4] * 9 + [6]


def test_c3_is_scaled_by_the_maps_that_each_unit_sees():
    torch.manual_seed(0)
    c3 = models.create("lenet5-1998", in_channels=1).features.c3
    out = c3(torch.randn(64, 6, 14, 14))
    assert out.var().item() == pytest.approx(1.0, rel=0.2)


def test_rbf_output_is_zero_at_its_code_and_negative_elsewhere():
    output = models.create("lenet5-1998").classifier.output
    logits = output(output.codes)
    assert torch.equal(logits.diagonal(), torch.zeros(10))
    assert (logits - torch.diag(torch.full((10,), torch.inf)) < 0).all()


def test_f3_every_shape_of_the_39x39x3_net():
    network = models.create("net39")
    shapes, x = [], torch.zeros(1, 3, 39, 39)
    for layer in network.features:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(10, 37, 37), (20, 17, 17), (40, 7, 7)]
    assert network.classifier.output.in_features == 1960
    assert weights(network) == 280 + 5020 + 20_040 + 19_610
