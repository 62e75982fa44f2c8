"""`cpu.depthwise_fourier` against float64 at every vector width, fenced by unreadable pages; its lines alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checking.guards import guarded_operand, guarded_results
from checking.parity import conv_parity, directions, make_operands, problem_of, reference
from convlens.kernels.cpu.codegen import Module, compiled, emit_object, forced, host, neon
from convlens.kernels.cpu.depthwise_fourier import DepthwiseFourier, tiles
from convlens.kernels.cpu.depthwise_fourier.geometry import LENGTHS, Axis, shape_of
from convlens.kernels.cpu.depthwise_fourier.lines import Line, load_pair, store_pair
from convlens.window import Epilogue

PROBLEMS = {
    "one tile": problem_of(2, 19, (20, 23), 19, 11, padding=5, groups=19),
    "channels last": problem_of(2, 35, (21, 17), 35, (13, 11), padding=(6, 5), groups=35, layout="channels_last"),
    "31x31": problem_of(1, 16, (33, 40), 16, 31, padding=15, groups=16),
    "without padding": problem_of(2, 3, (29, 21), 3, (12, 10), groups=3, epilogue=Epilogue()),
    "uneven padding": problem_of(1, 5, (26, 22), 5, (14, 11), padding=((6, 1), (0, 3)), groups=5),
    "many tiles": problem_of(1, 3, (150, 290), 3, (11, 25), padding=(5, 12), groups=3),
    "many tiles, channels last": problem_of(
        1, 3, (160, 30), 3, (25, 11), padding=(3, 5), groups=3, layout="channels_last"
    ),
    "dilated": problem_of(2, 4, (41, 50), 4, (11, 10), padding=(10, 9), dilation=(2, 3), groups=4),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str) -> None:
    conv_parity(DepthwiseFourier(), [PROBLEMS[name]])


@pytest.mark.parametrize("lanes", [8, 4])
@pytest.mark.parametrize("name", ["one tile", "channels last"])
def test_values_in_narrower_vectors(name: str, lanes: int) -> None:
    if lanes >= host().lanes or "x86" not in host().triple:
        pytest.skip(f"this processor has no vectors of {lanes} besides its own")
    with forced(host().narrowed(lanes)):
        conv_parity(DepthwiseFourier(), [PROBLEMS[name]], special_values=False)


def test_compiles_for_arm() -> None:
    module = Module("arm", neon())
    tiles.build(module, shape_of(PROBLEMS["one tile"]))
    assert emit_object(module).startswith(b"\x7fELF")


def _build(m: Module, length: int) -> None:
    line = Line.of(m, length)
    with m.function("run", x="f32*", y="f32*", between="f32*") as f:
        line.forward(f, lambda place: load_pair(f, f.x, place), f.between,
                     lambda c, values: line.put_back(f, f.between, c, values))  # fmt: skip
        line.backward(f, f.between, lambda place, value: store_pair(f, f.y, place, value))


@pytest.mark.parametrize("length", LENGTHS[::4])
def test_there_and_back(length: int) -> None:
    lanes = host().lanes
    code = compiled("test.depthwise_fourier", _build, length=length)
    x, y, between = (_aligned(2 * length * lanes) for _ in range(3))
    x.normal_()
    code.run(x.data_ptr(), y.data_ptr(), between.data_ptr(), 1)
    torch.testing.assert_close(y / length, x, rtol=0, atol=3e-6)


def _aligned(count: int) -> torch.Tensor:
    buffer = torch.full((count + 16,), torch.nan)
    return buffer[-buffer.data_ptr() // 4 % 16 :][:count]


def test_zeros_on_both_sides_may_be_the_same() -> None:
    assert Axis(56, 56, -15, 31, 1, 72).whole
    assert not Axis(56, 56, -15, 31, 1, 64).whole
    assert Axis(56, 26, 0, 31, 1, 60).whole


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["one tile", "channels last", "many tiles, channels last", "uneven padding"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.kernels.cpu.depthwise_fourier.kernel.empty", guarded_results(against))
    for problem in directions(PROBLEMS[name])[:2]:
        if DepthwiseFourier().refusal(problem) is not None:
            continue
        operands = make_operands(problem)
        given = [None if o is None else guarded_operand(o, problem, against) for o in operands]
        (result,) = DepthwiseFourier().run(problem, *given)
        (expected,) = reference(problem, operands, torch.float64)
        torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


def test_relu_is_fused_also_where_a_result_is_not_finite() -> None:
    problem = replace(PROBLEMS["one tile"], epilogue=Epilogue(bias=True, activation="relu"))
    operands = make_operands(problem)
    operands[0][0, 0, 0, 0] = torch.inf
    (result,) = DepthwiseFourier().run(problem, *operands)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-4)
    assert float(result.min()) == 0.0


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_on_any_number_of_threads_and_alone(threads: int) -> None:
    problem, before = PROBLEMS["one tile"], torch.get_num_threads()
    input, *rest = make_operands(problem)
    try:
        torch.set_num_threads(threads)
        (together,) = DepthwiseFourier().run(problem, input, *rest)
        torch.set_num_threads(1)
        for image in range(problem.batch):
            (alone,) = DepthwiseFourier().run(replace(problem, batch=1), input[image : image + 1], *rest)
            assert torch.equal(alone[0], together[image])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu, got float64 on cpu"),
        ({"direction": "weight_grad"}, "computes outputs and gradients of inputs"),
        ({"groups": 1}, "needs one input and one output channel per group, got 1 groups"),
        ({"stride": (2, 1)}, "needs stride 1, got (2, 1)"),
        ({"kernel_size": (7, 7)}, "needs a window of at least 100 places, got (7, 7)"),
        (
            {"kernel_size": (145, 1)},
            "needs windows that lie mostly inside, got (145, 1) and padding ((5, 5), (5, 5))",
        ),
        (
            {"kernel_size": (145, 1), "padding": ((72, 72), (0, 0)), "input_size": (200, 9)},
            "needs a window that a tile holds, got (145, 1)",
        ),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert DepthwiseFourier().refusal(replace(PROBLEMS["one tile"], **change)) == reason
