"""Dropout before the last layer (LECTURES.md row I8), without changing the network's names or parameters."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional

__all__ = ["add_dropout", "head_of"]


def head_of(network: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the layer that gives the class scores: the last one with a weight matrix."""
    layers = [(name, module) for name, module in network.named_modules() if _has_matrix(module)]
    return layers[-1]


def add_dropout(network: nn.Module, rate: float) -> None:
    """While training, set a part ``rate`` of the last layer's inputs to zero."""
    if not rate:
        return

    def drop(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (functional.dropout(args[0], rate, module.training), *args[1:])

    head_of(network)[1].register_forward_pre_hook(drop)


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() > 1
