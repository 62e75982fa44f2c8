"""`Unfold` and `Fold` as layers."""

from __future__ import annotations

from typing import Any

import torch

from convlens import ops
from convlens.ops.padding import require_mode

__all__ = ["Fold", "Unfold"]


class Unfold(torch.nn.Unfold):
    """Every window's elements as one column; torch.nn.Unfold's arguments, paddings as `convlens.ops.unfold`."""

    # a class attribute, so that a torch.nn layer whose class is exchanged for ours has it too
    padding_mode: str = "zeros"

    def __init__(
        self,
        kernel_size: Any,
        dilation: Any = 1,
        padding: Any = 0,
        stride: Any = 1,
        *,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, dilation, padding, stride)
        require_mode(padding_mode)
        if padding_mode != "zeros":
            self.padding_mode = padding_mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(N, C * window elements, windows)``."""
        return ops.unfold(
            input, self.kernel_size, self.dilation, self.padding, self.stride, padding_mode=self.padding_mode
        )


class Fold(torch.nn.Fold):
    """Columns of window elements summed back into place; torch.nn.Fold's arguments, also in 1-D and 3-D."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(N, C, *output_size)``."""
        return ops.fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)
