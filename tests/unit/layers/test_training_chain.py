"""Nets that train as one operator: when they may, and that they give what their layers give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from convlens import models


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A LeNet for which the chain is taken without measuring."""
    monkeypatch.setattr("convlens.ops.chain.fastest_block", lambda *_: "cpu.direct_chain")
    torch.manual_seed(0)
    return models.create("lenet5", in_channels=1, num_classes=3, input_size=(16, 16))


def _input() -> torch.Tensor:
    return torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def _is_chained(out: torch.Tensor) -> bool:
    return type(out.grad_fn).__name__ == "_ChainedBackward"


def _by_layers(network: Any, input: torch.Tensor) -> torch.Tensor:
    return network.classifier(network.features(input))  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_gives_what_the_layers_give(network: Any, layout: torch.memory_format) -> None:
    network.to(memory_format=layout)
    one, other = network(_input()), _by_layers(network, _input())
    assert _is_chained(one)
    assert not _is_chained(other)
    torch.testing.assert_close(one, other)
    parameters = list(network.parameters())
    grads = [torch.autograd.grad(out.square().sum(), parameters) for out in (one, other)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_second_derivatives_are_those_of_the_layers(network: Any) -> None:
    parameters = list(network.parameters())

    def second(out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(out.square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    for ours, theirs in zip(second(network(_input())), second(_by_layers(network, _input())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def _hook(network: Any) -> None:
    network.features.conv2.register_forward_hook(lambda *_: None)


def _freeze(network: Any) -> None:
    network.features.conv1.weight.requires_grad_(False)


def _other_layer(network: Any) -> None:
    network.classifier.relu3 = nn.Tanh()


def _other_settings(network: Any) -> None:
    network.features.conv2.activation = "tanh"


def _normalised_weight(network: Any) -> None:
    nn.utils.parametrizations.weight_norm(network.classifier.dense1)


@pytest.mark.parametrize("change", [_hook, _freeze, _other_layer, _other_settings, _normalised_weight])
def test_what_is_watched_or_changed_takes_its_layers(network: Any, change: Callable[[Any], None]) -> None:
    assert _is_chained(network(_input()))
    change(network)
    out = network(_input())
    assert not _is_chained(out)
    torch.testing.assert_close(out, _by_layers(network, _input()))


def test_everything_but_training_takes_the_layers(network: Any) -> None:
    assert not _is_chained(network(_input().requires_grad_()))
    assert not _is_chained(network(_input()[:5]))
    with torch.no_grad():
        assert network(_input()).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert not _is_chained(network(_input()))
    assert not _is_chained(network.eval()(_input()))
    assert _is_chained(network.train()(_input()))
    assert _is_chained(copy.deepcopy(network)(_input()))
    assert not _is_chained(network.double()(_input().double()))


def test_the_choice_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fastest(problem: Any, ways: Any) -> str:
        calls = ways(problem)
        assert all(len(call()) == 10 for call in calls.values())
        asked.append(problem)
        return "composed"

    monkeypatch.setattr("convlens.ops.chain.fastest_block", fastest)
    network = models.create("lenet5", in_channels=1, num_classes=4, input_size=(16, 16))
    assert not _is_chained(network(_input()))
    assert "then" in asked[0].epilogue.activation
