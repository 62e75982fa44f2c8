"""Whole small nets as one kernel against float64 layers: values, gradients, widths, poison, fences."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch.nn import functional

from checking.guards import guarded
from checking.parity import poisoned, problem_of
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.direct_few import Dense, DirectChain
from convlens.window import ConvProblem, Epilogue

BLOCK, WITHOUT_BIAS = Epilogue(True, "relu", 2), Epilogue(False, "relu", 2)
Chain = tuple[tuple[ConvProblem, ...], tuple[Dense, ...]]
CHAINS: dict[str, Chain] = {
    "lenet": (
        (
            problem_of(41, 1, (16, 16), 6, 5, padding=2, epilogue=BLOCK),
            problem_of(41, 6, (8, 8), 7, 3, epilogue=BLOCK),
        ),
        (Dense(63, 35, True, True), Dense(35, 10, True, False)),
    ),
    "odd sizes": (
        (
            problem_of(33, 2, (11, 9), 3, 2, epilogue=WITHOUT_BIAS),
            problem_of(33, 3, (5, 4), 4, 3, padding=((2, 1), (0, 1)), epilogue=BLOCK),
        ),
        (Dense(12, 5, False, False),),
    ),
    "strided rows": (
        (
            problem_of(32, 1, (14, 9), 2, 3, stride=(2, 1), padding=1, epilogue=BLOCK),
            problem_of(32, 2, (3, 4), 3, 2, padding=1, stride=(2, 1), epilogue=BLOCK),
        ),
        (Dense(6, 70, True, True), Dense(70, 3, True, True), Dense(3, 2, True, False)),
    ),
    "rows with margins": (
        (
            problem_of(34, 1, (8, 16), 2, 3, padding=1, epilogue=BLOCK),
            problem_of(34, 2, (4, 8), 3, 3, dilation=(1, 2), padding=((1, 2), (0, 3)), epilogue=BLOCK),
        ),
        (Dense(18, 4, True, False),),
    ),
    "one dilated block": (
        (problem_of(150, 1, (10, 10), 2, 3, dilation=2, epilogue=BLOCK),),
        (Dense(18, 17, True, False), Dense(17, 20, True, False)),
    ),
}


@pytest.fixture(autouse=True)
def _fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory of earlier calls: a workspace that holds good values hides what was never written."""
    monkeypatch.setattr("convlens.kernels.cpu.direct_few.chain_kernel._spare", {})
    monkeypatch.setattr("convlens.kernels.cpu.direct_few.chain_kernel._workspaces", threading.local())


def _target(lanes: int):
    if lanes > host().lanes or (lanes < host().lanes and "x86" not in host().triple):
        pytest.skip(f"this processor has no vectors of {lanes}")
    return host() if lanes == host().lanes else host().narrowed(lanes)


def _operands(chain: Chain) -> tuple[torch.Tensor, list[torch.Tensor | None], torch.Tensor]:
    """Input, weights and the gradient of the scores."""
    blocks, dense = chain
    generator = torch.Generator().manual_seed(1)
    shapes = [(problem.weight_shape, problem.epilogue.bias) for problem in blocks]
    shapes += [((layer.outputs, layer.inputs), layer.bias) for layer in dense]
    weights: list[torch.Tensor | None] = []
    for shape, bias in shapes:
        weights.append(torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:])))
        weights.append(torch.randn(shape[0], generator=generator) if bias else None)
    upstream = torch.randn(blocks[0].batch, dense[-1].outputs, generator=generator)
    return torch.randn(blocks[0].input_shape, generator=generator), weights, upstream


def _layers(chain: Chain, x: torch.Tensor, weights: list[torch.Tensor | None]) -> torch.Tensor:
    blocks, dense = chain
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    for problem, (weight, bias) in zip(blocks, pairs, strict=False):
        flat = [amount for pad in reversed(problem.padding) for amount in pad]
        padded = functional.pad(x, flat)
        x = torch.conv2d(padded, weight, bias, problem.stride, 0, problem.dilation)
        x = torch.max_pool2d(torch.relu(x), 2)
    x = x.flatten(1)
    for layer, (weight, bias) in zip(dense, pairs[len(blocks) :], strict=True):
        x = functional.linear(x, weight, bias)
        x = torch.relu(x) if layer.relu else x
    return x


def _oracle(chain: Chain, x: torch.Tensor, weights: list, upstream: torch.Tensor) -> tuple[torch.Tensor, list]:
    exact = [None if weight is None else weight.double().requires_grad_() for weight in weights]
    out = _layers(chain, x.double(), exact)
    found = iter(torch.autograd.grad(out, [weight for weight in exact if weight is not None], upstream.double()))
    return out.detach(), [None if weight is None else next(found) for weight in exact]


def _check(result: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(result.double(), exact, rtol=2e-5, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize("name", CHAINS)
def test_values_and_gradients(name: str, lanes: int) -> None:
    chain, kernel = CHAINS[name], DirectChain()
    x, weights, upstream = _operands(chain)
    with forced(_target(lanes)), poisoned():
        assert kernel.refusal(*chain) is None
        out, held = kernel.forward(*chain, x, weights)
        grads = kernel.backward(*chain, upstream, held, weights)
    expected, expected_grads = _oracle(chain, x, weights, upstream)
    _check(out, expected)
    for result, exact in zip(grads, expected_grads, strict=True):
        assert (result is None) == (exact is None)
        if result is not None:
            _check(result, exact)


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["lenet", "odd sizes", "rows with margins"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fenced(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded(tuple(shape), dtype, against=against, fill=0.0 if dtype == torch.uint8 else math.nan)

    module = "convlens.kernels.cpu.direct_few.chain_kernel"
    monkeypatch.setattr(f"{module}.empty", fenced)
    monkeypatch.setattr(f"{module}._gradients", lambda all: [None if w is None else fenced(w.shape) for w in all])
    chain, kernel = CHAINS[name], DirectChain()
    x, weights, upstream = _operands(chain)
    given = [None if weight is None else guarded(weight, against=against) for weight in weights]
    out, held = kernel.forward(*chain, guarded(x, against=against), given)
    kernel.backward(*chain, guarded(upstream, against=against), held, given)
    _check(out, _oracle(chain, x, weights, upstream)[0])


def test_nan_and_inf_pass_as_torch_has_them() -> None:
    chain, kernel = CHAINS["lenet"], DirectChain()
    x, weights, upstream = _operands(chain)
    x[0, 0, 3, 3], x[-1, 0, 0, 0] = math.inf, math.nan
    out, held = kernel.forward(*chain, x, weights)
    expected, expected_grads = _oracle(chain, x, weights, upstream)
    assert torch.equal(out.isfinite(), expected.isfinite())
    for result, exact in zip(kernel.backward(*chain, upstream, held, weights), expected_grads, strict=True):
        assert result is not None
        assert torch.equal(result.isfinite(), exact.isfinite())


def test_bits_do_not_depend_on_the_run_but_gradients_may_on_threads() -> None:
    chain, kernel = CHAINS["lenet"], DirectChain()
    x, weights, upstream = _operands(chain)

    def bits() -> list[torch.Tensor]:
        out, held = kernel.forward(*chain, x, weights)
        return [out, *(g for g in kernel.backward(*chain, upstream, held, weights) if g is not None)]

    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            first = bits()
            assert all(torch.equal(a, b) for a, b in zip(first, bits(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda blocks, dense: ((), dense), "at least"),
        (lambda blocks, dense: (blocks[:1], dense), "inputs"),
        (lambda blocks, dense: (blocks[::-1], dense), "fit each other"),
        (lambda blocks, dense: (blocks, (dense[0], Dense(35, 10, True, True))), "without ReLU"),
        (lambda blocks, dense: (blocks, (Dense(63, 9000, True, True), Dense(9000, 10, True, False))), "cache"),
    ],
)
def test_refusals_say_why(change, why: str) -> None:
    refusal = DirectChain().refusal(*change(*CHAINS["lenet"]))
    assert refusal is not None
    assert why in refusal
