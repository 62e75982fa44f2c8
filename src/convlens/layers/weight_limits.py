"""Weight limits (LECTURES I8): no unit has incoming weights longer than a given norm (Srebro, Shraibman 2005)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.utils import parametrize

from convlens.errors import ArgumentError

__all__ = ["MaxNorm", "clip_weight_norms_", "max_norm"]

_LIMITED = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
)


class MaxNorm(torch.nn.Module):
    """A parametrization: each output unit's weights are scaled down to an L2 norm of at most ``limit``.

    Args:
        limit: largest norm, positive.
        dim: the axis of the output units: 0, but 1 for transposed convolutions.

    Raises:
        ArgumentError: a limit that is not positive.
    """

    def __init__(self, limit: float = 3.0, dim: int = 0) -> None:
        super().__init__()
        if not limit > 0:
            raise ArgumentError("limit", "a positive norm", limit)
        self.limit = limit
        self.dim = dim

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, with long rows shortened; gradients flow through the scaling."""
        others = [axis for axis in range(weight.dim()) if axis != self.dim]
        # from the squares: the root's gradient at 0 would be NaN
        squares = weight.square().sum(others, keepdim=True)
        long = squares > self.limit**2
        scale = self.limit / torch.where(long, squares, 1.0).sqrt()
        return torch.where(long, weight * scale, weight)

    def extra_repr(self) -> str:
        """The limit and the axis."""
        return f"limit={self.limit}, dim={self.dim}"


def max_norm(module: torch.nn.Module, limit: float = 3.0, name: str = "weight") -> torch.nn.Module:
    """Keep ``module``'s weight within the limit always, by a parametrization; returns the module.

    Its state_dict then holds ``parametrizations.<name>.original``;
    ``torch.nn.utils.parametrize.remove_parametrizations(module, name)`` undoes it.
    """
    return parametrize.register_parametrization(module, name, MaxNorm(limit, _output_axis(module)))


@torch.no_grad()
def clip_weight_norms_(model: torch.nn.Module, limit: float = 3.0) -> int:
    """Shorten, in place, every unit of every dense and convolution layer that is longer than ``limit``.

    Made to be called after each optimizer step; the state_dict keeps its keys.

    Returns:
        How many units were shortened.

    Raises:
        ArgumentError: a limit that is not positive.
    """
    shortened = 0
    for layer in _limited_layers(model):
        rule = MaxNorm(limit, _output_axis(layer))
        weight = layer.weight
        limited = rule(weight)
        changed = (limited != weight).transpose(0, rule.dim).flatten(1).any(1)
        shortened += int(changed.sum())
        weight.copy_(limited)  # type: ignore[operator]
    return shortened


def _limited_layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for module in model.modules():
        if isinstance(module, _LIMITED) and isinstance(module.weight, torch.nn.Parameter):
            yield module


def _output_axis(module: torch.nn.Module) -> int:
    return 1 if getattr(module, "transposed", False) else 0
