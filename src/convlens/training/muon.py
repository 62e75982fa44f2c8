"""Muon: momentum whose singular values are all made 1, for weight matrices and windows; AdamW for the rest.

Jordan: Muon, an optimizer for hidden layers in neural networks, 2024. `torch.optim.Muon` takes matrices only;
here a convolution's weights are the matrix of output channels × (input channels · window), as in Jordan's nets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

__all__ = ["Muon", "orthogonal"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_EPSILON = 1e-7
_BETAS = (0.9, 0.99)


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``muon: True``, AdamW for the others.

    Args:
        groups: parameters with ``weight_decay``, ``muon`` and ``rate_scale``. A Muon step moves a matrix by
            the rate in spectral norm, as measured against a weight of variance 1 / inputs.
        lr: the learning rate of AdamW; Muon's is ten times that, so that one setting serves both.
        momentum: of Muon.
        nesterov: Nesterov's form of it.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, nesterov: bool = True
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            live = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                for parameter in live:
                    self._turn(parameter, parameter.grad, group)
            elif live:
                self._adamw(live, group)
        return loss

    def _turn(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        update = orthogonal(direction.reshape(len(direction), -1)).view(direction.shape)
        rate = 10 * group["lr"]
        rows, columns = len(parameter), parameter.numel() // len(parameter)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def _adamw(self, live: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in live:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in live]
        adamw(
            live,
            [parameter.grad for parameter in live if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with all singular values about 1 (0.7 to 1.2), by five Newton-Schulz steps in bfloat16.

    Args:
        matrix: float32 ``[rows, columns]``.
    """
    first, second, third = _COEFFICIENTS
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().T
    wide = wide / (wide.norm() + _EPSILON)
    for _ in range(_STEPS):
        square = wide @ wide.T
        wide = first * wide + (second * square + third * square @ square) @ wide
    found: Tensor = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    found = found.to(matrix.dtype)
    return found
