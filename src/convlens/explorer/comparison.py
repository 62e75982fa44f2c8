"""Every algorithm on one layer: time, error and memory, or why it refuses."""

from __future__ import annotations

from typing import Any

import torch

from convlens import planner
from convlens.kernels import all_kernels
from convlens.window import ConvProblem

__all__ = ["compare_algorithms"]


def compare_algorithms(problem: ConvProblem) -> dict[str, Any]:
    """Time, error and memory of every kernel that takes ``problem``; the refusals of the others."""
    from convlens.planner.trial import measure

    able = [kernel for kernel in all_kernels() if kernel.refusal(problem) is None]
    with torch.no_grad():
        figures = measure(problem, able, repeats=5, budget_s=0.3, drop_above=None)
    chosen = planner.plan(problem)
    rows = []
    for kernel in all_kernels():
        found = figures.get(kernel.name)
        rows.append(
            {
                "kernel": kernel.name,
                "algorithm": kernel.algorithm,
                "time_us": found.median_us if found else None,
                "error": found.error if found else None,
                "memory": kernel.workspace_bytes(problem) if found else None,
                "refusal": kernel.refusal(problem),
                "chosen": kernel.name == chosen.kernel,
            }
        )
    rows.sort(key=lambda row: (row["time_us"] is None, row["time_us"] or 0.0))
    return {"macs": problem.macs, "reason": chosen.reason, "rows": rows}
