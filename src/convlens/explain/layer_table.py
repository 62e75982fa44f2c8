"""Per layer: shape, weights, cost, time, share of what the machine attains, receptive field, plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convlens import planner
from convlens.errors import ArgumentError
from convlens.explain.capture import capture, layer_names, named_layer, quiet
from convlens.explain.pixel import Convolution
from convlens.models.summary import summary
from convlens.window import ConvProblem

__all__ = ["LayerReport", "layer_table", "problem_of"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of a forward pass.

    Attributes:
        name, kind: path and class of the module.
        output_shape: batch first.
        weights, macs, bytes: its parameters, multiply-adds, and traffic with each value touched once.
        receptive_field, stride: input positions one unit sees, and those between neighbours, per axis;
            None where it sees everything.
        time_us: median time in microseconds; None where it was not measured.
        percent_of_peak: its operations over that time, relative to this machine's float32 peak.
        kernel, reason: the kernel that the planner chooses for a convolution, and why.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    weights: int
    macs: int
    bytes: int
    receptive_field: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    time_us: float | None = None
    percent_of_peak: float | None = None
    kernel: str | None = None
    reason: str | None = None


def layer_table(model: nn.Module, input: Tensor, *, repeats: int = 5) -> list[LayerReport]:
    """Describe every layer for one input ``(batch, channels, *size)``, in the order of computation.

    Args:
        model: any module that takes one tensor.
        input: what to run it on; only its shape and type matter.
        repeats: timed passes; 0 measures no time.
    """
    counted = summary(model, tuple(input.shape), input.dtype)
    with torch.no_grad(), quiet(model):
        times = _times(model, input, repeats) if repeats else {}
        _, caught = capture(model, input)
    peak = planner.machine(input.device.type).gflops if repeats else 0.0
    found = []
    for row in counted.rows:
        spent = times.get(row.name)
        speed = 2 * row.macs / (spent * 1e3) if spent and row.macs else None
        plan = _plan(model, row.name, caught[row.name].input) if row.name in caught else None
        found.append(
            LayerReport(
                name=row.name,
                kind=row.kind,
                output_shape=tuple(row.output_shape),
                weights=row.weights,
                macs=row.macs,
                bytes=row.bytes,
                receptive_field=row.receptive_field,
                stride=row.stride,
                time_us=spent,
                percent_of_peak=None if speed is None else 100 * speed / peak,
                kernel=plan.kernel if plan else None,
                reason=plan.reason if plan else None,
            )
        )
    return found


def _times(model: nn.Module, input: Tensor, repeats: int) -> dict[str, float]:
    """Median microseconds between entering and leaving each layer, by name."""
    started: dict[str, float] = {}
    taken: dict[str, list[float]] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            started[name] = time.perf_counter()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            taken.setdefault(name, []).append((time.perf_counter() - started[name]) * 1e6)

        return hook

    handles = []
    try:
        model(input)
        for name in layer_names(model):
            layer = named_layer(model, name)
            handles += [layer.register_forward_pre_hook(enter(name)), layer.register_forward_hook(leave(name))]
        for _ in range(repeats):
            model(input)
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics.median(values) for name, values in taken.items()}


def _plan(model: nn.Module, name: str, input: Tensor) -> planner.Plan | None:
    try:
        numbers = Convolution.of(named_layer(model, name))
    except ArgumentError:
        return None
    if input.ndim != numbers.weight.ndim:
        return None
    return planner.plan(problem_of(numbers, input))


def problem_of(numbers: Convolution, input: Tensor) -> ConvProblem:
    """The forward problem that a layer poses for ``input`` ``(batch, channels, *size)``."""
    channels_last = input.ndim > 3 and input.is_contiguous(memory_format=_CHANNELS_LAST[input.ndim])
    return ConvProblem(
        direction="forward",
        batch=len(input),
        in_channels=input.shape[1],
        input_size=tuple(input.shape[2:]),
        out_channels=len(numbers.weight),
        kernel_size=tuple(numbers.weight.shape[2:]),
        stride=numbers.stride,
        padding=numbers.padding,
        dilation=numbers.dilation,
        groups=numbers.groups,
        dtype=str(input.dtype).removeprefix("torch."),
        layout="channels_last" if channels_last and not input.is_contiguous() else "contiguous",
        device=input.device.type,
    )
