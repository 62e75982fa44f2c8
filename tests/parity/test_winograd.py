"""`cpu.winograd…` against float64 at every vector width, and fenced by unreadable pages."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from checking.guards import guarded_operand, guarded_results
from checking.parity import conv_parity, directions, make_operands, problem_of, reference
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.winograd import Winograd, WinogradExact, WinogradFast
from convlens.kernels.cpu.winograd.points import matrices
from convlens.window import Epilogue

PROBLEMS = {
    "3x3": problem_of(3, 20, (13, 17), 37, 3, padding=1),
    "3x3 channels last": problem_of(2, 33, (9, 22), 18, 3, padding=1, layout="channels_last"),
    "5x5": problem_of(2, 18, (9, 20), 50, 5, padding=2),
    "5x5 channels last": problem_of(1, 23, (21, 9), 80, 5, layout="channels_last"),
    "uneven": problem_of(2, 24, (11, 12), 8, (5, 3), padding=((0, 3), (2, 1))),
    "one axis": problem_of(2, 30, (70,), 20, 3, padding=1),
    "long axis": problem_of(1, 16, (3001,), 16, 5),
    "one row of the window": problem_of(2, 19, (5, 30), 20, (1, 3), padding=(0, 1), epilogue=Epilogue()),
    "one tile": problem_of(2, 16, (3, 3), 5, 3, padding=1),
    "many channels": problem_of(2, 262, (7, 7), 130, 3, padding=1),
}
KERNELS = {kernel.name: kernel for kernel in (Winograd(), WinogradExact(), WinogradFast())}
WIDTHS = (16, 8, 4)


def _able(lanes: int) -> bool:
    return lanes <= host().lanes and (lanes == host().lanes or "x86" in host().triple or "amd64" in host().triple)


@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str) -> None:
    conv_parity(KERNELS["cpu.winograd"], [PROBLEMS[name]])


@pytest.mark.parametrize("lanes", WIDTHS[1:])
@pytest.mark.parametrize("name", ["3x3", "5x5 channels last"])
def test_values_in_narrower_vectors(name: str, lanes: int) -> None:
    if not _able(lanes):
        pytest.skip(f"this processor has no vectors of {lanes}")
    with forced(host().narrowed(lanes)):
        conv_parity(KERNELS["cpu.winograd"], [PROBLEMS[name]], special_values=False)


@pytest.mark.parametrize("kernel", ["cpu.winograd_exact", "cpu.winograd_fast"])
def test_values_of_the_other_classes(kernel: str) -> None:
    conv_parity(KERNELS[kernel], [PROBLEMS["3x3"]])


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["3x3", "5x5 channels last", "one axis"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.kernels.cpu.winograd.kernel.empty", guarded_results(against))
    kernel = KERNELS["cpu.winograd"]
    for problem in directions(PROBLEMS[name]):
        if kernel.refusal(problem) is not None:
            continue
        operands = make_operands(problem)
        given = [None if o is None else guarded_operand(o, problem, against) for o in operands]
        for result, expected in zip(
            kernel.run(problem, *given), reference(problem, operands, torch.float64), strict=True
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


def test_relu_is_fused() -> None:
    problem = replace(PROBLEMS["3x3"], epilogue=Epilogue(bias=True, activation="relu"))
    operands = make_operands(problem)
    (result,) = KERNELS["cpu.winograd"].run(problem, *operands)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4)
    assert float(result.min()) == 0.0


def test_an_image_has_the_same_bits_alone_or_in_any_batch() -> None:
    problem = PROBLEMS["3x3"]
    kernel = KERNELS["cpu.winograd"]
    images, weight, bias = make_operands(problem)
    images[1, 0, 5, 5] = float("nan")  # one that the vendor computes
    (together,) = kernel.run(problem, images, weight, bias)
    for image, expected in zip(images, together, strict=True):
        (alone,) = kernel.run(replace(problem, batch=1), image[None], weight, bias)
        assert torch.equal(alone[0].nan_to_num(), expected.nan_to_num())
    assert together[0].isfinite().all() and together[1].isnan().any()


@pytest.mark.parametrize(("outputs", "window"), [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5), (2, 7), (1, 1)])
def test_matrices_are_exact(outputs: int, window: int) -> None:
    data, weights, result = matrices(outputs, window)
    source = [Fraction(3 * i * i - 7 * i + 2, 5) for i in range(outputs + window - 1)]
    taps = [Fraction(i * i - 2, 3) for i in range(window)]

    def times(matrix: tuple, vector: list) -> list[Fraction]:
        return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]

    products = [a * b for a, b in zip(times(data, source), times(weights, taps), strict=True)]
    expected = [sum(source[o + k] * taps[k] for k in range(window)) for o in range(outputs)]
    assert times(result, products) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu, got float64 on cpu"),
        ({"groups": 2, "in_channels": 40, "out_channels": 38}, "needs 1 group, got 2"),
        ({"stride": (2, 1)}, "needs stride 1 and no dilation, got (2, 1) and (1, 1)"),
        ({"kernel_size": (4, 3)}, "needs windows of 1, 3, 5, got (4, 3)"),
        ({"in_channels": 15}, "needs at least 16 channels to sum over, got 15"),
        ({"input_size": (2, 9)}, "needs sizes of at least the window, got (2, 9)"),
        ({"direction": "weight_grad", "input_size": (5, 9)}, "needs outputs of twice the window, got (5, 9)"),
        ({"direction": "weight_grad", "input_size": (6, 7)}, "needs at least 256 places to sum over, got 126"),
        ({"padding": ((3, 0), (0, 0))}, "needs padding smaller than the window, got ((3, 0), (0, 0)) and (3, 3)"),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert KERNELS["cpu.winograd"].refusal(replace(PROBLEMS["3x3"], **change)) == reason
