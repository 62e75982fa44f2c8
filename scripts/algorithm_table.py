"""Writes docs/algorithms.md: algorithm × feature × cost × error, from what the kernels themselves say and give.

    python scripts/algorithm_table.py            # measure and write
    python scripts/algorithm_table.py --check    # fail if the file lacks a kernel, or says another thing of it

Errors are measured in float32 against float64 on random operands; nothing here is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from convlens.kernels import Kernel, all_kernels
from convlens.kernels.limits import OverBudget
from convlens.kernels.vendor import Vendor
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
DIRECTIONS = ("forward", "input_grad", "weight_grad")

PLAIN = ConvProblem("forward", 2, 16, (20, 20), 16, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
FEATURES = {
    "1-D": replace(PLAIN, input_size=(20,), kernel_size=(3,), stride=(1,), padding=((1, 1),), dilation=(1,)),
    "3-D": replace(
        PLAIN, input_size=(9,) * 3, kernel_size=(3,) * 3, stride=(1,) * 3, padding=((1, 1),) * 3, dilation=(1,) * 3
    ),
    "stride": replace(PLAIN, stride=(2, 2)),
    "dilation": replace(PLAIN, dilation=(2, 2)),
    "groups": replace(PLAIN, groups=4),
    "depthwise": replace(PLAIN, groups=16),
    "uneven padding": replace(PLAIN, padding=((1, 2), (0, 1))),
    "float64": replace(PLAIN, dtype="float64"),
    "bfloat16": replace(PLAIN, dtype="bfloat16"),
    "complex": replace(PLAIN, dtype="complex64"),
    "integers": replace(PLAIN, dtype="int32"),
}
LAYERS = {
    "first layer 3→32, 3×3, 64×64": ConvProblem(
        "forward", 4, 3, (64, 64), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)
    ),
    "lecture layer 100→100, 5×5, 64×64 (B9)": ConvProblem(
        "forward", 8, 100, (64, 64), 100, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)
    ),
    "depthwise 32, 3×3, 32×32": ConvProblem(
        "forward", 4, 32, (32, 32), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=32
    ),
    "signal 8→16, 31, 512": ConvProblem("forward", 4, 8, (512,), 16, (31,), (1,), ((15, 15),), (1,)),
}


def support(kernel: Kernel, problem: ConvProblem) -> str:
    """In which directions a kernel takes a problem."""
    refusals = [kernel.refusal(problem.towards(direction)) for direction in DIRECTIONS]
    if any(isinstance(refusal, OverBudget) for refusal in refusals):
        return "within the budget"
    taken = [refusal is None for refusal in refusals]
    if all(taken):
        return "yes"
    return (
        "no"
        if not any(taken)
        else "+".join(word for word, able in zip(("forward", "input", "weight"), taken, strict=True) if able)
    )


def rms_error(kernel: Kernel, problem: ConvProblem) -> float | None:
    """Root-mean-square error in float32 against float64, relative to the result's root mean square."""
    if kernel.refusal(problem) is not None:
        return None
    operands = operands_for(problem, seed=1)
    wide = [None if t is None else t.double() for t in operands]
    exact = Vendor().run(replace(problem, dtype="float64"), *wide)[0]
    dense = [None if t is None else t.contiguous() for t in operands]
    got = kernel.run(problem, *dense)[0].double()
    return math.sqrt(float((got - exact).square().mean() / exact.square().mean()))


def described(kernel: Kernel) -> tuple[str, str, str, str, str]:
    """What a kernel says of itself on any machine: name, algorithm, choice, batch invariance, error class."""
    auto = "yes" if kernel.automatic else "by name only"
    bits = "yes" if kernel.batch_invariant else "image by image on request"
    return kernel.name, kernel.algorithm, auto, bits, kernel.precision


def feature_table() -> list[str]:
    lines = [
        "| kernel | `algorithm=` | " + " | ".join(FEATURES) + " | auto | same bits in any batch | class |",
        "|" + " --- |" * (len(FEATURES) + 5),
    ]
    for kernel in all_kernels():
        name, algorithm, *rest = described(kernel)
        cells = [support(kernel, problem) for problem in FEATURES.values()]
        lines.append("| " + " | ".join([name, algorithm, *cells, *rest]) + " |")
    return lines


def differences(text: str) -> list[str]:
    """What the page lacks or says otherwise than the kernels; what depends on the machine is not compared."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")
    ]
    told = {(row[0], row[1], *row[-3:]) for row in rows if len(row) == len(FEATURES) + 5}
    wrong = [name for name, *rest in map(described, all_kernels()) if (name, *rest) not in told]
    known = {kernel.name for kernel in all_kernels()} | {"kernel", "---"}
    return wrong + sorted({row[0] for row in told} - known)


def cost_table() -> list[str]:
    lines = ["| layer | kernel | direction | operations ÷ definition | workspace MiB | float32 error |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, layer in LAYERS.items():
        for kernel in all_kernels():
            for direction in DIRECTIONS:
                problem = layer.towards(direction)
                if kernel.refusal(problem) is not None:
                    continue
                work = kernel.estimate_flops(problem) / problem.flops
                space = kernel.workspace_bytes(problem) / (1 << 20)
                error = rms_error(kernel, problem)
                shown = "-" if error is None else f"{error:.1e}"
                lines.append(f"| {name} | {kernel.name} | {direction} | {work:.2f} | {space:.1f} | {shown} |")
    return lines


HEAD = """\
# Algorithms

Written by `scripts/algorithm_table.py` from the kernels' own answers; errors measured in float32 against float64.

`algorithm="auto"` lets the planner choose among those marked so; a name must be obeyed or raises with the reason.
Gradients are computed by the same algorithm. Every padding, mode, `flip` and unbatched input works with all.

- **Not finite:** a Fourier transform spreads NaN and infinity over its tile, so `fourier` looks at its result and,
  where it is not finite, computes by the definition instead.
- **Same bits in any batch:** the kernels marked "yes" sum each image alike whatever the batch; the others do under
  `convlens.set_batch_invariant(True)`, where they run image by image, and where the plan is made without regard to
  the batch. `tests/parity/test_batch_invariance.py` holds every kernel to its word. Gradients of weights are sums
  over the batch and are left out.
- **16-bit floats** are summed in float32 and rounded once by the plain kernels.
- **Memory:** `definition` and `toeplitz` refuse what would take more than `kernels.limits.matrix_budget()`;
  automatic plans stay under the planner's workspace limit (`convlens.set_workspace_limit`).
- **Against torch:** torch's own operator samples agree in values, strides, gradients and second gradients, and
  each of its error inputs is an error here, in the same words and more, but for one: `padding="same"` takes any
  stride. Where torch's float32 or 16-bit result is itself further from double precision than torch's tolerance,
  both are judged against double precision. `tests/parity` runs the samples through every algorithm.
"""


def main() -> int:
    """Write the page, or check that it names every kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if wrong := differences(text):
            print(
                f"docs/algorithms.md is behind on {', '.join(wrong)}: run scripts/algorithm_table.py",
                file=sys.stderr,
            )
        return bool(wrong)
    with torch.no_grad():
        parts = [
            HEAD,
            "## What each takes\n",
            *feature_table(),
            "\n## What each costs, and how exact it is\n",
            *cost_table(),
        ]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
