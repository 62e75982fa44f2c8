"""Kernels bound to their weights give what they give unbound, with activation and residual fused in."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from convlens.kernels import all_kernels
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem, Epilogue

_ACTIVATIONS = {
    "none": lambda x: x, "relu": torch.relu, "relu6": torch.nn.functional.relu6,
    "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid,
    "hardswish": torch.nn.functional.hardswish,
    "hardsigmoid": torch.nn.functional.hardsigmoid, "gelu": torch.nn.functional.gelu,
}  # fmt: skip


def problem(channels, size, outs, window, stride=1, padding=None, groups=1, batch=2):
    axes = len(size)
    pad = window // 2 if padding is None else padding
    return ConvProblem(
        "forward", batch, channels, size, outs, (window,) * axes, (stride,) * axes, ((pad, pad),) * axes,
        (1,) * axes, groups, prepared=True,
    )  # fmt: skip


PROBLEMS = {
    "dense": problem(20, (13, 11), 24, 3),
    "pointwise": problem(40, (9, 7), 37, 1),
    "strided": problem(32, (15, 14), 40, 3, stride=2),
    "first": problem(3, (19, 23), 18, 3),
    "wide first": problem(3, (19, 64), 40, 7, stride=2),
    "depthwise": problem(24, (10, 9), 24, 3, groups=24),
    "signal": problem(16, (50,), 20, 5),
    "grouped": problem(32, (8, 8), 32, 3, groups=4),
    "volume": problem(16, (5, 6, 7), 16, 3),
}
KERNELS = (
    "cpu.amx",
    "cpu.amx_exact",
    "cpu.amx_few",
    "cpu.amx_few_exact",
    "cpu.winograd",
    "cpu.winograd_exact",
    "cpu.direct",
    "cpu.direct_few",
    "cpu.depthwise",
    "vendor",
)


# every problem with the usual activations, the rest where they are written differently
CASES = [
    *itertools.product(PROBLEMS, ("none", "relu")),
    *itertools.product(("pointwise", "first", "depthwise"), ("relu6", "hardswish", "silu")),
    *itertools.product(("strided",), ("sigmoid", "hardsigmoid", "gelu")),
]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "activation"), CASES)
def test_prepared_kernels_agree_with_float64(name, layout, activation, residual):
    if layout == "channels_last" and PROBLEMS[name].ndim == 1:
        pytest.skip("one axis has one layout")
    asked = replace(PROBLEMS[name], layout=layout, epilogue=Epilogue(True, activation, 0, residual))
    input, weight, bias = operands_for(asked)
    held, _ = operands_for(asked.towards("input_grad"))
    plain = replace(asked, epilogue=Epilogue(True), dtype="float64")
    vendor = next(kernel for kernel in all_kernels() if kernel.name == "vendor")
    (expected,) = vendor.run(plain, input.double(), weight.double(), bias.double())
    expected = _ACTIVATIONS[activation](expected + held.double() if residual else expected)
    tried = 0
    for kernel in all_kernels():
        if kernel.name not in KERNELS or kernel.refusal(asked) is not None:
            continue
        prepared = kernel.prepare(asked, weight, bias)
        if prepared is None:
            continue
        for _ in range(2):  # what is held between calls must not show
            out = held.clone(memory_format=torch.preserve_format)
            if prepared.writes and not residual:
                out.fill_(math.nan)
            got = prepared.run(input, out if prepared.writes or residual else None)
            assert got.shape == expected.shape, kernel.name
            torch.testing.assert_close(got.double(), expected, rtol=3e-4, atol=3e-4, msg=kernel.name)
        if prepared.writes or residual:
            assert got.data_ptr() == out.data_ptr(), kernel.name
        if prepared.spoilt is not None:
            assert not prepared.spoilt.any(), kernel.name
            spoiling = input.clone()
            spoiling[(0,) * input.dim()] = math.nan
            prepared.run(spoiling, held.clone())
            assert prepared.spoilt.any(), kernel.name
        tried += 1
    assert tried or activation not in ("none", "relu")
