"""What accelerating a model gains: as the plans of its convolutions promise, and as a clock says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from convlens import planner
from convlens.layers import convolution
from convlens.ops.arguments import conv_padding
from convlens.window import ConvProblem

__all__ = ["Gain", "expected_gain", "measured_gain"]

_OURS = (convolution.Conv1d, convolution.Conv2d, convolution.Conv3d)
_ROUNDS = 11
_BUDGET_S = 6.0


@dataclass(frozen=True, slots=True)
class Gain:
    """Milliseconds of the same work before and after; ``rounds`` is 0 where nothing was timed for it."""

    before_ms: float
    after_ms: float
    rounds: int = 0

    def __str__(self) -> str:
        factor = self.before_ms / self.after_ms if self.after_ms else 1.0
        return f"{factor:.2f}x ({self.before_ms:.3g} ms before, {self.after_ms:.3g} ms after)"


def expected_gain(model: torch.nn.Module, run: Callable[[], Any]) -> Gain | None:
    """Time of torch's kernels against the planned ones, summed over the convolutions that ``run`` calls.

    Hooks watch one run. None where no convolution was measured (all too small to be worth it).
    """
    seen: list[ConvProblem] = []

    def note(layer: Any, inputs: tuple[Any, ...]) -> None:
        problem = _problem(layer, inputs[0]) if inputs and isinstance(inputs[0], torch.Tensor) else None
        if problem is not None:
            seen.append(problem)

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, _OURS)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    before = after = 0.0
    for problem in seen:
        plan = planner.plan(problem)
        times = {c.name: c.median_us for c in plan.candidates}
        vendor, chosen = times.get("vendor"), times.get(plan.kernel)
        if vendor is not None and chosen is not None:
            before, after = before + vendor / 1e3, after + chosen / 1e3
    return Gain(before, after) if after else None


def _problem(layer: Any, x: torch.Tensor) -> ConvProblem | None:
    if x.dim() != layer.ndim + 2 or layer.padding_mode != "zeros" or x.device.type != "cpu" or not x.numel():
        return None
    size, kernel = tuple(x.shape[2:]), tuple(layer.weight.shape[2:])
    last = layer.ndim == 2 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return ConvProblem(
        "forward", x.shape[0], x.shape[1], size, layer.out_channels, kernel, layer.stride,
        conv_padding(layer.padding, size, kernel, layer.stride, layer.dilation), layer.dilation, layer.groups,
        dtype=str(x.dtype).removeprefix("torch."), layout="channels_last" if last else "contiguous",
    )  # fmt: skip


def measured_gain(run: Callable[[], Any], before: Callable[[], Any], after: Callable[[], Any]) -> Gain:
    """Medians of ``run`` in two states taken in turn, set by ``before`` and ``after``; ends in the second."""
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for round_number in range(_ROUNDS + 1):
        if round_number > 3 and time.perf_counter() - started > _BUDGET_S:
            break
        for state, taken in zip((before, after), times, strict=True):
            state()
            start = time.perf_counter()
            run()
            if round_number:  # the first round warms up
                taken.append((time.perf_counter() - start) * 1e3)
    return Gain(statistics.median(times[0]), statistics.median(times[1]), len(times[0]))
