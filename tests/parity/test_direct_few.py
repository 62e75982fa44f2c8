"""`cpu.direct_few` against float64 at every vector width, and fenced by unreadable pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checking.guards import guarded, guarded_results
from checking.parity import conv_parity, directions, in_layout, make_operands, problem_of, reference
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.direct_few import DirectFew
from convlens.window import ConvProblem, Epilogue

PROBLEMS = {
    "lenet": problem_of(3, 1, (28, 28), 6, 5, padding=2),
    "vgg": problem_of(2, 3, (37, 41), 16, 3, padding=1),
    "whiten": problem_of(3, 3, (12, 33), 24, 2),
    "resnet stem": problem_of(2, 3, (31, 45), 8, 7, stride=2, padding=3),
    "alexnet": problem_of(1, 3, (39, 43), 5, 11, stride=4),
    "speech": problem_of(1, 1, (17, 70), 7, (5, 20), stride=2),
    "window smaller than stride": problem_of(2, 2, (11, 13), 3, 2, stride=3),
    "uneven padding": problem_of(2, 2, (9, 14), 5, (3, 4), padding=((0, 2), (3, 1))),
    "wide padding": problem_of(1, 1, (5, 6), 2, 2, padding=5, stride=(1, 2)),
    "dilated": problem_of(1, 2, (19, 23), 4, 3, padding=2, dilation=(2, 3), stride=(2, 1)),
    "dilated and strided": problem_of(1, 2, (9, 40), 4, (1, 5), dilation=(1, 2), stride=(1, 4)),
    "one pixel": problem_of(2, 1, (1, 1), 1, 1),
    "one by one": problem_of(1, 5, (7, 19), 17, 1),
    "one axis": problem_of(2, 4, (50,), 6, 9, stride=2, padding=4),
    "no bias": problem_of(2, 3, (8, 8), 4, 3, epilogue=Epilogue()),
}
WIDTHS = (16, 8, 4)


def _able(lanes: int) -> bool:
    return lanes <= host().lanes and (lanes == host().lanes or "x86" in host().triple or "amd64" in host().triple)


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str, lanes: int) -> None:
    if not _able(lanes):
        pytest.skip(f"this processor has no vectors of {lanes}")
    target = host() if lanes == host().lanes else host().narrowed(lanes)
    with forced(target):
        conv_parity(DirectFew(), [PROBLEMS[name]], special_values=lanes == host().lanes)


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["lenet", "vgg", "resnet stem", "uneven padding", "window smaller than stride"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.kernels.cpu.direct_few.kernel.empty", guarded_results(against))
    for problem in directions(PROBLEMS[name]):
        operands = make_operands(problem)
        given = [None if o is None else _fence(o, problem, against) for o in operands]
        for result, expected in zip(
            DirectFew().run(problem, *given), reference(problem, operands, torch.float64), strict=True
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def _fence(operand: torch.Tensor, problem: ConvProblem, against: str) -> torch.Tensor:
    if operand.dim() == 4 and operand.shape != problem.weight_shape and problem.layout == "channels_last":
        return guarded(operand.movedim(1, -1).contiguous(), against=against).movedim(-1, 1)
    return guarded(in_layout(operand, problem), against=against)


def test_relu_is_fused() -> None:
    problem = replace(PROBLEMS["vgg"], epilogue=Epilogue(bias=True, activation="relu"))
    operands = make_operands(problem)
    (result,) = DirectFew().run(problem, *operands)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    assert float(result.min()) == 0.0


def test_same_bits_in_every_run_of_one_thread_count() -> None:
    problem = replace(PROBLEMS["vgg"], direction="weight_grad")
    operands = make_operands(problem)
    first, second = (DirectFew().run(problem, *operands) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu, got float64 on cpu"),
        ({"groups": 2}, "needs 1 group, got 2"),
        ({"in_channels": 64}, "needs at most 32 input channels, got 64"),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert DirectFew().refusal(replace(PROBLEMS["vgg"], **change)) == reason
