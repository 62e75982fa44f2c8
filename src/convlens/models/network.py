"""What every network here is: features, then classification, trained together (row F5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import ShapeError
from convlens.layers.training_chain import run_as_chain
from convlens.models.fits import smallest_input, too_small

__all__ = ["Network"]


class Network(nn.Module):
    """Features and classifier.

    Args:
        features: from ``(batch, in_channels, *size)`` to feature maps.
        classifier: from feature maps to ``(batch, num_classes)`` logits.
        in_channels: channels of the input.
        ndim: number of spatial axes of the input.
        built_for: the one spatial size the classifier can take, or None when it takes any.

    Attributes:
        config: the arguments with which `convlens.models.create` builds this net again (JSON values).
    """

    config: dict[str, Any]

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module,
        *,
        in_channels: int,
        ndim: int = 2,
        built_for: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.in_channels = in_channels
        self.ndim = ndim
        self.built_for = built_for
        self.config = {}
        self.smallest_size = smallest_input(features, ndim)

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, in_channels, *size)`` → ``(batch, num_classes)`` logits.

        Raises:
            ShapeError: wrong number of axes or channels, or a size this net cannot take.
        """
        # traced values (torch.fx proxies among them) have no sizes to check
        if isinstance(input, Tensor) and not (torch.compiler.is_compiling() or torch._C._get_tracing_state()):
            self.check_input(input)
        logits = run_as_chain(self, (self.features, self.classifier), input)
        return self.classifier(self.features(input)) if logits is None else logits

    def check_size(self, size: tuple[int, ...], argument: str = "input") -> None:
        """Raise `ShapeError` about ``argument`` unless an input of spatial ``size`` fits."""
        if self.built_for is not None and tuple(size) != self.built_for:
            expected = "×".join(map(str, self.built_for))
            fix = "resize the input, or build the net with this input_size"
            raise ShapeError(
                argument, f"the spatial size {expected} it was built for", "×".join(map(str, size)), fix
            )
        if any(n < least for n, least in zip(size, self.smallest_size, strict=True)):
            raise too_small(argument, tuple(size), self.smallest_size)

    def check_input(self, input: Tensor) -> None:
        """Raise `ShapeError` unless ``input`` has the axes, the channels and a size that this net takes."""
        axes = ", ".join(("length",) if self.ndim == 1 else ("depth", "height", "width")[-self.ndim :])
        if input.ndim != self.ndim + 2:
            raise ShapeError(
                "input", f"{self.ndim + 2} axes (batch, channels, {axes})", f"shape {tuple(input.shape)}"
            )
        if input.shape[1] != self.in_channels:
            raise ShapeError("input", f"{self.in_channels} channels", f"{input.shape[1]} ({tuple(input.shape)})")
        self.check_size(tuple(input.shape[2:]))
