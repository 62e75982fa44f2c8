"""`cpu.pool` has torch's bits at every vector width, stays inside its arrays, and enters through the ops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from checking.guards import guarded
from checking.parity import poisoned
from convlens import ops
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.pooling import Pool
from convlens.planner import from_key, to_key
from convlens.window import PoolProblem, Window

WIDTHS = (16, 8, 4)
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
MAX = {
    1: torch.max_pool1d_with_indices,
    2: torch._C._nn.max_pool2d_with_indices,
    3: torch._C._nn.max_pool3d_with_indices,
}
AVG: dict[int, Any] = {1: torch.avg_pool1d, 2: torch._C._nn.avg_pool2d, 3: torch._C._nn.avg_pool3d}


def problem_of(
    kind: str, batch: int, channels: int, size: tuple[int, ...], window: Any, stride: Any, padding: Any = 0,
    *, dilation: Any = 1, ceil: bool = False, layout: str = "contiguous", include_pad: bool = True,
    divisor: int = 0,
) -> PoolProblem:  # fmt: skip
    every = [v if isinstance(v, tuple) else (v,) * len(size) for v in (window, stride, padding, dilation)]
    out = tuple(Window(k, s, d, p, p, ceil).output_size(n) for n, k, s, p, d in zip(size, *every, strict=True))
    pairs = tuple((p, p) for p in every[2])
    return PoolProblem(
        "forward", kind, batch, channels, size, every[0], every[1], pairs, every[3], out, include_pad, divisor,
        layout=layout,
    )  # fmt: skip


PROBLEMS = {
    "max 3/2": problem_of("max", 2, 5, (9, 11), 3, 2, 1),
    "max 3/2 ceil last": problem_of("max", 2, 19, (10, 11), 3, 2, 1, ceil=True, layout="channels_last"),
    "max 2/2": problem_of("max", 1, 19, (8, 20), 2, 2),
    "max 1-D": problem_of("max", 3, 7, (70,), 3, 2, 1),
    "max 3-D": problem_of("max", 1, 17, (5, 6, 7), (2, 3, 2), (2, 2, 1), (1, 1, 0), layout="channels_last"),
    "max large": problem_of("max", 1, 4, (20, 37), 7, 1, 3),
    "max dilated": problem_of("max", 2, 6, (14, 14), (2, 3), (1, 2), 0, dilation=(3, 2)),
    "max gaps": problem_of("max", 2, 3, (11, 13), 2, 3, layout="channels_last"),
    "avg 3/2": problem_of("avg", 2, 5, (9, 11), 3, 2, 1),
    "avg inside": problem_of("avg", 2, 18, (10, 9), 3, 2, 1, ceil=True, layout="channels_last", include_pad=False),
    "avg 1-D": problem_of("avg", 3, 7, (33,), 4, 3, 2, include_pad=False),
    "avg 3-D": problem_of("avg", 1, 17, (5, 6, 7), (2, 3, 2), (2, 2, 1), (1, 1, 0), divisor=5),
    "avg whole": problem_of("avg", 3, 6, (7, 7), 7, 7),
}


def operand(problem: PoolProblem, special: bool = True) -> torch.Tensor:
    """Values with many ties, and NaN, infinities and zeros of both signs."""
    shape = (problem.batch, problem.channels, *problem.input_size)
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2).round() / 2
    if special:
        for step, number in ((5, -math.inf), (7, -0.0), (13, math.inf), (17, math.nan)):
            value.view(-1)[::step] = number
    return in_layout(value, problem)


def in_layout(value: torch.Tensor, problem: PoolProblem) -> torch.Tensor:
    last = problem.layout == "channels_last"
    return value.contiguous(memory_format=LAST[len(problem.input_size)]) if last else value.contiguous()


def by_torch(problem: PoolProblem, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    ndim, before = len(problem.input_size), [p for p, _ in problem.padding]
    ceil = any(
        Window(k, s, d, *p).output_size(n) != o
        for n, k, s, d, p, o in zip(
            problem.input_size, problem.kernel_size, problem.stride, problem.dilation, problem.padding,
            problem.output_size, strict=True,
        )
    )  # fmt: skip
    if problem.kind == "max":
        return MAX[ndim](input, problem.kernel_size, problem.stride, before, problem.dilation, ceil)
    more = () if ndim == 1 else (problem.divisor or None,)
    kept = (problem.kernel_size, problem.stride, before, ceil, problem.count_include_pad)
    return AVG[ndim](input, *kept, *more), None


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, but for the payload of a NaN."""
    ordered = ~b.isnan()
    return bool((a.isnan() == b.isnan()).all()) and torch.equal(
        a[ordered].view(torch.int32), b[ordered].view(torch.int32)
    )


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_bits_places_and_gradients_are_torchs(name: str, lanes: int) -> None:
    if lanes > host().lanes or (lanes < host().lanes and "x86" not in host().triple):
        pytest.skip(f"this processor has no vectors of {lanes}")
    problem, kernel = PROBLEMS[name], Pool()
    assert kernel.refusal(problem) is None
    largest = problem.kind == "max"
    input = operand(problem)
    watched = input.clone().requires_grad_()
    expected, places = by_torch(problem, watched)
    with forced(host() if lanes == host().lanes else host().narrowed(lanes)), poisoned():
        values, choice, where = kernel.forward(problem, input, keep=largest, positions=largest)
        alone, _, _ = kernel.forward(problem, input)
        grad = in_layout(torch.randn(expected.shape), problem)
        grad_input = kernel.backward(problem, grad, choice)
    assert same(values, expected) and same(alone, expected)
    assert values.stride() == expected.stride()
    assert where is None or (torch.equal(where, places) and where.stride() == places.stride())
    (expected_grad,) = torch.autograd.grad(expected, watched, grad)
    assert same(grad_input, expected_grad)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_give_the_same_bits(threads: int) -> None:
    problem = problem_of("max", 3, 37, (30, 30), 3, 2, 1)
    input = operand(problem)
    torch.set_num_threads(threads)
    values, choice, _ = Pool().forward(problem, input, keep=True)
    assert same(values, by_torch(problem, input)[0])
    grad = torch.ones_like(values)
    torch.set_num_threads(1)
    assert same(Pool().backward(problem, grad, choice), Pool().backward(problem, grad, choice))


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["max 3/2", "max 3/2 ceil last", "max 3-D", "avg 3/2", "avg inside", "max gaps"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fenced(
        shape: tuple[int, ...], channels_last: bool = False, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        fill = 0 if dtype is not torch.float32 else math.nan
        if not channels_last:
            return guarded(tuple(shape), dtype, against=against, fill=fill)
        batch, channels, *spatial = shape
        return guarded((batch, *spatial, channels), dtype, against=against, fill=fill).movedim(-1, 1)

    def fence(value: torch.Tensor) -> torch.Tensor:
        if problem.layout == "channels_last":
            return guarded(value.movedim(1, -1).contiguous(), against=against).movedim(-1, 1)
        return guarded(value, against=against)

    monkeypatch.setattr("convlens.kernels.cpu.pooling.kernel.empty", fenced)
    problem, largest = PROBLEMS[name], PROBLEMS[name].kind == "max"
    input = operand(problem)
    values, choice, _ = Pool().forward(problem, fence(input), keep=largest, positions=largest)
    assert same(values, by_torch(problem, input)[0])
    assert not Pool().backward(problem, fence(torch.ones_like(values)), choice).isnan().any()


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("last", [False, True])
def test_the_ops_use_it(kind: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.ops.pool_compiled.fastest_block", lambda problem, ways: Pool.name)
    called = []
    plain = Pool.forward
    monkeypatch.setattr(Pool, "forward", lambda *a, **k: called.append(1) or plain(*a, **k))
    input = torch.randn(2, 20, 17, 18)
    input = input.contiguous(memory_format=torch.channels_last) if last else input
    pool, direct = getattr(ops, f"{kind}_pool2d"), getattr(torch.nn.functional, f"{kind}_pool2d")
    ours, theirs = input.clone().requires_grad_(), input.clone().requires_grad_()
    results = [f(x, 3, 2, 1) for f, x in ((pool, ours), (direct, theirs))]
    assert called and same(*results) and results[0].stride() == results[1].stride()
    # and derivatives of derivatives
    both = list(zip(results, (ours, theirs), strict=True))
    firsts = [torch.autograd.grad((y**2).sum(), x, create_graph=True)[0] for y, x in both]
    torch.testing.assert_close(*firsts)
    seconds = [torch.autograd.grad((g**2).sum(), x)[0] for g, (_, x) in zip(firsts, both, strict=True)]
    torch.testing.assert_close(*seconds)
    if kind == "max":
        found = [f(input, [3, 2], return_indices=True) for f in (ops.max_pool2d, torch.nn.functional.max_pool2d)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_plans_of_pools_are_stored_and_read_back() -> None:
    for problem in PROBLEMS.values():
        assert from_key(to_key(problem)) == problem


def test_a_view_with_other_signs_is_left_to_torch() -> None:
    input = torch._neg_view(torch.randn(2, 20, 17, 18))
    assert torch.equal(ops.max_pool2d(input, 3, 2), torch.nn.functional.max_pool2d(input, 3, 2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "needs float32 on the cpu, got float64 on cpu"),
        ({"kernel_size": (12, 12)}, "needs windows of at most 128 places, got 144"),
        ({"kind": "avg", "dilation": (2, 1)}, "averages without dilation, got (2, 1)"),
        ({"padding": ((3, 3), (1, 1))}, "needs windows that each see a place of the input"),
    ],
)
def test_refusals(change: dict[str, Any], reason: str) -> None:
    assert Pool().refusal(replace(PROBLEMS["max 3/2"], **change)) == reason
