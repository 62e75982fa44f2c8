"""Ways to compute a dense layer that are no convolution."""

from __future__ import annotations

import torch

from convlens.planner import FINISHES, Bound

__all__ = ["DENSE", "dense_ways"]

DENSE = ("torch", "packed")
"""Ways to compute a dense layer that are no convolution."""


def dense_ways(weight: torch.Tensor, bias: torch.Tensor | None, activation: str, rows: int) -> dict[str, Bound]:
    """Torch's own ways to compute a dense layer: its product, and oneDNN's on packed weights."""
    matrix = weight.flatten(1)
    turned, finish = matrix.t(), FINISHES.get(activation)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x if x.dim() == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)

    def product(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
        sums = torch.mm(flat(x), turned) if bias is None else torch.addmm(bias, flat(x), turned)
        return sums if finish is None else finish(sums)

    ways = {"torch": Bound("torch", False, False, product, None)}
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
        operator = torch.ops.mkldnn._linear_pointwise.default
        fused = activation if activation == "relu" else "none"
        after = finish if fused == "none" else None

        def on_packed(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
            sums: torch.Tensor = operator(flat(x), packed, bias, fused, [], "")
            return sums if after is None else after(sums)

        ways["packed"] = Bound("packed", False, False, on_packed, None)
    return ways
