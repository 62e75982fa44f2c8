"""Convolution on AMX tiles: parity in all directions, error classes, guard pages, inf and NaN."""

import pytest
import torch

from checking.guards import guarded
from checking.parity import check_values, conv_parity, make_operands, problem_of, reference
from convlens.kernels.cpu.amx import kernel as amx
from convlens.kernels.cpu.codegen import host
from convlens.window import Epilogue

pytestmark = pytest.mark.skipif(not host().has_amx, reason="this processor or kernel has no AMX tiles")

DIRECTIONS = ("forward", "input_grad", "weight_grad")

# each brings one thing: odd sizes and channel tails, channels in blocks, strides, single taps, groups, 1-D, 3-D,
# uneven padding, dilation, rows shorter than a vector, one pixel, a window larger than its input
PROBLEMS = {
    "plain": problem_of(2, 20, (9, 21), 36, 3, padding=1),
    "runs_of_pixels": problem_of(1, 100, (9, 20), 100, 5, padding=2),
    "channel_blocks": problem_of(2, 160, (7, 7), 48, 3, padding=1),
    "stride": problem_of(2, 32, (15, 17), 40, 3, stride=2, padding=1),
    "uneven_stride": problem_of(1, 16, (12, 17), 16, (5, 4), stride=(1, 2), padding=((2, 1), (0, 3))),
    "pointwise": problem_of(2, 48, (9, 9), 64, 1),
    "pointwise_stride": problem_of(2, 48, (9, 9), 64, 1, stride=2),
    "groups": problem_of(2, 64, (12, 12), 64, 3, padding=1, groups=4),
    "signal": problem_of(1, 70, (300,), 33, 3, padding=1),
    "long_signal": problem_of(1, 16, (5000,), 33, 2),
    "volume": problem_of(1, 16, (5, 9, 10), 24, 3, padding=1, stride=(1, 2, 1)),
    "dilation": problem_of(1, 24, (21, 19), 16, 3, padding=6, dilation=6),
    "small_image": problem_of(3, 32, (4, 3), 17, 3, padding=1),
    "many_small_images": problem_of(9, 32, (7, 7), 480, 3, padding=1),
    "one_pixel": problem_of(40, 40, (1, 1), 50, 3, padding=1),
    "few_channels": problem_of(1, 3, (31, 27), 20, 11, padding=2, stride=4),
    "one_channel": problem_of(2, 1, (31, 47), 20, (5, 20), stride=2, padding=((0, 0), (0, 3))),
    "strided_past_window": problem_of(2, 24, (50,), 16, 2, stride=3),
}  # fmt: skip


def _in_both_layouts(*names):
    """torch has no channels_last for signals."""
    layouts = ("contiguous", "channels_last")
    return [(n, layout) for n in names for layout in layouts if PROBLEMS[n].ndim > 1 or layout == "contiguous"]


@pytest.mark.parametrize(("name", "layout"), _in_both_layouts(*PROBLEMS))
def test_exact_kernel(name, layout):
    problem = _with(PROBLEMS[name], layout=layout)
    conv_parity(amx.AmxExact(), [problem])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_high_kernel(layout):
    measured = conv_parity(
        amx.Amx(), [_with(PROBLEMS[n], layout=layout) for n in ("runs_of_pixels", "channel_blocks")]
    )
    assert max(m.ratio for m in measured) > 2, "no worse than exact: the classes would be the wrong way round"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_relu_and_bias_are_fused(layout):
    epilogue = Epilogue(bias=True, activation="relu")
    problem = problem_of(2, 33, (9, 9), 20, 3, padding=1, layout=layout, epilogue=epilogue)
    check_values(amx.AmxExact(), problem, make_operands(problem))


@pytest.mark.parametrize("against", ["end", "start"])
@pytest.mark.parametrize(
    ("name", "layout"), _in_both_layouts("plain", "runs_of_pixels", "stride", "signal", "groups")
)
def test_nothing_outside_is_touched(monkeypatch, name, layout, against):
    for direction in DIRECTIONS:
        problem = _with(PROBLEMS[name], layout=layout).towards(direction)

        def fenced(value, activation, layout=layout):
            if layout == "channels_last" and activation:
                return guarded(value.movedim(1, -1).contiguous(), against=against).movedim(-1, 1)
            return guarded(value, against=against)

        operands = make_operands(problem)
        shaped = [
            None if o is None else fenced(o, o.shape in (problem.input_shape, problem.output_shape))
            for o in operands
        ]
        empty = amx._empty
        monkeypatch.setattr(amx, "_empty", lambda shape, p, empty=empty: fenced(empty(shape, p), True))
        results = amx.AmxExact().run(problem, *shaped)
        monkeypatch.undo()
        for result, expected in zip(results, reference(problem, operands, torch.float64), strict=True):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_one_object_serves_many_batches():
    few, many = (problem_of(n, 32, (10, 10), 32, 3, padding=1) for n in (1, 9))
    conv_parity(amx.AmxExact(), [few, many], special_values=False)


def test_huge_values_that_bfloat16_rounds_to_inf_stay_finite():
    problem = problem_of(1, 16, (6, 6), 16, 3, epilogue=Epilogue())
    operands = make_operands(problem)
    operands[0] = torch.full_like(operands[0], 3.4e38)
    operands[1] = operands[1] * 1e-10
    (result,) = amx.AmxExact().run(problem, *operands)
    (expected,) = reference(problem, operands, torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e24)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (problem_of(1, 16, (8, 8), 16, 3, dtype="float64"), "needs float32"),
        (problem_of(1, 4, (8, 8), 16, 9, groups=2), "at least 3 channels"),
        (problem_of(1, 8, (8, 8), 16, 1), "terms"),
        (problem_of(1, 64, (8, 8), 16, 3, epilogue=Epilogue(pool=2)), "fuses bias and ReLU only"),
    ],
)
def test_refusals_are_data(problem, reason):
    assert reason in amx.Amx().refusal(problem)


def _with(problem, **changes):
    from dataclasses import replace

    return replace(problem, **changes)
