"""A choice is a value with a reason: `plan` says which kernel computes a problem, and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from convlens.errors import UnsupportedError
from convlens.kernels import Kernel, all_kernels
from convlens.window import ConvProblem

__all__ = ["Candidate", "Plan", "execute", "plan"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel's standing in a plan. ``refusal`` is None where it could compute the problem."""

    name: str
    algorithm: str
    precision: str
    refusal: str | None = None
    median_us: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which kernel computes ``problem``, why, and what else was considered."""

    problem: ConvProblem
    kernel: str
    reason: str
    candidates: tuple[Candidate, ...]


@lru_cache(maxsize=4096)
def plan(problem: ConvProblem, algorithm: str = "auto") -> Plan:
    """Choose the kernel for ``problem``.

    Args:
        problem: the convolution to compute.
        algorithm: ``"auto"``, or the name of an algorithm that must be used.

    Returns:
        The plan, with its reason and every candidate's refusal.

    Raises:
        UnsupportedError: a named algorithm is unknown or refuses the problem.
    """
    candidates = tuple(Candidate(k.name, k.algorithm, k.precision, k.refusal(problem)) for k in all_kernels())
    named = [c for c in candidates if algorithm in ("auto", c.algorithm)]
    able = [c for c in named if c.refusal is None]
    if not able:
        known = sorted({c.algorithm for c in candidates})
        why = "; ".join(f"{c.name} {c.refusal}" for c in named) or f"known algorithms are {', '.join(known)}"
        raise UnsupportedError("algorithm", f"one that can compute this problem ({why})", repr(algorithm))
    chosen = able[0]
    reason = f"asked for {algorithm!r}" if algorithm != "auto" else "the only candidate that does not refuse"
    return Plan(problem, chosen.name, reason, candidates)


def execute(chosen: Plan, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Run the planned kernel; operands and results as in `convlens.kernels.contract.Kernel`."""
    return _by_name()[chosen.kernel].run(chosen.problem, *operands)


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in all_kernels()}
