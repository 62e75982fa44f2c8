"""`cpu.depthwise` against float64 at every vector width, fenced by unreadable pages, whatever the threads."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from checking.guards import guarded, guarded_results
from checking.parity import conv_parity, make_operands, problem_of, reference
from convlens.kernels.cpu.codegen import Module, emit_object, forced, host, neon
from convlens.kernels.cpu.depthwise import Depthwise, rows, spread, weight
from convlens.kernels.cpu.depthwise.geometry import Shape
from convlens.window import ConvProblem, Epilogue

PROBLEMS = {
    "3x3": problem_of(2, 8, (9, 21), 8, 3, padding=1, groups=8),
    "7x7": problem_of(2, 8, (15, 56), 8, 7, padding=3, groups=8),
    "31x31": problem_of(2, 3, (33, 40), 3, 31, padding=15, groups=3),
    "31x19 without padding": problem_of(1, 2, (40, 40), 2, (31, 19), groups=2),
    "uneven padding": problem_of(3, 6, (13, 37), 6, (5, 4), padding=((2, 1), (0, 3)), groups=6),
    "stride 2": problem_of(2, 8, (14, 29), 8, 3, stride=2, padding=1, groups=8),
    "stride 2 exactly": problem_of(2, 8, (13, 33), 8, 3, stride=2, groups=8),
    "strides 3 and 4": problem_of(2, 8, (28, 28), 8, 5, stride=(3, 4), padding=2, groups=8),
    "stride beyond the kernel": problem_of(2, 4, (7, 9), 4, 2, stride=3, padding=3, groups=4),
    "dilated": problem_of(2, 8, (28, 47), 8, 3, padding=2, dilation=2, groups=8),
    "dilated and strided": problem_of(2, 8, (28, 47), 8, 3, stride=(1, 2), padding=1, dilation=(2, 3), groups=8),
    "multiplier": problem_of(2, 4, (11, 17), 12, 3, padding=1, groups=4),
    "multiplier and stride": problem_of(2, 4, (11, 17), 8, 3, stride=2, padding=1, groups=4),
    "one pixel": problem_of(2, 4, (1, 1), 4, 3, padding=1, groups=4),
    "padding beyond the kernel": problem_of(2, 4, (3, 5), 4, 1, padding=2, groups=4),
    "signal": problem_of(3, 5, (202,), 5, 3, groups=5),
    "long signal": problem_of(3, 20, (512,), 20, 31, padding=15, groups=20),
    "signal, wide kernel": problem_of(2, 5, (100,), 5, 40, padding=3, groups=5),
    "signal, dilated": problem_of(2, 5, (100,), 5, 11, padding=3, dilation=4, groups=5),
    "volume": problem_of(1, 9, (5, 9, 12), 9, 3, padding=1, groups=9),
    "volume, strided": problem_of(
        2, 20, (6, 9, 12), 20, (3, 2, 5), stride=(2, 1, 2), padding=(1, 0, 2), groups=20
    ),
    "bands of rows": problem_of(1, 2, (200, 900), 2, 3, padding=1, groups=2),
    "bands of rows, strided": problem_of(1, 2, (300, 1000), 2, 3, stride=2, padding=1, groups=2),
    "relu": problem_of(2, 4, (20, 20), 4, 3, padding=1, groups=4, epilogue=Epilogue(bias=True, activation="relu")),
    "no bias": problem_of(2, 4, (20, 20), 4, 3, padding=1, groups=4, epilogue=Epilogue()),
}
NARROW = ("3x3", "uneven padding", "strides 3 and 4", "dilated and strided", "long signal", "volume, strided")


@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name: str) -> None:
    conv_parity(Depthwise(), [PROBLEMS[name]])


@pytest.mark.parametrize("lanes", [8, 4])
@pytest.mark.parametrize("name", NARROW)
def test_values_with_narrower_vectors(name: str, lanes: int) -> None:
    if lanes >= host().lanes or "86" not in host().triple and "amd64" not in host().triple:
        pytest.skip(f"this processor has no vectors of {lanes} besides its own")
    with forced(host().narrowed(lanes)):
        conv_parity(Depthwise(), [PROBLEMS[name]], special_values=False)


@pytest.mark.parametrize("build", [partial(rows.build, streamed=True), spread.build, weight.build])
def test_compiles_for_arm(build: object) -> None:
    module = Module("arm", neon())
    build(module, shape=Shape.forward(PROBLEMS["stride 2"]))  # type: ignore[operator]
    assert emit_object(module).startswith(b"\x7fELF")


def _directions(forward: ConvProblem) -> list[ConvProblem]:
    return [
        forward,
        replace(forward, direction="input_grad", epilogue=Epilogue()),
        replace(forward, direction="weight_grad"),
    ]


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize(
    "name",
    ["uneven padding", "stride 2", "stride 2 exactly", "strides 3 and 4", "signal", "long signal", "volume"],
)
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.kernels.cpu.depthwise.kernel.empty", guarded_results(against))
    for problem in _directions(PROBLEMS[name]):
        operands = make_operands(problem)
        given = [None if o is None else guarded(o, against=against) for o in operands]
        for result, expected in zip(
            Depthwise().run(problem, *given), reference(problem, operands, torch.float64), strict=True
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["3x3", "signal", "volume"])
def test_same_bits_whatever_the_threads(name: str) -> None:
    before = torch.get_num_threads()
    try:
        for problem in _directions(PROBLEMS[name]):
            operands = make_operands(problem)
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(Depthwise().run(problem, *operands))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_same_bits_alone_and_in_a_batch() -> None:
    problem = PROBLEMS["7x7"]
    input, *rest = make_operands(problem)
    (together,) = Depthwise().run(problem, input, *rest)
    for image in range(problem.batch):
        (alone,) = Depthwise().run(replace(problem, batch=1), input[image : image + 1], *rest)
        assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32, got float64"),
        ({"groups": 4}, "needs one input channel per group, got 2"),
        ({"stride": (1, 9)}, "needs a stride of at most 8 along rows, got 9"),
        (
            {"stride": (1, 2), "kernel_size": (1, 65), "padding": ((0, 0), (40, 40))},
            "needs a kernel at most 64 wide at a stride, got 65",
        ),
        ({"epilogue": Epilogue(pool=2)}, "needs no pooling"),
        (
            {"epilogue": Epilogue(activation="tanh")},
            "needs one of the activations none, relu, relu6, hardswish, hardsigmoid, sigmoid, silu, got tanh",
        ),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert Depthwise().refusal(replace(PROBLEMS["3x3"], **change)) == reason


@pytest.mark.parametrize("name", PROBLEMS)
def test_workspace_is_bounded(name: str) -> None:
    shape, target = Shape.forward(PROBLEMS[name]), host()
    threads = torch.get_num_threads()
    layout = weight.layout_for(replace(shape, bias=True), target)
    needed = 4 * max(
        threads * rows.strip_for(shape, target).size,
        threads * spread.strip_for(shape, target.l2_bytes).size,
        threads * layout.private + layout.partial,
    )
    assert needed <= Depthwise().workspace_bytes(PROBLEMS[name])


@pytest.mark.parametrize("name", ["3x3", "stride 2", "multiplier", "one pixel", "long signal", "volume"])
def test_streamed_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large results go through, on small ones: with fences, at every alignment of a thread's first plane."""
    monkeypatch.setattr("convlens.kernels.cpu.depthwise.kernel._STREAMED_FROM", 0)
    results = []

    def lined_up(shape: tuple[int, ...], channels_last: bool = False) -> torch.Tensor:
        """NaN, at a multiple of 64 bytes, with seven numbers behind it that must stay."""
        count = math.prod(shape)
        whole = torch.full((count + 32,), torch.nan)
        start = -whole.data_ptr() // 4 % 16
        whole[start + count :] = 7.0
        results.append(whole[start + count :])
        return whole[start : start + count].view(shape)

    monkeypatch.setattr("convlens.kernels.cpu.depthwise.kernel.empty", lined_up)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            conv_parity(Depthwise(), [PROBLEMS[name]])
    finally:
        torch.set_num_threads(before)
    assert all(bool((fence == 7.0).all()) for fence in results)


CHANNELS_LAST = {
    "3x3": problem_of(2, 24, (9, 21), 24, 3, padding=1, groups=24, layout="channels_last"),
    "7x7": problem_of(1, 16, (15, 30), 16, 7, padding=3, groups=16, layout="channels_last"),
    "uneven padding": problem_of(
        3, 6, (13, 37), 6, (5, 4), padding=((2, 1), (0, 3)), groups=6, layout="channels_last"
    ),
    "stride 2": problem_of(2, 20, (14, 29), 20, 3, stride=2, padding=1, groups=20, layout="channels_last"),
    "strides 3 and 4": problem_of(
        2, 8, (28, 28), 8, 5, stride=(3, 4), padding=2, groups=8, layout="channels_last"
    ),
    "stride beyond the kernel": problem_of(
        2, 4, (7, 9), 4, 2, stride=3, padding=3, groups=4, layout="channels_last"
    ),
    "dilated": problem_of(2, 8, (18, 27), 8, 3, padding=2, dilation=(2, 3), groups=8, layout="channels_last"),
    "one pixel": problem_of(2, 4, (1, 1), 4, 3, padding=1, groups=4, layout="channels_last"),
    "padding beyond the kernel": problem_of(2, 4, (3, 5), 4, 1, padding=2, groups=4, layout="channels_last"),
    "volume, strided": problem_of(
        2, 20, (6, 9, 12), 20, (3, 2, 5), stride=(2, 1, 2), padding=(1, 0, 2), groups=20, layout="channels_last"
    ),
    "relu": problem_of(
        2, 4, (9, 9), 4, 3, groups=4, epilogue=Epilogue(bias=True, activation="relu"), layout="channels_last"
    ),
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_values_in_channels_last(name: str) -> None:
    conv_parity(Depthwise(), [CHANNELS_LAST[name]])


@pytest.mark.parametrize("lanes", [8, 4])
@pytest.mark.parametrize("name", ["3x3", "stride 2"])
def test_values_in_channels_last_with_narrower_vectors(name: str, lanes: int) -> None:
    if lanes >= host().lanes or "86" not in host().triple and "amd64" not in host().triple:
        pytest.skip(f"this processor has no vectors of {lanes} besides its own")
    with forced(host().narrowed(lanes)):
        conv_parity(Depthwise(), [CHANNELS_LAST[name]], special_values=False)


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["3x3", "stride 2", "strides 3 and 4"])
def test_stays_inside_its_arrays_in_channels_last(
    name: str, against: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fenced(value: torch.Tensor | tuple[int, ...], channels_last: bool = False) -> torch.Tensor:
        if isinstance(value, tuple):
            batch, channels, *spatial = value
            return guarded((batch, *spatial, channels), against=against).movedim(-1, 1)
        return guarded(value.movedim(1, -1).contiguous(), against=against).movedim(-1, 1)

    monkeypatch.setattr("convlens.kernels.cpu.depthwise.kernel.empty", fenced)
    for problem in _directions(CHANNELS_LAST[name]):
        operands = make_operands(problem)
        activations = 2 if problem.direction == "weight_grad" else 1
        given = [o if o is None or i >= activations else fenced(o) for i, o in enumerate(operands)]
        for result, expected in zip(
            Depthwise().run(problem, *given), reference(problem, operands, torch.float64), strict=True
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_same_bits_whatever_the_threads_in_channels_last() -> None:
    before = torch.get_num_threads()
    try:
        problem = replace(CHANNELS_LAST["3x3"], direction="weight_grad", epilogue=Epilogue())
        operands = make_operands(problem)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(Depthwise().run(problem, *operands)[0])
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(before)


def test_refusals_in_channels_last() -> None:
    problem = CHANNELS_LAST["3x3"]
    kernel = Depthwise()
    reason = "needs one output per channel in channels_last, got 2"
    assert kernel.refusal(replace(problem, out_channels=48)) == reason
    reason = "needs a kernel at most 15 wide in channels_last, got 17"
    assert kernel.refusal(replace(problem, kernel_size=(3, 17))) == reason
