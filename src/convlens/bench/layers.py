"""`convlens bench layers`: every layer of the set, forward and backward, against the best peer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from convlens import planner
from convlens.bench.cases import LayerCase
from convlens.bench.peers import OWN_THREADS, layer_peers
from convlens.kernels import all_kernels
from convlens.planner.timing import Timing, samples
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem, Direction

__all__ = ["LayerRow", "geometric_means", "measure_layers"]

_BLOCK_S = 0.01
_BACKWARD: tuple[Direction, ...] = ("input_grad", "weight_grad")


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer in one direction. Ratios are the best peer's time over ours: above 1 we are faster.

    ``best`` is our fastest kernel forced, ``planned`` what the planner chose, its fallback included; both
    in the better of the two memory layouts, as the peers are. ``ratio`` holds the quartiles over rounds.
    """

    name: str
    direction: str
    peer: str
    peer_us: Timing
    best: str
    best_us: Timing | None
    planned: str
    planned_us: Timing
    ratio: tuple[float, float, float]
    best_ratio: float | None
    gflops: float
    percent_of_peak: float
    peers_us: dict[str, Timing] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return asdict(self)


def measure_layers(
    cases: Iterable[LayerCase],
    directions: Iterable[str] = ("forward", "backward"),
    *,
    repeats: int = 30,
    budget_s: float = 3.0,
    compiled: bool = False,
) -> Iterator[LayerRow]:
    """Measure each case, one row a direction, as they are done."""
    peak = planner.machine().gflops
    wanted = list(directions)
    with torch.no_grad():
        for case in cases:
            for direction in wanted:
                yield _measure(case, direction, repeats, budget_s, compiled, peak)


def geometric_means(rows: Iterable[LayerRow]) -> dict[str, float]:
    """Geometric mean of the planned ratio, by direction."""
    by_direction: dict[str, list[float]] = {}
    for row in rows:
        by_direction.setdefault(row.direction, []).append(row.ratio[1])
    return {direction: statistics.geometric_mean(ratios) for direction, ratios in by_direction.items()}


def _measure(
    case: LayerCase, direction: str, repeats: int, budget_s: float, compiled: bool, peak: float
) -> LayerRow:
    problem = case.problem
    peers = layer_peers(problem, direction, compiled=compiled)
    ours: dict[str, Callable[[], object]] = {}
    planned: dict[str, str] = {}
    for layout in ("contiguous", "channels_last") if problem.ndim > 1 else ("contiguous",):
        laid_out = replace(problem, layout=layout)
        label, call = _planned(laid_out, direction)
        planned[f"planned {layout}"] = label
        ours[f"planned {layout}"] = call
        ours |= _forced(laid_out, direction)
    taken = samples(
        peers | ours, repeats=repeats, budget_s=budget_s, drop_above=6.0, apart=OWN_THREADS, block_s=_BLOCK_S
    )
    times = {name: Timing.of(values) for name, values in taken.items()}
    peer = min(peers, key=lambda name: times[name].median_us)
    plan = min(planned, key=lambda name: times[name].median_us)
    forced = min((name for name in ours if name not in planned), key=lambda n: times[n].median_us, default=None)
    flops = problem.flops * (1 if direction == "forward" else 2)
    gflops = flops / (times[plan].median_us * 1e3)
    return LayerRow(
        name=case.name,
        direction=direction,
        peer=peer,
        peer_us=times[peer],
        best=forced or "none",
        best_us=times[forced] if forced else None,
        planned=planned[plan],
        planned_us=times[plan],
        ratio=_ratios(taken[peer], taken[plan]),
        best_ratio=times[peer].median_us / times[forced].median_us if forced else None,
        gflops=gflops,
        percent_of_peak=100 * gflops / peak,
        peers_us={name: times[name] for name in peers},
    )


def _ratios(peer: list[float], ours: list[float]) -> tuple[float, float, float]:
    if len(peer) < len(ours):
        # a peer left out of the rounds as far too slow has one sample only
        peer = [statistics.median(peer)] * len(ours)
    pairs = [p / o for p, o in zip(peer, ours, strict=False)]
    quartiles = Timing.of(pairs)
    return (quartiles.lower_us, quartiles.median_us, quartiles.upper_us)


def _planned(problem: ConvProblem, direction: str) -> tuple[str, Callable[[], object]]:
    wanted: tuple[Direction, ...] = ("forward",) if direction == "forward" else _BACKWARD
    plans = [planner.plan(problem.towards(way)) for way in wanted]
    operands = _operands([plan.problem for plan in plans])

    def call() -> object:
        return [planner.execute(plan, *given) for plan, given in zip(plans, operands, strict=True)]

    return "+".join(plan.kernel for plan in plans), call


def _operands(problems: list[ConvProblem]) -> list[tuple[Any, ...]]:
    """Of each problem; both gradients read one upstream gradient, as in training and as torch's call does."""
    operands = [operands_for(problem) for problem in problems]
    return [(operands[0][0], *given[1:]) for given in operands] if len(problems) > 1 else operands


def _forced(problem: ConvProblem, direction: str) -> dict[str, Callable[[], object]]:
    """Our own kernels by name; backward, one that does both gradients stands for the pair."""
    wanted: tuple[Direction, ...] = ("forward",) if direction == "forward" else _BACKWARD
    problems = [problem.towards(way) for way in wanted]
    operands = _operands(problems)
    found: dict[str, Callable[[], object]] = {}
    for kernel in all_kernels():
        if kernel.name == "vendor" or not kernel.automatic:
            continue
        if kernel.precision == "fast" and planner.get_precision() != "fast":
            continue  # equal precision only
        if any(kernel.refusal(way) is not None for way in problems):
            continue

        def call(kernel: Any = kernel) -> object:
            return [kernel.run(way, *given) for way, given in zip(problems, operands, strict=True)]

        found[f"{kernel.name} {problem.layout}"] = call
    return found
