"""When the loss is no longer a number, or absurdly large: which layer it came from, and what to try."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["explain_divergence", "has_diverged"]

_TIMES_CHANCE = 20
"""A mean loss this many times that of guessing is no longer training."""


def has_diverged(loss: float, classes: int) -> bool:
    """True where an epoch's mean loss is not finite, or far above the loss of guessing, ln(classes)."""
    return not math.isfinite(loss) or loss > _TIMES_CHANCE * math.log(max(2, classes))


def explain_divergence(network: nn.Module, inputs: Tensor | None, step: int, epoch: int) -> str:
    """One paragraph: where training broke, in which layer, and what to change.

    Args:
        network: as it is now.
        inputs: the batch on which the loss was not finite; None when only the size of the loss is wrong.
        step: steps done.
        epoch: number of the epoch, from 1.
    """
    where = _bad_weights(network) or (inputs is not None and _bad_output(network, inputs)) or _largest(network)
    return (
        f"Training diverged in epoch {epoch}, step {step}: {where}. The checkpoint before it is kept. "
        f"Try a lower --learning-rate (a tenth), --clip-norm 1, or --warmup-epochs 1."
    )


def _bad_weights(network: nn.Module) -> str | None:
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weights {name!r} are not finite"
    return None


@torch.no_grad()
def _bad_output(network: nn.Module, inputs: Tensor) -> str | None:
    """The first layer, in order of computation, whose output is not finite."""
    if not torch.isfinite(inputs).all():
        return "the inputs themselves are not finite"
    found: list[str] = []

    def watch(name: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and not found and not torch.isfinite(output).all():
                found.append(f"layer {name!r} ({type(module).__name__}) gives outputs that are not finite")

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _largest(network: nn.Module) -> str:
    sizes = {name: float(parameter.detach().abs().max()) for name, parameter in network.named_parameters()}
    name = max(sizes, key=lambda key: sizes[key])
    return f"the loss exploded; the largest weights, up to {sizes[name]:.3g}, are in {name!r}"
