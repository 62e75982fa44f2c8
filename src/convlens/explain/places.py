"""One kernel for each layer of a net that looks at a picture in parts, so that no seam shows between them.

The planner may choose another kernel for every size, and kernels differ in their rounding. Some, such as
Winograd's, even round differently from place to place. Here each convolution gets the fastest kernel whose results
do not depend on where in the picture, or in how large a part of it, a place lies: it is tried on a random input
and a shifted piece of it, and must give the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from convlens import planner
from convlens.errors import ArgumentError
from convlens.ops.arguments import as_ints, conv_padding
from convlens.window import ConvProblem, Epilogue

__all__ = ["pin_kernels"]

_STEPS = (3, 5)  # outputs that the piece is shifted by: multiples of no tile of ours
_LAST = "vendor"
_ROUNDS = 5


@torch.inference_mode()
def pin_kernels(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, str]:
    """Give every 2-D convolution of ours one kernel for all places and sizes.

    Args:
        net: in evaluation mode; changed in place.
        shape: ``(channels, height, width)`` of the input that it will mostly see.

    Returns:
        Name of each layer and its kernel.
    """
    seen: dict[nn.Module, tuple[int, ...]] = {}
    layers = {module: name for name, module in net.named_modules() if _is_ours(module)}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[module] = tuple(inputs[0].shape)

    hooks = [module.register_forward_pre_hook(note) for module in layers]
    try:
        device = next(net.parameters()).device
        net(torch.zeros((1, *shape), device=device))
    finally:
        for hook in hooks:
            hook.remove()
    pinned = {}
    for module, size in seen.items():
        kernel = pinned[layers[module]] = _kernel_for(module, size)
        vars(module)["algorithm"] = kernel
    return pinned


def _is_ours(module: Any) -> bool:
    return isinstance(module, nn.Conv2d) and getattr(module, "algorithm", None) == "auto" and not module.flip


def _kernel_for(layer: Any, shape: tuple[int, ...]) -> str:
    """The fastest that is blind to places.

    They are timed again, here in the layer: the planner's single trial of a large size mostly shows what fresh
    memory for the result costs, which is the same for all.
    """
    blind = []
    for name in _candidates(layer, shape):
        layer.algorithm = name
        try:
            if _is_blind_to_places(layer, shape):
                blind.append(name)
        except ArgumentError:  # the kernel refuses one of the sizes
            continue
        finally:
            layer.algorithm = "auto"
    if not blind:
        return _LAST
    is_timed = planner.settings.current().mode == "measure" and layer.weight.device.type == "cpu"
    return _fastest(layer, shape, blind) if is_timed else blind[0]


def _fastest(layer: Any, shape: tuple[int, ...], names: list[str]) -> str:
    inputs, best = torch.zeros(shape), dict.fromkeys(names, math.inf)
    for _ in range(_ROUNDS if len(names) > 1 else 0):
        for name in names:
            layer.algorithm = name
            started = time.perf_counter()
            layer(inputs)
            best[name] = min(best[name], time.perf_counter() - started)
    layer.algorithm = "auto"
    return min(names, key=best.__getitem__)


def _candidates(layer: Any, shape: tuple[int, ...]) -> Iterator[str]:
    """Kernels as the planner ranks them for the layer alone, the library's last."""
    kernel, steps, holes = (as_ints(n, 2, "window") for n in (layer.kernel_size, layer.stride, layer.dilation))
    size = (shape[2], shape[3])
    pairs = conv_padding(layer.padding, size, kernel, steps, holes)
    if layer.padding_mode != "zeros":
        size = (size[0] + sum(pairs[0]), size[1] + sum(pairs[1]))
        pairs = ((0, 0), (0, 0))
    weight = layer.weight
    plan = planner.plan(
        ConvProblem(
            "forward", 1, shape[1], size, weight.shape[0], kernel, steps, pairs, holes, layer.groups,
            dtype=str(weight.dtype).removeprefix("torch."), device=weight.device.type,
            epilogue=Epilogue(bias=layer.bias is not None),
        )
    )  # fmt: skip
    able = [c for c in plan.candidates if c.refusal is None and (c.median_us is not None or c.name == plan.kernel)]
    for candidate in sorted(able, key=lambda c: (c.name != plan.kernel, c.median_us or 0.0)):
        yield candidate.name


def _is_blind_to_places(layer: Any, shape: tuple[int, ...]) -> bool:
    drawn = torch.Generator().manual_seed(0)
    whole = torch.randn(shape, generator=drawn).to(layer.weight)
    pool = max(1, getattr(layer, "pool", 1))
    steps = tuple(n * s * pool for n, s in zip(_STEPS, as_ints(layer.stride, 2, "stride"), strict=True))
    if any(size <= 4 * step for size, step in zip(shape[2:], steps, strict=True)):
        return True  # nothing of that size is ever shifted
    piece = whole[:, :, steps[0] :, steps[1] :].contiguous()
    expected, found = layer(whole)[:, :, _STEPS[0] :, _STEPS[1] :], layer(piece)
    # the first places of the piece look at its edge, where the whole has more
    reach = [n * (k - 1) for n, k in zip(as_ints(layer.dilation, 2, "d"), layer.kernel_size, strict=True)]
    margin = [-(-r // (s * pool)) for r, s in zip(reach, as_ints(layer.stride, 2, "s"), strict=True)]
    return torch.equal(expected[:, :, margin[0] :, margin[1] :], found[:, :, margin[0] :, margin[1] :])
