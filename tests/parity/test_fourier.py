"""`cpu.fourier` against float64 at every vector width, fenced by unreadable pages; its transforms alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checking.guards import guarded_operand, guarded_results
from checking.parity import conv_parity, directions, make_operands, problem_of, reference
from convlens.kernels.cpu.codegen import Module, compiled, forced, host
from convlens.kernels.cpu.fourier import Fourier
from convlens.kernels.cpu.fourier.transform import LENGTHS, Transform
from convlens.window import Epilogue

PROBLEMS = {
    "5x5": problem_of(2, 18, (19, 20), 37, 5, padding=2),
    "5x5 channels last": problem_of(1, 23, (21, 17), 50, 5, layout="channels_last"),
    "7x7": problem_of(2, 20, (22, 31), 24, 7, padding=3),
    "even, uneven": problem_of(2, 24, (18, 17), 8, (4, 9), padding=((0, 3), (2, 5))),
    "one axis": problem_of(2, 20, (170,), 20, 31, padding=15),
    "one row of the window": problem_of(2, 19, (9, 30), 20, (1, 13), padding=(0, 6), epilogue=Epilogue()),
    "one column of the window": problem_of(1, 16, (40, 9), 20, (13, 1), padding=(6, 0), layout="channels_last"),
    "dilated": problem_of(2, 18, (31, 40), 20, (7, 3), padding=(6, 2), dilation=(2, 3)),
    "many channels": problem_of(2, 150, (14, 14), 70, 7, padding=3),
}
WIDTHS = (16, 8, 4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str) -> None:
    conv_parity(Fourier(), [PROBLEMS[name]])


@pytest.mark.parametrize("lanes", WIDTHS[1:])
@pytest.mark.parametrize("name", ["7x7", "5x5 channels last"])
def test_values_in_narrower_vectors(name: str, lanes: int) -> None:
    if lanes > host().lanes or (lanes < host().lanes and "x86" not in host().triple):
        pytest.skip(f"this processor has no vectors of {lanes}")
    with forced(host() if lanes == host().lanes else host().narrowed(lanes)):
        conv_parity(Fourier(), [PROBLEMS[name]], special_values=False)


def _build(m: Module, rows: int, columns: int) -> None:
    n, transform = m.target.lanes, Transform(rows, columns)
    with m.function("run", x="f32*", y="f32*", points="f32*", ones="f32*", middle="f32*") as f:
        size = (rows, columns)
        transform.forward(f, "data", size, lambda r, c: f.x.load((r * columns + c) * n, n), f.middle,
                          lambda p, v: f.points.store(v, p * n))  # fmt: skip
        # a window of a single one leaves every place where it is
        transform.forward(f, "window", (1, 1), lambda r, c: f.splat(1.0, n), f.middle,
                          lambda p, v: f.ones.store(v, p * n), 1 / (rows * columns))  # fmt: skip
        with f.loop(0, transform.points) as p:
            f.points.store(f.points.load(p * n, n) * f.ones.load(p * n, n), p * n)
        transform.backward(f, size, lambda p: f.points.load(p * n, n), f.middle,
                           lambda r, c, v: f.y.store(v, (r * columns + c) * n))  # fmt: skip


@pytest.mark.parametrize("size", [(n, 8) for n in LENGTHS] + [(1, 24), (10, 1), (12, 30)])
def test_there_and_back(size: tuple[int, int]) -> None:
    rows, columns = size
    lanes, points = host().lanes, Transform(rows, columns).points
    code = compiled("test.fourier", _build, rows=rows, columns=columns)
    x = torch.randn(rows, columns, lanes)
    y = torch.full_like(x, torch.nan)
    buffers = [torch.empty(count * lanes + 16) for count in (points, points, rows * columns)]
    middle = -(-buffers[2].data_ptr() // 64) * 64
    code.run(x.data_ptr(), y.data_ptr(), buffers[0].data_ptr(), buffers[1].data_ptr(), middle, 1)
    torch.testing.assert_close(y, x, rtol=0, atol=3e-6)


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["7x7", "5x5 channels last", "one axis"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.kernels.cpu.fourier.kernel.empty", guarded_results(against))
    for problem in directions(PROBLEMS[name]):
        if Fourier().refusal(problem) is not None:
            continue
        operands = make_operands(problem)
        given = [None if o is None else guarded_operand(o, problem, against) for o in operands]
        for result, expected in zip(
            Fourier().run(problem, *given), reference(problem, operands, torch.float64), strict=True
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


def test_relu_is_fused() -> None:
    problem = replace(PROBLEMS["7x7"], epilogue=Epilogue(bias=True, activation="relu"))
    operands = make_operands(problem)
    (result,) = Fourier().run(problem, *operands)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4)
    assert float(result.min()) == 0.0


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_on_any_number_of_threads(threads: int) -> None:
    for problem in directions(PROBLEMS["7x7"]):
        operands = make_operands(problem)
        torch.set_num_threads(1)
        alone = Fourier().run(problem, *operands)
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, Fourier().run(problem, *operands), strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu, got float64 on cpu"),
        ({"groups": 2}, "needs 1 group, got 2"),
        ({"stride": (2, 1)}, "needs stride 1, got (2, 1)"),
        ({"in_channels": 7}, "needs at least 8 channels to sum over, got 7"),
        ({"kernel_size": (3, 3)}, "needs a window of at least 12 places that a tile holds, got (3, 3)"),
        ({"kernel_size": (31, 31)}, "needs a window of at least 12 places that a tile holds, got (31, 31)"),
        ({"direction": "weight_grad", "input_size": (9, 9)}, "needs outputs of twice the window, got (9, 9)"),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert Fourier().refusal(replace(PROBLEMS["7x7"], **change)) == reason
