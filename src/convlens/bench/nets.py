"""`convlens bench nets`: whole networks, forward, against torch in its best form and other inference engines."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from convlens import layers
from convlens.bench.net_cases import NetCase
from convlens.bench.net_peers import net_peers
from convlens.bench.rounds import rounds_of
from convlens.errors import UnsupportedError
from convlens.layers.program import Built, program_of
from convlens.planner.timing import Timing

__all__ = ["NetRow", "measure_nets", "net_means"]

_TOLERANCE = 2e-4
"""Largest difference from torch's outputs, relative to their norm, with which a time counts."""


@dataclass(frozen=True, slots=True)
class NetRow:
    """One network at one batch size, measured at ``date``.

    Ratios are a peer's time over ours: above 1 we are faster.

    ``ratios`` has the fastest form of torch under ``"torch"`` and every other engine under its name, each with
    quartiles over the rounds; ``torch`` names that form, ``way`` how ours was computed.
    """

    name: str
    batch: int
    ours_us: Timing
    way: str
    torch: str
    ratios: dict[str, tuple[float, float, float]]
    difference: float
    gflops: float
    peers_us: dict[str, Timing]
    date: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetRow:
        """The row that `to_json` wrote."""
        return cls(
            **values
            | {
                "ours_us": Timing(**values["ours_us"]),
                "ratios": {name: tuple(ratio) for name, ratio in values["ratios"].items()},
                "peers_us": {name: Timing(**timing) for name, timing in values["peers_us"].items()},
            }
        )


def measure_nets(
    cases: Iterable[NetCase],
    batches: Iterable[int] = (1, 32),
    *,
    repeats: int = 15,
    budget_s: float = 4.0,
    compiled: bool = True,
    skipped: Callable[[str, str], None] = lambda name, why: None,
) -> Iterator[NetRow]:
    """Measure each network at each batch size, one row as it is done.

    Args:
        cases: networks.
        batches: batch sizes.
        repeats: rounds at most; in each, every way runs as a block of its own.
        budget_s: seconds of rounds for each row.
        compiled: also torch.compile, where a C++ compiler is installed.
        skipped: called with a network's name and the reason where it cannot be had.
    """
    wanted = list(batches)
    for case in cases:
        for batch in wanted:
            try:
                yield _measure(case, batch, repeats, budget_s, compiled)
            except (UnsupportedError, ImportError) as error:
                skipped(case.name, str(error))
                break


def net_means(rows: Iterable[NetRow]) -> dict[str, float]:
    """Geometric means of the ratios, against torch and against each other engine."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, (_, middle, _) in row.ratios.items():
            found.setdefault(name, []).append(middle)
    return {name: statistics.geometric_mean(ratios) for name, ratios in found.items()}


def _measure(case: NetCase, batch: int, repeats: int, budget_s: float, compiled: bool) -> NetRow:
    x = torch.randn(batch, *case.input_shape, generator=torch.Generator().manual_seed(0))
    plain = case.plain()
    with torch.no_grad():
        expected = plain(x)
        ours = layers.accelerate(case.plain(), x, report=False)
        ours(x)
        got = ours(x)
        difference = float((got - expected).norm() / expected.norm().clamp(min=1e-30))
        if difference > _TOLERANCE:
            raise ArithmeticError(f"{case.name}: output differs by {difference:.2g}, no time is reported")
        peers = net_peers(plain, x, expected, compiled=compiled)
        taken = rounds_of({"convlens": lambda: ours(x), **peers}, repeats=repeats, budget_s=budget_s)
    times = {name: Timing.of(values) for name, values in taken.items()}
    torches = [name for name in peers if name.startswith("torch")]
    best = min(torches, key=lambda name: times[name].median_us)

    def ratio(name: str) -> tuple[float, float, float]:
        of = Timing.of([theirs / own for theirs, own in zip(taken[name], taken["convlens"], strict=True)])
        return (of.lower_us, of.median_us, of.upper_us)

    program = program_of(ours, x)
    return NetRow(
        name=case.name,
        batch=batch,
        ours_us=times["convlens"],
        way=f"one program, {program.layout}" if isinstance(program, Built) else "layer by layer",
        torch=best,
        ratios={"torch": ratio(best)} | {name: ratio(name) for name in peers if name not in torches},
        difference=difference,
        gflops=2 * case.macs() * batch / (times["convlens"].median_us * 1e3),
        peers_us={name: times[name] for name in peers},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
