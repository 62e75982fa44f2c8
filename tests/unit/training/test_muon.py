"""Muon: singular values near 1, convolutions as matrices, and a run that resumes bit for bit with it."""

import pytest
import torch
from torch import nn

from convlens.training.muon import Muon, orthogonal
from convlens.training.optimizers import build_optimizer
from convlens.training.recipe import Recipe


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.5 and values.max() < 1.3
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    assert (orthogonal(matrix) - torch.diag(orthogonal(matrix).diagonal())).abs().max() < 0.02


def test_a_zero_gradient_stays_zero():
    assert orthogonal(torch.zeros(3, 4)).abs().max() == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_windows_weights_move_as_one_matrix(layout):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 3, 3, 3).to(memory_format=layout))
    before = weight.detach().clone()
    weight.grad = torch.randn(6, 3, 3, 3).to(memory_format=layout)
    optimizer = Muon(
        [{"params": [weight], "muon": True, "weight_decay": 0.0}], lr=0.01, momentum=0.0, nesterov=False
    )
    optimizer.step()
    moved = (weight.detach() - before).reshape(6, -1)
    assert torch.allclose(torch.linalg.svdvals(moved), torch.full((6,), 0.1), atol=0.05)
    assert (moved * weight.grad.reshape(6, -1)).sum() < 0


def test_the_first_and_last_layers_and_vectors_are_left_to_adamw():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2))
    recipe = Recipe(optimizer="muon")
    optimizer = build_optimizer(recipe, list(network.parameters()))
    turned = [p for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    assert [tuple(p.shape) for p in turned] == [(3, 2, 3, 3)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))


def test_it_learns_and_its_adamw_part_is_torchs():
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 5), torch.arange(64) % 2
    inputs[:, 0] += 3.0 * labels
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = build_optimizer(Recipe(optimizer="muon", learning_rate=0.01), list(network.parameters()))
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    ours, torchs = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    first = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.01)
    second = torch.optim.AdamW([torchs], 0.01, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for _ in range(3):
        ours.grad = torchs.grad = torch.tensor([1.0, -2.0, 3.0, 0.1])
        first.step()
        second.step()
    assert torch.equal(ours, torchs)
