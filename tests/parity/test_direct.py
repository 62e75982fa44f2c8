"""`cpu.direct` against float64 at every vector width, and fenced by unreadable pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checking.guards import guarded_operand, guarded_results
from checking.parity import conv_parity, directions, make_operands, problem_of, reference
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.direct import Direct
from convlens.window import Epilogue

PROBLEMS = {
    "3x3": problem_of(3, 20, (13, 17), 37, 3, padding=1),
    "3x3 channels last": problem_of(2, 33, (9, 22), 18, 3, padding=1, layout="channels_last"),
    "as it lies": problem_of(2, 24, (9, 10), 32, 3, layout="channels_last"),
    "strided": problem_of(2, 16, (15, 18), 24, (3, 5), stride=(2, 3), padding=(1, 2)),
    "strided channels last": problem_of(2, 19, (15, 18), 17, 3, stride=2, padding=1, layout="channels_last"),
    "window smaller than stride": problem_of(2, 12, (11, 13), 9, 2, stride=3),
    "dilated": problem_of(1, 18, (19, 23), 16, 3, padding=2, dilation=(2, 3), stride=(2, 1)),
    "uneven": problem_of(2, 24, (11, 12), 8, (4, 3), padding=((0, 3), (2, 1))),
    "wide padding": problem_of(1, 9, (5, 6), 8, 2, padding=5),
    "grouped": problem_of(2, 48, (9, 14), 64, 3, padding=1, groups=4),
    "grouped channels last": problem_of(2, 48, (9, 14), 32, 3, padding=1, groups=2, layout="channels_last"),
    "one axis": problem_of(2, 30, (70,), 40, 9, stride=2, padding=4),
    "three axes": problem_of(1, 10, (5, 6, 9), 20, 3, padding=1, stride=(2, 1, 2)),
    "three axes, channels last": problem_of(2, 8, (4, 5, 7), 16, (2, 3, 3), padding=1, layout="channels_last"),
    "many channels": problem_of(1, 300, (7, 7), 130, 3, padding=1),
    "one channel": problem_of(2, 1, (7, 35), 16, 3, padding=1),
    "two channels": problem_of(1, 2, (6, 21), 8, 3),
    "three channels": problem_of(2, 3, (9, 37), 16, 3, padding=1),
    "four channels": problem_of(1, 4, (5, 16), 9, 2, stride=2),
    "one place": problem_of(1, 260, (1, 1), 70, 1, epilogue=Epilogue()),
}
WIDTHS = (16, 8, 4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str) -> None:
    conv_parity(Direct(), [PROBLEMS[name]])


@pytest.mark.parametrize("lanes", WIDTHS[1:])
@pytest.mark.parametrize("name", ["3x3", "strided", "grouped channels last"])
def test_values_in_narrower_vectors(name: str, lanes: int) -> None:
    if lanes > host().lanes or (lanes < host().lanes and "x86" not in host().triple):
        pytest.skip(f"this processor has no vectors of {lanes}")
    with forced(host() if lanes == host().lanes else host().narrowed(lanes)):
        conv_parity(Direct(), [PROBLEMS[name]], special_values=False)


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["3x3", "as it lies", "strided", "grouped", "three axes, channels last"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.kernels.cpu.direct.kernel.empty", guarded_results(against))
    for problem in directions(PROBLEMS[name]):
        operands = make_operands(problem)
        given = [None if o is None else guarded_operand(o, problem, against) for o in operands]
        for result, expected in zip(
            Direct().run(problem, *given), reference(problem, operands, torch.float64), strict=True
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_relu_is_fused() -> None:
    problem = replace(PROBLEMS["3x3"], epilogue=Epilogue(bias=True, activation="relu"))
    operands = make_operands(problem)
    (result,) = Direct().run(problem, *operands)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    assert float(result.min()) == 0.0


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_alone_in_a_batch_and_on_any_threads(threads: int) -> None:
    problem = PROBLEMS["3x3"]
    images, weight, bias = make_operands(problem)
    torch.set_num_threads(1)
    (together,) = Direct().run(problem, images, weight, bias)
    torch.set_num_threads(threads)
    for image, expected in zip(images, together, strict=True):
        (alone,) = Direct().run(replace(problem, batch=1), image[None], weight, bias)
        assert torch.equal(alone[0], expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu, got float64 on cpu"),
        ({"groups": 20, "out_channels": 40}, "needs groups of at least 8 channels to compute, got 2"),
        ({"kernel_size": (23, 23)}, "needs windows of at most 512 places, got (23, 23)"),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert Direct().refusal(replace(PROBLEMS["3x3"], **change)) == reason


@pytest.mark.parametrize("channels", [1, 3, 4, 20])
@pytest.mark.parametrize("padding", [0, 1])
def test_planes_in_channels_last_out(channels: int, padding: int) -> None:
    problem = problem_of(2, channels, (9, 21), 24, 3, padding=padding, layout="channels_last")
    problem = replace(problem, epilogue=Epilogue(True, "relu"))
    x, weight, bias = torch.randn(2, channels, 9, 21), torch.randn(24, channels, 3, 3), torch.randn(24)
    out = torch.full(problem.output_shape, torch.nan).contiguous(memory_format=torch.channels_last)
    prepared = Direct().prepare_from_planes(problem, weight, bias)
    assert prepared is not None
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=padding).relu()
    torch.testing.assert_close(prepared.run(x, out).double(), expected, rtol=1e-4, atol=1e-4)
