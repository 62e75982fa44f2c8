"""Inputs at the edges through every compiled kernel by name, with gradients, and through pooling: as in torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from convlens import ops
from convlens.kernels import all_kernels
from convlens.window import ConvProblem

DENSE = ConvProblem("forward", 2, 16, (16, 16), 32, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
FITTING = {
    "cpu.depthwise": replace(DENSE, in_channels=32, groups=32),
    "cpu.pointwise": replace(DENSE, kernel_size=(1, 1), padding=((0, 0), (0, 0))),
}
COMPILED = {kernel.name: kernel for kernel in all_kernels() if kernel.name.startswith("cpu.")}
BOUND = {"exact": 1e-5, "high": 1e-4, "fast": 1e-3}
"""Of the largest value."""


def edges(channels: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(2, channels, 16, 16)
    special = whole.clone()
    special[0, 0, 2, 3], special[1, 1, 4, 4], special[1, 2, 0, 0] = float("nan"), float("inf"), -0.0
    return {
        "special": special,
        "denormal": whole * 1e-41,
        "zeros": torch.full_like(whole, -0.0),
        "strided": torch.randn(2, channels, 32, 32)[..., ::2, ::2],
        "expanded": torch.randn(1, channels, 1, 16).expand(2, channels, 16, 16),
        "overlapping": torch.randn(100).as_strided((2, channels, 16, 16), (1, 1, 2, 1)),
        "transposed": torch.randn(2, 16, 16, channels).permute(0, 3, 2, 1),
    }


def assert_as(got: torch.Tensor, want: torch.Tensor, bound: float) -> None:
    """Not finite where torch's are, and near them elsewhere."""
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())
    finite = want.isfinite()
    scale = float(want[finite].abs().max()) if finite.any() else 1.0
    torch.testing.assert_close(got[finite], want[finite], rtol=0, atol=bound * max(scale, 1e-30))


@pytest.mark.parametrize("kind", edges(3))
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels(name, kind):
    kernel, problem = COMPILED[name], FITTING.get(name, DENSE)
    directions = [
        w for w in ("forward", "input_grad", "weight_grad") if kernel.refusal(problem.towards(w)) is None
    ]
    if not directions:
        pytest.skip(f"{name} computes nothing on this machine: {kernel.refusal(problem)}")
    edge = edges(problem.in_channels)[kind]
    weight = torch.randn(problem.weight_shape, generator=torch.Generator().manual_seed(1))
    upstream = torch.randn(problem.output_shape, generator=torch.Generator().manual_seed(2))
    results = []
    for conv, extra in ((ops.conv2d, {"algorithm": name}), (F.conv2d, {})):
        input, kernels = edge.detach().requires_grad_(), weight.clone().requires_grad_()
        out = conv(input, kernels, None, 1, problem.padding[0][0], 1, problem.groups, **extra)
        wanted = [t for t, way in ((input, "input_grad"), (kernels, "weight_grad")) if way in directions]
        gradients = torch.autograd.grad(out, wanted, upstream) if wanted else ()
        results.append((out.detach(), *gradients))
    for got, want in zip(*results, strict=True):
        assert_as(got, want, BOUND[kernel.precision])


POOLS = {
    "max": (ops.max_pool2d, F.max_pool2d),
    "avg": (ops.avg_pool2d, F.avg_pool2d),
    "adaptive_max": (ops.adaptive_max_pool2d, F.adaptive_max_pool2d),
    "adaptive_avg": (ops.adaptive_avg_pool2d, F.adaptive_avg_pool2d),
}


@pytest.mark.parametrize("kind", edges(3))
@pytest.mark.parametrize("pool", POOLS)
def test_pooling(pool, kind):
    edge, results = edges(40)[kind], []
    for function in POOLS[pool]:
        input = edge.detach().requires_grad_()
        out = function(input, 2)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), input)))
    for got, want in zip(*results, strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "lp_pool2d"])
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 1, 1)])
def test_pooling_of_nothing_and_of_one_pixel(name, shape):
    order = (2,) if name.startswith("lp") else ()
    input = torch.randn(shape)
    try:
        want = getattr(F, name)(input, *order, 2)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            getattr(ops, name)(input, *order, 2)
        return
    assert getattr(ops, name)(input, *order, 2).shape == want.shape
