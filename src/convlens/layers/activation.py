"""The activations of LECTURES E that torch.nn lacks: `Maxout` and `Step`."""

from __future__ import annotations

import torch

from convlens.errors import ShapeError
from convlens.ops.arguments import as_ints

__all__ = ["Maxout", "Step"]


class Maxout(torch.nn.Module):
    """The largest of every ``pieces`` consecutive channels (Goodfellow et al. 2013): a learned convex activation.

    Args:
        pieces: how many channels compete; the input has ``pieces`` times the channels of the output.
        dim: the axis of the channels.

    Raises:
        ArgumentError: fewer than one piece.
        ShapeError: (at the call) channels that the pieces do not divide.
    """

    def __init__(self, pieces: int = 2, dim: int = 1) -> None:
        super().__init__()
        (self.pieces,) = as_ints(pieces, 1, "pieces", at_least=1)
        self.dim = dim

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(N, pieces*C, ...)`` → ``(N, C, ...)``."""
        channels = input.shape[self.dim]
        if channels % self.pieces:
            raise ShapeError(
                "input",
                f"a multiple of pieces={self.pieces} channels on axis {self.dim}",
                f"{channels} in shape {tuple(input.shape)}",
                f"give the layer before it {-(-channels // self.pieces) * self.pieces} outputs",
            )
        axis = self.dim % input.dim()
        groups: torch.Tensor = input.unflatten(axis, (channels // self.pieces, self.pieces))
        return groups.amax(axis + 1)

    def extra_repr(self) -> str:
        """``pieces`` and ``dim``."""
        return f"pieces={self.pieces}, dim={self.dim}"


class Step(torch.nn.Module):
    """1 above a threshold, else 0: the perceptron's activation. Its gradient is 0, so nothing before it learns."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``input > threshold``, in the input's type; NaN stays NaN."""
        fired = (input.detach() > self.threshold).to(input.dtype)
        return torch.where(input.isnan(), input, fired)

    def extra_repr(self) -> str:
        """The threshold."""
        return f"threshold={self.threshold}"
