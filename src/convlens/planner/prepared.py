"""Choosing how a convolution with constant weights is computed: kernels bound to their weights, measured so.

What a kernel cannot fuse (an activation it does not know, a residual) is done after it, and counts in its time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from convlens.kernels import Kernel, all_kernels
from convlens.kernels.contract import NativeCall, Prepared
from convlens.kernels.cpu.memory import empty
from convlens.kernels.cpu.team import one_thread
from convlens.planner import choose, settings
from convlens.planner.keys import to_key
from convlens.planner.machine import context_key
from convlens.planner.store import Measurement, Store, default_store
from convlens.planner.timing import Timing, interleaved
from convlens.planner.trial import error_ratios
from convlens.window import ConvProblem, Epilogue

__all__ = ["FINISHES", "Bound", "bind", "fastest_in_place", "fastest_of"]

_log = logging.getLogger(__name__)

_PLANES = " (planes)"
_ALONE = " (one thread)"
_ONE_THREAD = 4_000_000  # multiply-adds; more keep two threads busy for far longer than it takes to wake one
_BLOCK_S = 0.0005
_MOST_WAYS, _NEAR = 3, 2.0
_FEW_CHANNELS = 4
_REPEATS, _BUDGET_S = 15, 0.25

FINISHES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "relu6": lambda x: x.clamp_(0.0, 6.0),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "silu": lambda x: torch.nn.functional.silu(x, inplace=True),
    "hardswish": lambda x: torch.nn.functional.hardswish(x, inplace=True),
    "hardsigmoid": torch.ops.aten.hardsigmoid_.default,
    "gelu": torch.ops.aten.gelu_.default,
}
"""Activations in place, by name."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A convolution with its weights, activation and residual, ready to run many times.

    Attributes:
        kernel: name of the kernel.
        writes: whether ``run`` needs a destination (see there).
        adds: whether the residual must be in that destination beforehand; otherwise it is given apart.
        run: ``(input, out, residual)`` → the result. ``out`` is given where `writes` or `adds`, and is the
            result; where `adds`, ``residual`` is not looked at.
        spoilt: see `Prepared`.
        native: see `Prepared`; with ``adds``, its result's memory holds the residual.
    """

    kernel: str
    writes: bool
    adds: bool
    run: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]
    spoilt: torch.Tensor | None
    native: NativeCall | None = None


def bind(
    problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None, *, store: Store | None = None,
    others: dict[str, Bound] | None = None,
) -> list[Bound]:  # fmt: skip
    """The fastest ways to compute ``problem`` with these weights, by themselves, measured once and remembered.

    Ways that take up to twice the time of the first are among them, as which is fastest within a net depends on
    what the caches hold there.

    Args:
        problem: forward, float32 on the CPU; its epilogue holds bias, activation and residual.
        weight: contiguous, as the problem says.
        bias: or None.
        store: where measurements are kept; default the file in the cache folder.
        others: further ways by name, such as torch's own for a dense layer.

    Returns:
        At least one way, at most three.
    """
    problem = replace(problem, prepared=True)
    key = to_key(problem)
    ways: dict[str, Callable[[], Bound | None]] = {}
    for kernel in _finalists(problem):
        ways[kernel.name] = lambda kernel=kernel: _bound(kernel, problem, weight, bias)  # type: ignore[misc]
    if torch.get_num_threads() > 1 and problem.macs <= _ONE_THREAD:
        for kernel in _finalists(problem):
            if kernel.name.startswith("cpu."):
                ways[kernel.name + _ALONE] = lambda kernel=kernel: _alone(kernel, problem, weight, bias)  # type: ignore[misc]
    few = problem.in_channels <= _FEW_CHANNELS and problem.ndim == 2 and others is None
    if problem.layout == "channels_last" and few:
        turned = replace(problem, layout="contiguous", epilogue=replace(problem.epilogue, residual=False))
        for kernel in _finalists(turned):
            if kernel.name.startswith("cpu.direct"):
                ways[kernel.name + _PLANES] = lambda kernel=kernel: _by_planes(  # type: ignore[misc]
                    kernel, problem, turned, weight, bias
                )
    for name, other in (others or {}).items():
        ways[name] = lambda other=other: other  # type: ignore[misc]
    found = _chosen(problem, key, ways, store)
    choose.note_block(key, found[0].kernel)
    return found


def fastest_in_place(
    problem: ConvProblem, names: list[str], times: Callable[[], dict[str, Timing]], store: Store | None = None
) -> str:
    """Which of the ways that `bind` gave is fastest within a net.

    Args:
        problem: as it was bound.
        names: of the ways, as `Bound.kernel` has them.
        times: measures them; called where they are not known yet.
        store: where measurements are kept; default the file in the cache folder.
    """
    key = to_key(replace(problem, prepared=True))
    if choose.pinned_block(key) in names or settings.current().mode == "estimate":
        return names[0]
    store = store or default_store()
    context, place = context_key(problem.device), f"{key} in place"
    known = store.measurements(context, place)
    if not set(names) <= set(known):
        known = {n: Measurement(t.median_us, t.lower_us, t.upper_us, t.repeats, 1.0) for n, t in times().items()}
        store.remember(context, place, known)
    best = min(names, key=lambda name: known[name].median_us)
    choose.note_block(key, best)
    return best


def fastest_of(key: str, calls: dict[str, Callable[[], object]], store: Store | None = None) -> str:
    """The fastest of several calls, remembered on disk under ``key``; the first one where nothing is measured."""
    if settings.current().mode == "estimate":
        return next(iter(calls))
    store = store or default_store()
    context = context_key("cpu")
    known = store.measurements(context, key)
    if not set(calls) <= set(known):
        times = interleaved(calls, repeats=_REPEATS, budget_s=1.0, block_s=_BLOCK_S)
        known = {n: Measurement(t.median_us, t.lower_us, t.upper_us, t.repeats, 1.0) for n, t in times.items()}
        store.remember(context, key, known)
    return min(calls, key=lambda name: known[name].median_us)


def _chosen(
    problem: ConvProblem, key: str, ways: dict[str, Callable[[], Bound | None]], store: Store | None
) -> list[Bound]:
    pinned = choose.pinned_block(key)
    if pinned in ways and (found := ways[pinned]()) is not None:
        return [found]
    if settings.current().mode == "estimate" or len(ways) == 1:
        for way in ways.values():  # by their estimates
            if (found := way()) is not None:
                return [found]
    store = store or default_store()
    context = context_key(problem.device)
    known = store.measurements(context, key)
    made: dict[str, Bound] = {}
    if not set(ways) <= set(known):
        made = {name: found for name, way in ways.items() if (found := way()) is not None}
        known = _measured(problem, made)
        for name in ways:  # remembered as hopeless, so that nobody tries again
            known.setdefault(name, Measurement(float("inf"), float("inf"), float("inf"), 0, 1.0))
        store.remember(context, key, known)
    best: list[Bound] = []
    limit = float("inf")
    for name in sorted(ways, key=lambda name: known[name].median_us):
        if known[name].error > choose.error_bound() or known[name].median_us > limit or len(best) == _MOST_WAYS:
            continue
        if (found := made.get(name) or ways[name]()) is not None:
            best.append(found)
            limit = min(limit, _NEAR * known[name].median_us)
    if not best:
        raise RuntimeError(f"no kernel for {problem}")  # the vendor computes everything
    return best


def _finalists(problem: ConvProblem) -> list[Kernel]:
    """Kernels worth trying, the best estimates first, and the vendor's."""
    judged = replace(problem, epilogue=replace(problem.epilogue, activation="none", residual=False))
    return choose.finalists(judged)


def _bound(kernel: Kernel, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Bound | None:
    """``kernel`` with as much of the epilogue as it can fuse, the rest done after it."""
    full = problem.epilogue
    tried = [full]
    if full.residual:
        tried.append(replace(full, residual=False, activation="none"))
    elif full.activation != "none":
        tried.append(replace(full, activation="none"))
    for epilogue in tried:
        fused = replace(problem, epilogue=epilogue)
        if kernel.refusal(fused) is None and (found := kernel.prepare(fused, weight, bias)) is not None:
            return _finished(kernel.name, found, full, epilogue)
    return None


def _alone(kernel: Kernel, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Bound | None:
    """`_bound` for one thread, of what is generated code throughout."""
    with one_thread():
        found = _bound(kernel, problem, weight, bias)
    return None if found is None or found.native is None else replace(found, kernel=kernel.name + _ALONE)


def _finished(name: str, prepared: Prepared, wanted: Epilogue, fused: Epilogue) -> Bound:
    run, finish = prepared.run, FINISHES.get(wanted.activation)
    if fused.residual or (not wanted.residual and fused.activation == wanted.activation):

        def whole(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
            return run(x, out)

        return Bound(name, prepared.writes, fused.residual, whole, prepared.spoilt, prepared.native)

    def then(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
        result = run(x, out)
        if residual is not None:
            result.add_(residual)
        return result if finish is None else finish(result)

    return Bound(name, prepared.writes, False, then, prepared.spoilt)


def _by_planes(
    kernel: Kernel, problem: ConvProblem, turned: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None
) -> Bound | None:
    """A kernel for contiguous images, its result turned to channels_last."""
    found = _bound(kernel, turned, weight, bias)
    if found is None or not found.writes:
        return None
    planes = empty(turned.output_shape)
    finish = FINISHES.get(problem.epilogue.activation) if problem.epilogue.residual else None
    inner = found
    if problem.epilogue.residual:
        inner_epilogue = replace(turned.epilogue, activation="none")
        again = _bound(kernel, replace(turned, epilogue=inner_epilogue), weight, bias)
        if again is None:
            return None
        inner = again

    def run(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
        assert out is not None  # noqa: S101
        out.copy_(inner.run(x.contiguous(), planes, None))
        if residual is not None:
            out.add_(residual)
        return out if finish is None else finish(out)

    return Bound(kernel.name + _PLANES, True, False, run, inner.spoilt)


def _measured(problem: ConvProblem, ways: dict[str, Bound]) -> dict[str, Measurement]:
    last = problem.layout == "channels_last" and problem.ndim > 1
    generator = torch.Generator().manual_seed(0)

    def operand(shape: tuple[int, ...]) -> torch.Tensor:
        return empty(shape, channels_last=last).normal_(generator=generator)

    x, out = operand(problem.input_shape), operand(problem.output_shape)
    residual = operand(problem.output_shape) if problem.epilogue.residual else None

    def call(bound: Bound) -> Callable[[], Any]:
        destination = out if bound.writes or bound.adds else None
        return lambda: bound.run(x, destination, residual)

    with torch.no_grad(), _disable_current_modes(), torch.autocast("cpu", enabled=False):
        times = interleaved(
            {name: call(bound) for name, bound in ways.items()},
            repeats=_REPEATS,
            budget_s=_BUDGET_S,
            drop_above=1.5,
            block_s=_BLOCK_S,
        )
        plain = replace(problem, prepared=False, epilogue=Epilogue())
        judged = {k.name: k for k in all_kernels() if k.name in ways and k.precision != "exact"}
        alone = {name: times[name + _ALONE] for name in judged if name + _ALONE in times}
        best = min((t.median_us for t in times.values()), default=0.0)
        # judging takes float64 sums: only those that may win are worth it
        judged = {
            name: k for name, k in judged.items()
            if min(times[name].median_us, alone.get(name, times[name]).median_us) <= 1.2 * best
        }  # fmt: skip
        errors = error_ratios(list(judged.values()), plain) if judged else {}
    for bound in ways.values():
        if bound.spoilt is not None:
            bound.spoilt.zero_()
    return {
        name: Measurement(
            t.median_us, t.lower_us, t.upper_us, t.repeats, errors.get(name.removesuffix(_ALONE), 1.0)
        )
        for name, t in times.items()
    }
