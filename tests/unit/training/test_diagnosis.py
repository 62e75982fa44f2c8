"""Each finding appears where it should, with its numbers, and not where it should not."""

import pytest
import torch
from torch import nn

from convlens.models import create
from convlens.training.diagnosis import (
    LayerHealth,
    diagnose,
    fit_findings,
    layer_findings,
    layer_health,
    paragraph,
    squeeze_findings,
    structure_findings,
)

COUNTS = {"train": 1000, "dev": 1000, "test": 1000}


@pytest.mark.parametrize(
    ("errors", "kinds"),
    [
        ({"train": 0.01, "dev": 0.015, "test": 0.02}, ["good fit"]),
        ({"train": 0.30, "dev": 0.31, "test": 0.31}, ["bias"]),
        ({"train": 0.01, "dev": 0.11, "test": 0.11}, ["variance"]),
        ({"train": 0.01, "dev": 0.02, "test": 0.12}, ["mismatch"]),
        ({"train": 0.15, "dev": 0.30, "test": 0.45}, ["bias", "variance", "mismatch"]),
        ({"train": 0.01}, ["good fit"]),
    ],
)
def test_errors_of_the_parts_tell_bias_variance_and_mismatch(errors, kinds):
    assert [finding.kind for finding in fit_findings(errors, COUNTS)] == kinds


def test_a_difference_within_chance_is_none():
    few = {"train": 1000, "dev": 30, "test": 30}
    assert [f.kind for f in fit_findings({"train": 0.01, "dev": 0.033, "test": 0.066}, few)] == ["good fit"]


def test_the_one_unit_squeeze_of_row_a5():
    squeezed = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 1), nn.Sigmoid(), nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 10)
    )
    (finding,) = squeeze_findings(squeezed, (1, 28, 28), 10)
    assert (
        finding.text
        == "Squeeze: layer '1' turns each sample into 1 number; 10 classes cannot be told apart behind it."
    )
    assert finding.fix == "remove '1', or give it more outputs than classes"
    mended = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
    assert not squeeze_findings(mended, (1, 28, 28), 10)
    assert not squeeze_findings(create("lenet5"), (1, 28, 28), 10)


def test_removing_the_squeeze_lets_the_net_learn(small_digits):
    inputs, labels = small_digits.tensors("train")
    inputs = small_digits.preprocessing.normalise(inputs)
    reached = {}
    for name, width in (("squeezed", 1), ("mended", 32)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.Tanh(), nn.Linear(width, 10))
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
        reached[name] = (net(inputs).argmax(1) == labels).float().mean().item()
    assert reached["squeezed"] < 0.6 < 0.95 < reached["mended"]


def test_dead_units_are_counted_per_layer():
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    with torch.no_grad():
        net[0].bias.fill_(-100)
        net[0].bias[:2].fill_(100)
    health = layer_health(net, torch.randn(50, 4), torch.zeros(50, dtype=torch.int64))
    assert [(layer.layer, layer.dead_part) for layer in health] == [("0", pytest.approx(0.8)), ("2", None)]
    (finding,) = [finding for finding in layer_findings(health) if finding.kind == "dead units"]
    assert finding.text == "Dead units: 80.00 % of '0' are zero for every sample."
    assert all(parameter.grad is None for parameter in net.parameters())


def test_fused_blocks_have_units_too(small_digits):
    net = create("lenet5", 1, 10, 16)
    inputs, labels = small_digits.tensors("train")
    health = layer_health(net, small_digits.preprocessing.normalise(inputs), labels)
    assert [layer.dead_part is not None for layer in health] == [True, True, True, True, False]


def test_gradients_far_from_the_others():
    norms = (1.0, 1e-6, 2.0, 5e4, 1.5)
    layers = [LayerHealth(layer=str(n), weight_norm=1.0, gradient_norm=g) for n, g in enumerate(norms)]
    assert [finding.text.split(" (")[0] for finding in layer_findings(layers)] == [
        "Gradients: vanishing in '1'",
        "Gradients: exploding in '3'",
    ]


def test_structure_names_small_fields_skipped_pixels_and_heavy_layers():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 50), nn.Linear(50, 2)
    )
    kinds = [finding.kind for finding in structure_findings(net, (1, 30, 30))]
    assert kinds == ["receptive field", "skipped pixels", "weights"]


def test_everything_together_reads_as_one_paragraph(small_digits):
    net = create("lenet5", 1, 10, 16).eval()
    inputs, labels = small_digits.tensors("train")
    findings, health = diagnose(
        net,
        small_digits.preprocessing.normalise(inputs),
        labels,
        {"train": 0.9, "dev": 0.9},
        {"train": 96, "dev": 40},
    )
    assert len(health) == 5
    assert paragraph(findings).startswith(
        "Bias: 90.00 % of the training samples themselves are wrong. Try: train longer"
    )


def test_counting_classes_needs_no_batch_and_moves_no_statistics() -> None:
    from convlens.training.diagnosis import _classes

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).train()
    before = network[1].running_mean.clone()
    assert _classes(network, torch.randn(5, 3, 1, 1)) == 4
    assert network.training
    assert torch.equal(network[1].running_mean, before)
