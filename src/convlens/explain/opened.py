"""Fused blocks opened, so that what happens between their parts can be seen."""

from __future__ import annotations

import copy

from torch import nn

__all__ = ["opened"]


def opened(model: nn.Module) -> nn.Module:
    """A twin of ``model`` that shares its weights and has fused blocks written out as a chain of layers.

    A fused block (`convlens.layers.ConvBlock2d`) computes convolution, activation and pooling in one pass and
    keeps nothing in between; its ``parts()`` are the same layers apart. Names grow by the part:
    ``features.conv1`` becomes ``features.conv1.conv``, ``features.conv1.activation``, ``features.conv1.pool``.
    """
    # the same parameters and buffers, new modules around them
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for name, module in list(twin.named_modules()):
        parts = getattr(module, "parts", None)
        if parts is None or not name:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, parts())
    return twin.train(model.training)
