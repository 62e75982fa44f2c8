"""`cpu.amx_few`: few input channels on tiles, against float64, fenced by unreadable pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checking.guards import guarded, guarded_operand, guarded_results
from checking.parity import check_values, conv_parity, make_operands, problem_of, reference
from convlens.kernels.cpu.amx_few import AmxFew, AmxFewExact
from convlens.kernels.cpu.amx_few import kernel as module
from convlens.kernels.cpu.amx_few.geometry import pairs_of
from convlens.kernels.cpu.codegen import host
from convlens.window import Epilogue

pytestmark = pytest.mark.skipif(not host().has_amx, reason="this processor or kernel has no AMX tiles")

PROBLEMS = {
    "3x3": problem_of(2, 3, (20, 64), 32, 3, padding=1),
    "7x7, stride 2": problem_of(2, 3, (40, 80), 37, 7, stride=2, padding=3),
    "one channel": problem_of(2, 1, (21, 90), 20, (5, 20), stride=2),
    "stride 3": problem_of(2, 2, (31, 120), 64, (4, 7), stride=(1, 3), padding=((2, 0), (1, 4))),
    "signal": problem_of(2, 3, (100,), 70, 9, padding=3),
    "one tile wide": problem_of(1, 3, (39, 17), 33, (5, 2), padding=((1, 2), (0, 0))),
    "no bias": problem_of(3, 4, (11, 70), 64, 5, epilogue=Epilogue()),
    "window beyond the rows": problem_of(1, 3, (3, 40), 32, (7, 5), padding=(3, 2), epilogue=Epilogue()),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_values(name: str) -> None:
    conv_parity(AmxFewExact(), [PROBLEMS[name]])


def test_high_values() -> None:
    measured = conv_parity(AmxFew(), [PROBLEMS["7x7, stride 2"], PROBLEMS["one channel"], PROBLEMS["no bias"]])
    assert max(m.ratio for m in measured) > 2, "no worse than exact: the classes would be the wrong way round"


def test_relu_is_fused() -> None:
    problem = replace(PROBLEMS["3x3"], epilogue=Epilogue(bias=True, activation="relu"))
    check_values(AmxFewExact(), problem, make_operands(problem))


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["3x3", "7x7, stride 2", "one channel", "one tile wide", "no bias"])
def test_nothing_outside_is_touched(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "empty", guarded_results(against))
    monkeypatch.setattr(
        "convlens.kernels.cpu.amx.workspace.reused",
        lambda _, count: guarded((count,), torch.bfloat16, against=against, fill=0.0),
    )
    problem = PROBLEMS[name]
    operands = make_operands(problem)
    given = [None if o is None else guarded_operand(o, problem, against) for o in operands]
    (result,) = AmxFewExact().run(problem, *given)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e30, 3.4e38])
def test_values_too_large_for_sums_of_parts_come_out_as_torch_has_them(scale: float) -> None:
    problem = PROBLEMS["no bias"]
    input, weight, _ = make_operands(problem)
    input = torch.where(input > 0, scale, input)
    (result,) = AmxFewExact().run(problem, input, weight * 1e-9, None)
    (expected,) = torch.ops.aten.convolution(
        input.double(), (weight * 1e-9).double(), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    )[None]
    torch.testing.assert_close(result.double() / scale, expected / scale, rtol=1e-4, atol=1e-12)


def test_weights_that_are_not_finite_are_left_to_the_vendor() -> None:
    problem = replace(PROBLEMS["no bias"], prepared=True)
    _, weight, _ = make_operands(problem)
    weight[3, 1, 2, 2] = torch.inf
    assert AmxFewExact().prepare(problem, weight, None) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_on_any_number_of_threads(threads: int) -> None:
    problem, before = PROBLEMS["7x7, stride 2"], torch.get_num_threads()
    operands = make_operands(problem)
    try:
        torch.set_num_threads(1)
        alone = AmxFew().run(problem, *operands)
        torch.set_num_threads(threads)
        assert torch.equal(alone[0], AmxFew().run(problem, *operands)[0])
    finally:
        torch.set_num_threads(before)


def test_pairs_hold_every_tap_once() -> None:
    for channels, width in ((1, 1), (1, 20), (3, 7), (4, 3)):
        taps = [tap for pair in pairs_of(channels, width) for tap in pair if tap is not None]
        assert sorted(taps) == [(c, b) for c in range(channels) for b in range(width)]
        assert len(pairs_of(channels, width)) == -(-channels * width // 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu"),
        ({"direction": "input_grad"}, "computes outputs only"),
        ({"layout": "channels_last"}, "needs contiguous layout"),
        ({"dilation": (2, 1)}, "needs neighbouring taps"),
        ({"in_channels": 60}, "needs few input channels and taps"),
        ({"input_size": (20, 20)}, "needs rows of 16 outputs, or of 32 and more, got 20"),
        ({"kernel_size": (2, 2), "padding": ((0, 0), (0, 0))}, "needs sums of at least 24 terms"),
        ({"epilogue": Epilogue(activation="tanh")}, "fuses bias and relu only"),
    ],
)
def test_refusals(change: dict, reason: str) -> None:
    assert reason in (AmxFewExact().refusal(replace(PROBLEMS["3x3"], **change)) or "")
