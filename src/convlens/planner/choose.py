"""A choice is a value with a reason: `plan` says which kernel computes a problem, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import _disable_current_modes

from convlens.errors import ArgumentError, BudgetError, UnsupportedError
from convlens.kernels import Kernel, all_kernels
from convlens.kernels.limits import OverBudget
from convlens.planner import settings
from convlens.planner.keys import bucketed, to_key
from convlens.planner.machine import Machine, context_key, measure_machine
from convlens.planner.store import Measurement, Store, default_store
from convlens.planner.trial import images_stand_alone, measure
from convlens.window import ConvProblem

__all__ = ["Candidate", "Plan", "execute", "machine", "pin", "plan", "unpin", "used"]

_log = logging.getLogger(__name__)

_WORTH_MEASURING = 200_000  # multiply-adds below which the call costs more than any kernel saves
_WORTH_ROUNDING = 1_000_000  # multiply-adds below which only kernels of class "exact" are worth their error
_FINALISTS = 3  # kernels measured besides the vendor's, best estimates first, one of each family ...
_HOPELESS = 4.0  # ... and none whose estimate is this many times the best one's
_CLEAR_WIN = 0.97  # a kernel must beat the vendor's time by 3 % ...
_WIDE_WIN = 0.9  # ... and by 10 % where the middle halves of their times overlap, or noise would decide
_ERROR_BOUND = {"exact": 2.0, "high": 16.0, "fast": float("inf")}
_VENDOR = "vendor"
# ways to compute a block, a chain of them or a pooling, which plans name too
_WAYS = {"composed", "cpu.direct_block", "cpu.direct_chain", "cpu.pool"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel's standing in a plan.

    ``refusal`` says why it was not eligible (None if it was); ``median_us`` and ``error`` (relative to
    a direct float32 sum, both against float64) are None where nothing was measured.
    """

    name: str
    algorithm: str
    precision: str
    refusal: str | None = None
    median_us: float | None = None
    error: float | None = None
    estimate_us: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which kernel computes ``problem``, why, and what else was considered."""

    problem: ConvProblem
    kernel: str
    reason: str
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that won."""
        return next(c for c in self.candidates if c.name == self.kernel)


_blocks: dict[str, str] = {}
_plans: dict[tuple[ConvProblem, str, settings.Settings], Plan] = {}
_pinned: dict[str, str] = {}
_MAX_PLANS = 16_384
settings.on_change(_plans.clear)


def plan(problem: ConvProblem, algorithm: str = "auto", *, store: Store | None = None) -> Plan:
    """Choose the kernel for ``problem``.

    The first automatic plan for a problem worth it measures the best few candidates (tens to hundreds of
    milliseconds, compilation included) and remembers the figures on disk.

    Args:
        problem: the convolution to compute.
        algorithm: ``"auto"``, or the name of an algorithm or kernel that must be used.
        store: where measurements are kept; default the file in the cache folder.

    Returns:
        The plan, with its reason and every candidate's time, error and refusal.

    Raises:
        UnsupportedError: a named algorithm is unknown or refuses the problem.
    """
    key = (problem, algorithm, settings.current())
    found = _plans.get(key)
    if found is None:
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        found = _named(problem, algorithm) if algorithm != "auto" else _automatic(problem, store)
        _plans[key] = found
    return found


def execute(chosen: Plan, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Run the planned kernel; operands and results as in `convlens.kernels.contract.Kernel`."""
    kernel = _kernel(chosen.kernel)
    problem = chosen.problem
    if not kernel.any_strides:
        operands = _dense(problem, *operands)
    per_image = settings.current().batch_invariant and problem.batch > 1 and problem.direction != "weight_grad"
    if per_image and not kernel.batch_invariant and not _stand_alone(kernel, problem):
        return _image_by_image(kernel, problem, *operands)
    return kernel.run(problem, *operands)


def pin(kernels: Mapping[str, str]) -> None:
    """Use these kernels (problem key → kernel name) instead of measuring: a run's own plans, or a fleet's.

    Raises:
        ArgumentError: a kernel that this version does not have.
    """
    known = {kernel.name for kernel in all_kernels()} | _WAYS
    for name in kernels.values():
        if name.removesuffix(" (planes)") not in known:
            raise ArgumentError("kernels", f"kernel names among {', '.join(sorted(known))}", repr(name))
    _pinned.update(kernels)
    settings.forget()


def unpin() -> None:
    """Forget every pinned choice."""
    _pinned.clear()
    settings.forget()


def used() -> dict[str, str]:
    """Every automatic choice of this process so far (problem key → kernel name), to store and `pin` later."""
    chosen = {
        to_key(_measured_as(problem)): found.kernel
        for (problem, algorithm, _), found in _plans.items()
        if algorithm == "auto"
    }
    return chosen | _blocks


settings.on_change(_blocks.clear)


def pinned_block(key: str) -> str | None:
    """The way that is pinned for a fused block, or None."""
    return _pinned.get(key)


def note_block(key: str, way: str) -> None:
    """Remember which way a fused block is computed, for `used`."""
    _blocks[key] = way


def machine(device: str = "cpu", store: Store | None = None) -> Machine:
    """The roofline of this machine, measured once and remembered."""
    store = store or default_store()
    context = context_key(device)
    known = store.machine(context)
    if known is None:
        with _disable_current_modes():
            measured = measure_machine(device)
        known = (measured.gflops, measured.gbytes)
        store.remember_machine(context, *known)
    return Machine(*known)


_alone: dict[tuple[str, ConvProblem, int], bool] = {}


def _stand_alone(kernel: Kernel, problem: ConvProblem) -> bool:
    """Whether a kernel that does not promise it still gives each image of this batch its own bits; tried once."""
    key = (kernel.name, problem, torch.get_num_threads())
    found = _alone.get(key)
    if found is None:
        if len(_alone) >= _MAX_PLANS:
            _alone.clear()
        found = _alone[key] = images_stand_alone(kernel, problem)
    return found


def finalists(problem: ConvProblem) -> list[Kernel]:
    """Kernels to `prepare`: eligible, the best estimates first, and the vendor's last."""
    chosen = settings.current()
    able = [
        k for k in all_kernels()
        if type(k).prepare is not Kernel.prepare and k.name != _VENDOR and _ineligible(k, problem, chosen) is None
    ]  # fmt: skip
    roofline = machine(problem.device)
    estimates = {k.name: k.estimate_us(problem, roofline) for k in able}
    able.sort(key=_promise(problem, estimates))
    near = [k for k in able if estimates[k.name] <= _HOPELESS * estimates[able[0].name]]
    return [*near[:_FINALISTS], _kernel(_VENDOR)]


def error_bound() -> float:
    """Largest error, over that of a direct float32 sum, that the precision in force allows."""
    return _ERROR_BOUND[settings.current().precision]


def _kernel(name: str) -> Kernel:
    return _by_name()[name]


_names: dict[str, Kernel] = {}


def _by_name() -> dict[str, Kernel]:
    if not _names:
        _names.update({kernel.name: kernel for kernel in all_kernels()})
    return _names


def _measured_as(problem: ConvProblem) -> ConvProblem:
    if settings.current().batch_invariant and problem.direction != "weight_grad":
        return replace(problem, batch=1)
    return bucketed(problem)


def _named(problem: ConvProblem, algorithm: str) -> Plan:
    kernels = all_kernels()
    known = sorted({kernel.algorithm for kernel in kernels})
    wanted = [k for k in kernels if algorithm in (k.algorithm, k.name)]
    if not wanted:
        raise UnsupportedError("algorithm", f"'auto' or one of {', '.join(known)}", repr(algorithm))
    candidates = tuple(Candidate(k.name, k.algorithm, k.precision, k.refusal(problem)) for k in wanted)
    able = [c for c in candidates if c.refusal is None]
    if not able:
        why = "; ".join(f"{c.name} {c.refusal}" for c in candidates)
        memory = any(isinstance(c.refusal, OverBudget) for c in candidates)
        raise (BudgetError if memory else UnsupportedError)(
            "algorithm", f"one that can compute this problem ({why})", repr(algorithm), "use algorithm='auto'"
        )
    if len(able) > 1:
        able.sort(key=lambda c: _kernel(c.name).estimate_us(problem, machine(problem.device)))
    return Plan(problem, able[0].name, f"asked for {algorithm!r}", candidates)


def _ineligible(kernel: Kernel, problem: ConvProblem, chosen: settings.Settings) -> str | None:
    """Why ``kernel`` may not be chosen automatically; None if it may."""
    refusal = kernel.refusal(problem)
    if refusal is not None or kernel.name == _VENDOR:
        return refusal
    if not kernel.automatic:
        return "is for reading and checking, chosen only by name"
    if _ERROR_BOUND[kernel.precision] > _ERROR_BOUND[chosen.precision]:
        return f"is of error class {kernel.precision!r}, {chosen.precision!r} is asked"
    if kernel.precision != "exact" and problem.macs < _WORTH_ROUNDING and chosen.precision != "fast":
        return f"is of error class {kernel.precision!r}: {problem.macs:,} multiply-adds are not worth that"
    return _over_limit(kernel, problem, chosen)


def _over_limit(kernel: Kernel, problem: ConvProblem, chosen: settings.Settings) -> str | None:
    needed = kernel.workspace_bytes(problem)
    if needed > chosen.workspace_limit:
        return f"needs {needed:,} bytes of workspace, the limit is {chosen.workspace_limit:,}"
    return None


def _automatic(problem: ConvProblem, store: Store | None) -> Plan:
    chosen = settings.current()
    kernels = all_kernels()
    # where the batch must not show in the bits, it must not show in the choice either
    one = chosen.batch_invariant and problem.direction != "weight_grad"
    judged = replace(problem, batch=1) if one else problem
    if one and problem.batch > 1:
        return replace(plan(judged, store=store), problem=problem)
    refusals = {k.name: _ineligible(k, judged, chosen) for k in kernels}
    if refusals[_VENDOR] is None and any(refusals[k.name] is None for k in kernels if k.name != _VENDOR):
        # what is left when nothing keeps to the limit is the library underneath
        refusals[_VENDOR] = _over_limit(_kernel(_VENDOR), judged, chosen)
    candidates = [Candidate(k.name, k.algorithm, k.precision, refusals[k.name]) for k in kernels]
    able = [k for k in kernels if refusals[k.name] is None]
    if len(able) == 1:
        return Plan(problem, able[0].name, "the only candidate that is eligible", tuple(candidates))
    if judged.macs < _WORTH_MEASURING and refusals[_VENDOR] is None:
        reason = f"too small to gain: {judged.macs:,} multiply-adds cost less than choosing"
        return Plan(problem, _VENDOR, reason, tuple(candidates))
    if (pinned := _pinned.get(to_key(_measured_as(problem)))) is not None:
        if refusals.get(pinned) is None:
            return Plan(problem, pinned, "pinned", tuple(candidates))
        _log.warning("pinned kernel %s is not eligible: %s", pinned, refusals[pinned])
    store = store or default_store()
    roofline = machine(problem.device, store)
    estimates = {k.name: k.estimate_us(problem, roofline) for k in able}
    candidates = [replace(c, estimate_us=estimates.get(c.name)) for c in candidates]
    if chosen.mode == "estimate":
        best = min(estimates, key=lambda name: estimates[name])
        return Plan(problem, best, f"estimated {_time(estimates[best])}; nothing measured", tuple(candidates))
    measured = _measurements(problem, able, estimates, store)
    candidates = [_with_figures(c, measured.get(c.name), chosen) for c in candidates]
    return _fastest(problem, candidates, measured)


def _measurements(
    problem: ConvProblem, able: list[Kernel], estimates: dict[str, float], store: Store
) -> dict[str, Measurement]:
    """Remembered figures of the finalists, measuring those that are missing."""
    context = context_key(problem.device)
    stands_for = _measured_as(problem)
    key = to_key(stands_for)
    ours = sorted((k for k in able if k.name != _VENDOR), key=_promise(problem, estimates))
    ours = [k for k in ours if k.refusal(stands_for) is None]
    known = store.measurements(context, key)
    bound = _ERROR_BOUND[settings.current().precision]
    while True:
        too_rough = {name for name, found in known.items() if found.error > bound}
        finalists = _finalists([k for k in ours if k.name not in too_rough], estimates)
        if _VENDOR in known and all(k.name in known for k in finalists):
            shown = [k for k in ours if k.name in too_rough] + finalists
            return {k.name: known[k.name] for k in (*shown, _kernel(_VENDOR))}
        # all again, so that figures that are compared were taken side by side
        with _disable_current_modes(), torch.autocast(problem.device.split(":")[0], enabled=False):
            measured = measure(stands_for, [_kernel(_VENDOR), *finalists])
        store.remember(context, key, measured)
        known |= measured


def _promise(problem: ConvProblem, estimates: dict[str, float]) -> Callable[[Kernel], tuple[float, float]]:
    """Order of kernels: by their estimates, and where memory is said to limit them alike, by their operations."""
    return lambda kernel: (estimates[kernel.name], kernel.estimate_flops(problem))


def _finalists(ours: list[Kernel], estimates: dict[str, float]) -> list[Kernel]:
    """The best estimate of each family (``cpu.amx``, ``cpu.amx_exact``: one), where not hopeless, of ``ours``.

    A family's rougher member does the same with fewer operations, so measuring both is a compilation wasted.
    """
    best: dict[str, Kernel] = {}
    for kernel in ours:  # best estimate first
        if estimates[kernel.name] <= _HOPELESS * estimates[ours[0].name]:
            best.setdefault(_family(kernel.name), kernel)
    return list(best.values())[:_FINALISTS]


def _family(name: str) -> str:
    return name.removesuffix("_exact").removesuffix("_fast")


def _with_figures(candidate: Candidate, found: Measurement | None, chosen: settings.Settings) -> Candidate:
    if found is None:
        return candidate
    bound = _ERROR_BOUND[chosen.precision]
    refusal = candidate.refusal
    if found.error > bound and candidate.name != _VENDOR:
        refusal = f"error {found.error:.1f}× that of a direct sum, {chosen.precision!r} allows {bound:g}×"
    return replace(candidate, median_us=found.median_us, error=found.error, refusal=refusal)


def _fastest(problem: ConvProblem, candidates: list[Candidate], measured: dict[str, Measurement]) -> Plan:
    timed = sorted(
        (c for c in candidates if c.median_us is not None and c.refusal is None), key=lambda c: c.median_us or 0.0
    )
    if not timed:
        return Plan(problem, _VENDOR, "no other kernel keeps to the limits", tuple(candidates))
    best, vendor = timed[0], next((c for c in timed if c.name == _VENDOR), None)
    if vendor and best is not vendor and not _wins(measured[best.name], measured[_VENDOR]):
        reason = f"measured {_time(vendor.median_us)}; {best.name} at {_time(best.median_us)} is no clear win"
        return Plan(problem, _VENDOR, reason, tuple(candidates))
    others = ", ".join(f"{c.name} {_time(c.median_us)}" for c in timed[1:3])
    reason = f"measured {_time(best.median_us)}" + (f", next {others}" if others else "")
    return Plan(problem, best.name, reason, tuple(candidates))


def _wins(ours: Measurement, vendor: Measurement) -> bool:
    """Whether a kernel is faster than the vendor's beyond the noise of both."""
    if ours.upper_us < vendor.lower_us:
        return ours.median_us <= _CLEAR_WIN * vendor.median_us
    # what disturbs a measurement only adds, so the lower quartiles are judged as well
    return max(ours.median_us / vendor.median_us, ours.lower_us / vendor.lower_us) <= _WIDE_WIN


def _dense(problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Operands as kernels take them: activations dense in the problem's layout, weights contiguous."""
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(problem.ndim)
    activations = torch.contiguous_format if problem.layout == "contiguous" or last is None else last
    formats = [activations, activations if problem.direction == "weight_grad" else torch.contiguous_format]
    formats.append(torch.contiguous_format)
    return tuple(
        None if t is None else t.resolve_conj().resolve_neg().contiguous(memory_format=f)
        for t, f in zip(operands, formats, strict=False)
    )


def _image_by_image(
    kernel: Kernel, problem: ConvProblem, *operands: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    one = replace(problem, batch=1)
    activations, *rest = operands
    if activations is None:
        raise ArgumentError("operands", "activations first", None)
    parts = [kernel.run(one, image.unsqueeze(0), *rest)[0] for image in activations]
    return (torch.cat(parts),)


def _time(microseconds: float | None) -> str:
    if microseconds is None:
        return "?"
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1000 else f"{microseconds:.0f} µs"
