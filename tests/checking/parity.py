"""One battery for every convolution kernel: values, gradients, poison, empty batch, inf and NaN, error class."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from convlens.kernels.contract import Kernel
from convlens.window import ConvProblem, Epilogue

FACTOR = {"exact": 2.0, "high": 16.0, "fast": 1e4}
_EPS = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-9, "float16": 2.0**-11}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Measured:
    """One direction of one problem: rms error against float64, and its ratio to direct ``dtype`` arithmetic's."""

    problem: ConvProblem
    rms_error: float
    ratio: float


def problem_of(
    batch: int,
    in_channels: int,
    size: int | tuple[int, ...],
    out_channels: int,
    kernel: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int | tuple[int, int], ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    ndim: int = 2,
    layout: str = "contiguous",
    dtype: str = "float32",
    epilogue: Epilogue | None = None,
) -> ConvProblem:
    """A forward problem in few words; single numbers hold for every axis."""
    ndim = len(size) if isinstance(size, tuple) else ndim

    def every(value: object) -> tuple:
        return value if isinstance(value, tuple) else (value,) * ndim

    pads = tuple(p if isinstance(p, tuple) else (p, p) for p in every(padding))
    return ConvProblem(
        "forward", batch, in_channels, every(size), out_channels, every(kernel), every(stride), pads,
        every(dilation), groups, dtype, layout, epilogue=epilogue or Epilogue(bias=True),
    )  # fmt: skip


def conv_parity(kernel: Kernel, problems: Iterable[ConvProblem], *, special_values: bool = True) -> list[Measured]:
    """Check a kernel on forward problems, in each direction that it does not refuse.

    Outputs start as NaN, operands are random with a random upstream, in the problem's layout. Every element
    must lie within the class's factor times eps·√terms of the sum of magnitudes, and the rms error within
    the factor times that of torch's own arithmetic in the same dtype. Then a batch of none and, with
    ``special_values``, an input that holds inf and NaN.

    Returns:
        The measured errors.

    Raises:
        AssertionError: a value is wrong, or the kernel refuses all directions of a problem.
    """
    measured = []
    for forward in problems:
        able = [p for p in directions(forward) if kernel.refusal(p) is None]
        assert able, f"{kernel.name} refuses {forward}: {kernel.refusal(forward)}"
        for problem in able:
            operands = make_operands(problem)
            measured.append(check_values(kernel, problem, operands))
            if special_values:
                _check_special(kernel, problem, operands)
            empty = replace(problem, batch=0)
            if kernel.refusal(empty) is None:
                _check_empty(kernel, empty)
    return measured


def directions(problem: ConvProblem) -> list[ConvProblem]:
    """The problem and its two gradients; the bias goes with the weight."""
    backward = Epilogue(bias=problem.epilogue.bias)
    return [
        problem,
        replace(problem, direction="input_grad", epilogue=Epilogue()),
        replace(problem, direction="weight_grad", epilogue=backward),
    ]


def make_operands(problem: ConvProblem, seed: int = 0) -> list[torch.Tensor | None]:
    """Random operands of a problem's direction, in its layout."""
    random = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, problem.dtype)

    def normal(shape: tuple[int, ...], activation: bool = True) -> torch.Tensor:
        value = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
        return in_layout(value, problem) if activation else value

    weight = normal(problem.weight_shape, activation=False)
    if problem.direction == "forward":
        bias = normal((problem.out_channels,), activation=False) if problem.epilogue.bias else None
        return [normal(problem.input_shape), weight, bias]
    grad = normal(problem.output_shape)
    return [grad, weight] if problem.direction == "input_grad" else [grad, normal(problem.input_shape)]


def in_layout(value: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    """An activation in the memory order that the problem names."""
    if problem.layout == "channels_last" and problem.ndim > 1:
        return value.contiguous(memory_format=_CHANNELS_LAST[problem.ndim])
    return value.contiguous()


def reference(
    problem: ConvProblem, operands: list[torch.Tensor | None], dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """torch's answer, computed in ``dtype``: the oracle in float64, the yardstick in the problem's own."""
    given = [None if o is None else o.to(dtype).contiguous() for o in operands]
    flat = [amount for pad in reversed(problem.padding) for amount in pad]
    common = (problem.stride, [0] * problem.ndim, problem.dilation, False, [0] * problem.ndim, problem.groups)
    if problem.direction == "forward":
        padded = torch.nn.functional.pad(given[0], flat)
        out = torch.ops.aten.convolution(padded, given[1], given[2], *common)
        return (_epilogue(problem, out),)
    source = given[0].new_zeros(problem.input_shape) if problem.direction == "input_grad" else given[1]
    weight = given[1] if problem.direction == "input_grad" else given[0].new_zeros(problem.weight_shape)
    padded = torch.nn.functional.pad(source, flat)
    mask = [problem.direction == "input_grad", problem.direction == "weight_grad", problem.epilogue.bias]
    grads = torch.ops.aten.convolution_backward(given[0], padded, weight, [problem.out_channels], *common, mask)
    if problem.direction == "input_grad":
        inner = grads[0]
        for axis, (size, pad) in enumerate(zip(problem.input_size, problem.padding, strict=True)):
            inner = inner.narrow(2 + axis, pad[0], size)
        return (inner,)
    return (grads[1], grads[2]) if problem.epilogue.bias else (grads[1],)


def _epilogue(problem: ConvProblem, out: torch.Tensor) -> torch.Tensor:
    if problem.epilogue.activation != "none":
        out = getattr(torch, problem.epilogue.activation)(out)
    if problem.epilogue.pool:
        pools = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
        out = pools[problem.ndim](out, problem.epilogue.pool)
    return out


def check_values(kernel: Kernel, problem: ConvProblem, operands: list[torch.Tensor | None]) -> Measured:
    """Compare one direction with float64; see `conv_parity`."""
    with poisoned():
        results = kernel.run(problem, *operands)
    expected = reference(problem, operands, torch.float64)
    yardstick = reference(problem, operands, getattr(torch, problem.dtype))
    plain = replace(problem, epilogue=Epilogue(bias=problem.epilogue.bias))
    magnitudes = reference(plain, [None if o is None else o.abs() for o in operands], torch.float64)
    if problem.epilogue.pool:
        magnitudes = (_epilogue(problem, magnitudes[0]),)
    factor, eps = FACTOR[kernel.precision], _EPS[problem.dtype]
    terms = max(1, problem.macs // max(1, math.prod(expected[0].shape)))
    assert len(results) == len(expected), f"{kernel.name}: {len(results)} results, expected {len(expected)}"
    worst = Measured(problem, 0.0, 0.0)
    for result, exact, direct, size in zip(results, expected, yardstick, magnitudes, strict=True):
        assert result.shape == exact.shape, f"{kernel.name} {problem}: shape {tuple(result.shape)}"
        assert result.dtype == getattr(torch, problem.dtype)
        if result.dim() > 2 and exact.shape == problem.output_shape and problem.direction == "forward":
            assert result.stride() == in_layout(result, problem).stride(), f"{kernel.name}: wrong memory order"
        error = (result.double() - exact).abs()
        bound = factor * eps * math.sqrt(terms) * size.abs() + 1e-30
        assert bool((error <= bound).all()), (
            f"{kernel.name} {problem}: worst is {float((error / bound).nan_to_num(nan=math.inf).max()):.3g} × the "
            f"bound, {int((~(error <= bound)).sum())} of {error.numel()} values outside"
        )
        rms = float(error.square().mean().sqrt())
        own = float((direct.double() - exact).square().mean().sqrt())
        ratio = rms / max(own, eps * float(exact.square().mean().sqrt()) / 4, 1e-300)
        worst = max(worst, Measured(problem, rms, ratio), key=lambda m: m.ratio)
    assert worst.ratio <= factor, (
        f"{kernel.name} {problem}: error {worst.ratio:.1f}× direct, class {kernel.precision}"
    )
    return worst


def _check_special(kernel: Kernel, problem: ConvProblem, operands: list[torch.Tensor | None]) -> None:
    """One inf and one NaN in the activation: non-finite results in exactly torch's places."""
    spoilt = [None if o is None else o.clone() for o in operands]
    place = 1 if problem.direction == "weight_grad" else 0
    flat = spoilt[place].permute(0, *range(2, spoilt[place].dim()), 1)
    flat[tuple(0 for _ in flat.shape)] = math.inf
    flat[tuple(size - 1 for size in flat.shape)] = math.nan
    with poisoned():
        results = kernel.run(problem, *spoilt)
    for result, exact in zip(results, reference(problem, spoilt, torch.float64), strict=True):
        assert torch.equal(result.isnan(), exact.isnan()), (
            f"{kernel.name} {problem}: NaN in other places than torch"
        )
        assert torch.equal(result.isposinf(), exact.isposinf()), f"{kernel.name} {problem}: +inf differs"
        assert torch.equal(result.isneginf(), exact.isneginf()), f"{kernel.name} {problem}: -inf differs"


def _check_empty(kernel: Kernel, problem: ConvProblem) -> None:
    with poisoned():
        results = kernel.run(problem, *make_operands(problem))
    for result in results:
        assert bool((result == 0).all()), f"{kernel.name} {problem}: an empty batch must give zeros"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element never written is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
