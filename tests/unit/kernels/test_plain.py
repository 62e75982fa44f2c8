"""The plain algorithms against torch in float64: values, memory, budgets, bits alone and in a batch."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from convlens.errors import BudgetError
from convlens.kernels import limits
from convlens.kernels.plain import plain_kernels
from convlens.kernels.plain.fourier import tiling_of
from convlens.kernels.plain.toeplitz import pattern_of, transposed_pattern_of
from convlens.kernels.vendor import Vendor
from convlens.planner import plan
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem, Epilogue

KERNELS = {kernel.algorithm: kernel for kernel in plain_kernels()}
DIRECTIONS = ("forward", "input_grad", "weight_grad")
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def random_problem(seed: int, dtype: str = "float64") -> ConvProblem:
    draw = random.Random(seed)
    while True:
        ndim, groups = draw.choice([1, 2, 3]), draw.choice([1, 1, 2, 3])
        problem = ConvProblem(
            "forward",
            batch=draw.choice([1, 2, 5]),
            in_channels=groups * draw.choice([1, 2, 3]),
            input_size=tuple(draw.randint(1, 9) for _ in range(ndim)),
            out_channels=groups * draw.choice([1, 2]),
            kernel_size=tuple(draw.randint(1, 4) for _ in range(ndim)),
            stride=tuple(draw.randint(1, 3) for _ in range(ndim)),
            padding=tuple((draw.randint(0, 3), draw.randint(0, 3)) for _ in range(ndim)),
            dilation=tuple(draw.randint(1, 2) for _ in range(ndim)),
            groups=groups,
            dtype=dtype,
            layout=draw.choice(["contiguous", "channels_last"]),
            epilogue=Epilogue(bias=draw.random() < 0.5),
        )
        if min(problem.output_size) > 0:
            return problem


def reference(problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """torch's convolution and what its autograd sends back, in double precision."""
    wide = torch.complex128 if problem.dtype.startswith("complex") else torch.float64
    border = [n for pair in reversed(problem.padding) for n in pair]
    conv = CONV[problem.ndim]
    input = torch.zeros(problem.input_shape, dtype=wide, requires_grad=True)
    weight = torch.zeros(problem.weight_shape, dtype=wide, requires_grad=True)
    first, second = (t.to(wide) for t in operands[:2])
    window = problem.stride, 0, problem.dilation, problem.groups
    if problem.direction == "forward":
        bias = None if operands[2] is None else operands[2].to(wide)
        return (conv(F.pad(first, border), second, bias, *window),)
    # torch's gradient conjugates, the transposed matrix does not
    if problem.direction == "input_grad":
        out = conv(F.pad(input, border), second, None, *window)
        return (torch.autograd.grad(out, input, first.conj())[0].conj(),)
    out = conv(F.pad(second, border), weight, None, *window)
    grads = (torch.autograd.grad(out, weight, first.conj())[0].conj(),)
    return (*grads, first.sum([0, *range(2, first.dim())])) if problem.epilogue.bias else grads


def assert_close(kernel, problem, relative):
    operands = operands_for(problem)
    for got, want in zip(kernel.run(problem, *operands), reference(problem, *operands), strict=True):
        assert got.shape == want.shape
        assert got.dtype == getattr(torch, problem.dtype)
        scale = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(got.to(want.dtype), want, rtol=0, atol=relative * max(scale, 1e-3))


@pytest.mark.parametrize("algorithm", [*KERNELS, "vendor"])
@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_torch_to_1e_12(algorithm, seed):
    kernel = KERNELS.get(algorithm, Vendor())
    problem = random_problem(seed, "complex128" if seed % 5 == 4 else "float64")
    for direction in DIRECTIONS:
        assert_close(kernel, problem.towards(direction), 1e-12)


@pytest.mark.parametrize("algorithm", KERNELS)
@pytest.mark.parametrize("dtype, relative", [("float32", 2e-6), ("bfloat16", 1e-2), ("float16", 1e-3)])
def test_narrow_types_sum_in_float32(algorithm, dtype, relative):
    for seed in range(8):
        for direction in DIRECTIONS:
            assert_close(KERNELS[algorithm], random_problem(seed, dtype).towards(direction), relative)


@pytest.mark.parametrize("algorithm", ["definition", "im2col"])
def test_whole_numbers_are_exact(algorithm):
    problem = replace(random_problem(3), dtype="int64", epilogue=Epilogue())
    input = torch.randint(-9, 9, problem.input_shape)
    weight = torch.randint(-9, 9, problem.weight_shape)
    (out,) = KERNELS[algorithm].run(problem, input, weight, None)
    assert torch.equal(out.double(), reference(problem, input, weight, None)[0])


@pytest.mark.parametrize("algorithm", ["toeplitz", "fourier"])
def test_whole_numbers_are_refused_with_the_reason(algorithm):
    assert "floating-point" in KERNELS[algorithm].refusal(replace(random_problem(3), dtype="int32"))


# --- memory ---------------------------------------------------------------------------------------------------

LARGER = [
    ConvProblem("forward", 2, 24, (32, 32), 40, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    ConvProblem("forward", 4, 3, (48, 48), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ConvProblem("forward", 4, 32, (32, 32), 32, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), groups=32),
    ConvProblem("forward", 4, 8, (200,), 16, (31,), (1,), ((0, 5),), (1,), dtype="float64"),
    ConvProblem("forward", 2, 4, (12, 12, 12), 6, (3, 3, 3), (2, 2, 2), ((1, 1),) * 3, (1, 1, 1)),
    ConvProblem("forward", 2, 4, (24, 24), 6, (3, 3), (2, 2), ((1, 1),) * 2, (2, 2), dtype="bfloat16"),
    ConvProblem("forward", 2, 4, (24, 24), 6, (3, 3), (1, 1), ((1, 2),) * 2, (2, 2), dtype="complex64"),
    ConvProblem("forward", 1, 16, (28, 28), 16, (28, 28), (1, 1), ((0, 0),) * 2, (1, 1)),
]


def peak_bytes(call):
    """Most memory held at once while ``call`` runs, as torch's allocator saw it, and the result's part of it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        results = call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, sum(r.numel() * r.element_size() for r in results)


def test_the_peak_is_seen():
    most, result = peak_bytes(lambda: (torch.ones(1000) + torch.ones(1000),))
    assert (most, result) == (12000, 4000)


@pytest.mark.parametrize("algorithm", [*KERNELS, "vendor"])
@pytest.mark.parametrize("problem", LARGER, ids=lambda p: f"{p.ndim}d-{p.dtype}-{p.kernel_size[0]}")
def test_no_kernel_allocates_beyond_its_stated_workspace(algorithm, problem):
    kernel = KERNELS.get(algorithm, Vendor())
    for direction in DIRECTIONS:
        problem = replace(problem, direction=direction, epilogue=Epilogue(bias=True))
        if kernel.refusal(problem) is not None:
            continue
        operands = operands_for(problem)
        tiling_of.cache_clear()
        pattern_of.clear(), transposed_pattern_of.clear()
        most, result = peak_bytes(lambda p=problem, o=operands: kernel.run(p, *o))
        assert most - result <= kernel.workspace_bytes(problem)


@pytest.mark.parametrize("algorithm", ["definition", "toeplitz"])
def test_refuses_above_the_budget_with_the_figure(algorithm):
    problem = LARGER[0]
    budget = limits.matrix_budget()
    try:
        limits.set_matrix_budget(1 << 20)
        needed = KERNELS[algorithm].workspace_bytes(problem) / (1 << 20)
        with pytest.raises(BudgetError, match=rf"needs {needed:,.1f} MiB .* above the budget of 1.0 MiB"):
            plan(problem, algorithm)
        limits.set_matrix_budget(None)
        assert plan(problem, algorithm).kernel == f"plain.{algorithm}"
    finally:
        limits.set_matrix_budget(budget)


# --- what each is for -----------------------------------------------------------------------------------------


def test_row_c2_rows_of_the_matrix_share_weights_and_the_pattern_is_kept():
    problem = ConvProblem("forward", 1, 1, (3, 3), 1, (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1))
    pattern = pattern_of(problem)
    assert pattern.weights.view(4, 4).tolist() == [[0, 1, 2, 3]] * 4
    assert pattern_of(problem) is pattern


def test_row_c4_tiles_save_operations_on_a_large_image():
    small = ConvProblem("forward", 8, 16, (16, 16), 16, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1))
    large = replace(small, input_size=(512, 512))
    fourier = KERNELS["fourier"]
    assert all(tiles > 1 for tiles in tiling_of(large).tiles)
    assert fourier.estimate_flops(large) < 0.8 * fourier.estimate_flops(small) * 32**2
    huge = replace(large, kernel_size=(63, 63), padding=((31, 31), (31, 31)))
    assert fourier.estimate_flops(huge) < huge.flops / 30


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("algorithm", KERNELS)
def test_nan_and_infinity_stay_where_torch_has_them(algorithm, value):
    problem = ConvProblem("forward", 1, 2, (12, 12), 3, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    input, weight, _ = operands_for(problem)
    input[0, 1, 5, 5] = value
    (out,) = KERNELS[algorithm].run(problem, input, weight, None)
    expected = F.conv2d(input, weight, padding=1)
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize("algorithm", KERNELS)
def test_an_image_has_the_same_bits_alone_and_in_a_batch_where_promised(algorithm):
    kernel = KERNELS[algorithm]
    for problem in (LARGER[0], LARGER[1], LARGER[3]):
        problem = replace(problem, batch=5)
        for direction in ("forward", "input_grad"):
            whole = problem.towards(direction)
            if kernel.refusal(whole) is not None:
                continue
            first, second, *rest = operands_for(whole)
            together = kernel.run(whole, first, second, *rest)[0]
            alone = [kernel.run(replace(whole, batch=1), image[None], second, *rest)[0] for image in first]
            same = torch.equal(together, torch.cat(alone))
            assert same or not kernel.batch_invariant
