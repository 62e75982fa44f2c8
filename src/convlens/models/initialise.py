"""First weights, scaled to the fan-in of each unit so that signals keep their size through depth (row I4)."""

from __future__ import annotations

import math

from torch import nn

__all__ = ["he", "lecun"]


def he(network: nn.Module, last: nn.Module | None = None) -> None:
    """Weights ~ N(0, 2 / fan_in), biases 0: keeps the variance through ReLU (He et al., 2015).

    ``last``, the layer whose output is read as logits, has no ReLU behind it and gets N(0, 1 / fan_in).
    """
    _scale(network, gain=math.sqrt(2.0))
    if last is not None:
        _scale(last, gain=1.0)


def lecun(network: nn.Module) -> None:
    """Weights ~ N(0, 1 / fan_in), biases 0: keeps the variance through linear and tanh units (LeCun, 1998)."""
    _scale(network, gain=1.0)


def _scale(network: nn.Module, gain: float) -> None:
    for module in network.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
            continue  # normalisations keep their ones and zeros
        if weight.is_meta:
            continue  # no values; torch would load its compiler to draw none
        nn.init.normal_(weight, std=gain / math.sqrt(math.prod(weight.shape[1:])))
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
