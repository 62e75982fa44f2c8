"""The fused block against float64 composition: values, gradients of any order, poison, widths, fences."""

from __future__ import annotations

import math

import pytest
import torch

from checking.guards import guarded
from checking.parity import make_operands, poisoned, problem_of
from convlens import layers, ops
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.direct_few import DirectBlock
from convlens.window import ConvProblem, Epilogue

BLOCK = Epilogue(bias=True, activation="relu", pool=2)
PROBLEMS = {
    "lenet1": problem_of(3, 1, (28, 28), 6, 5, padding=2, epilogue=BLOCK),
    "lenet1 images": problem_of(37, 1, (12, 12), 6, 5, padding=2, epilogue=BLOCK),
    "lenet2 images": problem_of(32, 6, (14, 14), 16, 5, epilogue=BLOCK),
    "odd output": problem_of(2, 3, (14, 42), 5, 4, padding=1, epilogue=BLOCK),
    "odd output images": problem_of(33, 2, (9, 7), 3, 3, padding=((0, 2), (1, 0)), epilogue=BLOCK),
    "strided": problem_of(2, 2, (19, 23), 4, 3, stride=2, padding=1, epilogue=BLOCK),
    "strided rows images": problem_of(35, 2, (15, 9), 4, 3, stride=(2, 1), padding=1, epilogue=BLOCK),
    "dilated": problem_of(33, 1, (12, 12), 3, 3, dilation=2, padding=2, epilogue=BLOCK),
    "no bias": problem_of(2, 1, (8, 9), 4, 3, epilogue=Epilogue(False, "relu", 2)),
}
WIDTHS = (16, 8, 4)


def _target(lanes: int):
    if lanes > host().lanes or (lanes < host().lanes and "x86" not in host().triple):
        pytest.skip(f"this processor has no vectors of {lanes}")
    return host() if lanes == host().lanes else host().narrowed(lanes)


def _oracle(problem: ConvProblem, operands: list, grad: torch.Tensor) -> tuple:
    x, w, b = (None if o is None else o.double().requires_grad_() for o in operands)
    flat = [amount for pad in reversed(problem.padding) for amount in pad]
    padded = torch.nn.functional.pad(x, flat)
    out = torch.conv2d(padded, w, b, problem.stride, 0, problem.dilation)
    out = torch.max_pool2d(torch.relu(out), 2)
    return out, torch.autograd.grad(out, [t for t in (x, w, b) if t is not None], grad.double())


def _run(problem: ConvProblem, operands: list, grad: torch.Tensor) -> tuple:
    kernel = DirectBlock()
    with poisoned():
        out, choice = kernel.forward(problem, *operands, keep=True)
        grads = kernel.backward(problem, grad, out, choice, operands[0], operands[1], need_input=True)
    return out, [g for g in grads if g is not None]


def _upstream(problem: ConvProblem) -> torch.Tensor:
    batch, outs, height, width = problem.output_shape
    return torch.randn(batch, outs, height // 2, width // 2, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_values_and_gradients(name: str, lanes: int) -> None:
    problem = PROBLEMS[name]
    assert DirectBlock().refusal(problem) is None
    operands, grad = make_operands(problem), _upstream(problem)
    with forced(_target(lanes)):
        out, grads = _run(problem, operands, grad)
    expected, expected_grads = _oracle(problem, operands, grad)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for result, exact in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=2e-5, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["lenet1", "lenet2 images"])
def test_forward_without_keeping_gives_the_same(name: str) -> None:
    operands = make_operands(PROBLEMS[name])
    kept, choice = DirectBlock().forward(PROBLEMS[name], *operands, keep=True)
    alone, none = DirectBlock().forward(PROBLEMS[name], *operands, keep=False)
    assert choice is not None and none is None and torch.equal(kept, alone)


@pytest.mark.parametrize("name", ["lenet1", "lenet1 images"])
def test_nan_and_inf_pass_as_torch_has_them(name: str) -> None:
    problem = PROBLEMS[name]
    operands = make_operands(problem)
    operands[0][0, 0, 0, 0], operands[0][-1, -1, -1, -1] = math.inf, math.nan
    grad = _upstream(problem)
    out, grads = _run(problem, operands, grad)
    expected, expected_grads = _oracle(problem, operands, grad)
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.isinf(), expected.isinf())
    for result, exact in zip(grads, expected_grads, strict=True):
        assert torch.equal(result.isfinite(), exact.isfinite())


@pytest.mark.parametrize("against", ["start", "end"])
@pytest.mark.parametrize("name", ["lenet1", "odd output", "lenet1 images", "odd output images"])
def test_stays_inside_its_arrays(name: str, against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fenced(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return guarded(tuple(shape), dtype, against=against, fill=0.0 if dtype == torch.uint8 else math.nan)

    monkeypatch.setattr("convlens.kernels.cpu.direct_few.block_kernel.empty", fenced)
    problem = PROBLEMS[name]
    operands, grad = make_operands(problem), _upstream(problem)
    given = [None if o is None else guarded(o, against=against) for o in operands]
    kernel = DirectBlock()
    out, choice = kernel.forward(problem, *given, keep=True)
    kernel.backward(problem, guarded(grad, against=against), out, choice, given[0], given[1], need_input=True)
    torch.testing.assert_close(out.double(), _oracle(problem, operands, grad)[0], rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_first_as_in_torch() -> None:
    x = torch.ones(2, 1, 8, 8)
    w = torch.ones(4, 1, 3, 3, requires_grad=True)
    problem = problem_of(2, 1, (8, 8), 4, 3, epilogue=Epilogue(False, "relu", 2))
    fused = ops.block._Block.apply(x, w, None, problem, _REST)
    own = torch.autograd.grad(fused, w, torch.ones_like(fused))[0]
    plain = torch.max_pool2d(torch.relu(torch.conv2d(x, w)), 2)
    assert torch.equal(own, torch.autograd.grad(plain, w, torch.ones_like(plain))[0])


_REST = (1, 0, 1, 1, "zeros", "relu", 2, "auto")


def test_second_derivatives_are_the_composition_s() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 8, 8, generator=generator, requires_grad=True)
    w = torch.randn(3, 1, 3, 3, generator=generator, requires_grad=True)
    problem = problem_of(2, 1, (8, 8), 3, 3, epilogue=Epilogue(False, "relu", 2))

    def second(out: torch.Tensor) -> torch.Tensor:
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), w)[0]

    fused = second(ops.block._Block.apply(x, w, None, problem, _REST))
    composed = second(torch.max_pool2d(torch.relu(torch.conv2d(x, w)), 2))
    torch.testing.assert_close(fused, composed, rtol=1e-4, atol=1e-3)


def test_the_operator_agrees_with_its_parts_for_any_arguments() -> None:
    layer = layers.ConvBlock2d(3, 8, 3, padding="same", activation="tanh", pool=3)
    x = torch.randn(4, 3, 20, 20)
    torch.testing.assert_close(layer(x), layer.parts()(x))
    fused = layers.ConvBlock2d(1, 6, 5, padding=2, pool=2)
    x = torch.randn(64, 1, 28, 28)
    torch.testing.assert_close(fused(x), fused.parts()(x), rtol=1e-5, atol=1e-5)
    out = fused(x)
    out.square().sum().backward()
    own = fused.weight.grad.clone()
    fused.zero_grad()
    fused.parts()(x).square().sum().backward()
    torch.testing.assert_close(own, fused.weight.grad, rtol=1e-4, atol=1e-2)
    assert "activation=relu, pool=2" in repr(fused)


def test_what_cannot_be_fused_is_composed() -> None:
    layer = layers.ConvBlock2d(1, 6, 5, padding=2, pool=2)
    x = torch.randn(64, 1, 28, 28)
    expected = layer.parts()(x)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.double()(x.double()).float(), expected, rtol=1e-5, atol=1e-5)
    assert layer(torch.randn(1, 28, 28, dtype=torch.float64)).shape == (6, 14, 14)
    assert layer(x.double()[:0]).shape == (0, 6, 14, 14)


@pytest.mark.parametrize(("arguments", "text"), [({"activation": "swoosh"}, "activation"), ({"pool": -1}, "pool")])
def test_wrong_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ops.conv_block2d(torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3), **arguments)
