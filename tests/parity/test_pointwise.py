"""`cpu.pointwise` against float64, in both layouts and with steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checking.parity import conv_parity, problem_of
from convlens.kernels.cpu.pointwise import Pointwise

PROBLEMS = {
    "plain": problem_of(3, 40, (9, 11), 23, 1),
    "channels last": problem_of(3, 40, (9, 11), 23, 1, layout="channels_last"),
    "steps": problem_of(2, 18, (10, 9), 33, 1, stride=(2, 3)),
    "steps, channels last": problem_of(2, 18, (10, 9), 33, 1, stride=2, layout="channels_last"),
    "one axis": problem_of(2, 20, (50,), 17, 1, stride=2),
    "three axes": problem_of(2, 8, (3, 4, 5), 9, 1, layout="channels_last"),
    "float64": problem_of(2, 8, (3, 4), 9, 1, dtype="float64"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str) -> None:
    conv_parity(Pointwise(), [PROBLEMS[name]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel_size": (1, 3)}, "needs windows of one place, got (1, 3)"),
        ({"groups": 2, "out_channels": 24}, "needs 1 group, got 2"),
        ({"padding": ((0, 1), (0, 0))}, "needs no padding, got ((0, 1), (0, 0))"),
        ({"dtype": "bfloat16"}, "needs float32 or float64 on the cpu, got bfloat16 on cpu"),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert Pointwise().refusal(replace(PROBLEMS["plain"], **change)) == reason
