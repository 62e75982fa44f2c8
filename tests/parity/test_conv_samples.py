"""torch's own operator samples (`op_db`) through every algorithm: values, gradients, second gradients.

Errors too: each of torch's error inputs must be an error here, except that ``padding="same"`` takes any stride.
"""

from __future__ import annotations

import re
import warnings
from functools import cache

import pytest
import torch

from convlens import ops
from convlens.errors import ArgumentError, UnsupportedError
from convlens.kernels import all_kernels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import SampleInput

NAMES = [f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)]
ALGORITHMS = ["auto", *dict.fromkeys(kernel.algorithm for kernel in all_kernels())]
DTYPES = ["float64", "float32", "bfloat16", "float16", "complex128", "complex64", "int64"]
TOLERANCE = {
    "float64": (1e-12, 1e-12),
    "complex128": (1e-12, 1e-12),
    "float32": (1e-4, 1e-4),
    "complex64": (1e-4, 1e-4),
    "bfloat16": (3e-2, 6e-2),
    "float16": (4e-3, 2e-2),
    "int64": (0, 0),
}
# drawn in one type and rounded, so that every precision gets the same upstream
UPSTREAM = {torch.float64: torch.bfloat16, torch.float16: torch.bfloat16}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")


@cache
def info(name):
    (found,) = [op for op in op_db if op.name == f"nn.functional.{name}" and not op.variant_test_name]
    return found


def samples(name, dtype):
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    return list(info(name).sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point or dtype.is_complex))


def leaves(sample):
    return [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor) and t.requires_grad]


def widened(sample):
    """The same numbers in double precision: torch's own 16-bit sums are no oracle."""

    def wide(t):
        return t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) else t

    return SampleInput(wide(sample.input), args=tuple(map(wide, sample.args)), kwargs=sample.kwargs)


def assert_near(got, want, rtol, atol):
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    torch.testing.assert_close(got.to(want.dtype), want, rtol=rtol, atol=atol * scale)


def gradients(out, tensors):
    """First gradients with a random upstream, and the gradient of a function of those."""
    torch.manual_seed(1)
    upstream = torch.randn(out.shape, dtype=UPSTREAM.get(out.dtype, out.dtype)).to(out.dtype)
    first = torch.autograd.grad(out, tensors, upstream, create_graph=True, allow_unused=True)
    used = [g for g in first if g is not None and g.requires_grad]
    ones = [torch.ones_like(g) for g in used]
    second = torch.autograd.grad(used, tensors, ones, allow_unused=True) if used else ()
    return [g for g in (*first, *second) if g is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name, algorithm, dtype):
    ours, theirs = getattr(ops, name), info(name).op
    rtol, atol = TOLERANCE[dtype]
    refused = 0
    for sample in samples(name, dtype):
        native = theirs(sample.input, *sample.args, **sample.kwargs)
        exact = widened(sample) if dtype in ("bfloat16", "float16") else sample
        expected = theirs(exact.input, *exact.args, **exact.kwargs)
        for variant in (sample, sample.noncontiguous()):
            try:
                out = ours(variant.input, *variant.args, **variant.kwargs, algorithm=algorithm)
            except UnsupportedError as refusal:
                assert algorithm != "auto"
                assert "compute this problem" in str(refusal)
                refused += 1
                continue
            assert out.dtype == native.dtype
            assert_near(out, expected, rtol, atol)
            if variant is sample:
                assert out.stride() == native.stride()
            if not leaves(sample):
                continue
            try:
                got = gradients(out, leaves(variant))
            except UnsupportedError:
                assert algorithm not in ("auto", "vendor", "im2col")
                refused += 1
                continue
            # torch's own kernel is as exact as torch; every other one is held to double precision
            oracle = variant if algorithm in ("auto", "vendor") and dtype != "bfloat16" else exact
            want = gradients(theirs(oracle.input, *oracle.args, **oracle.kwargs), leaves(oracle))
            for grad, wanted in zip(got, want, strict=True):
                assert_near(grad, wanted, rtol, atol)
    if algorithm in ("auto", "vendor", "im2col") or (algorithm == "fourier" and dtype != "int64"):
        assert not refused


@pytest.mark.parametrize("name", [name for name in NAMES if info(name).error_inputs_func])
def test_torchs_errors_are_errors(name):
    for error in info(name).error_inputs("cpu"):
        sample = error.sample_input
        if sample.kwargs.get("padding") == "same" and sample.kwargs.get("stride", 1) != 1:
            out = getattr(ops, name)(sample.input, *sample.args, **sample.kwargs)
            assert out.shape[2:] == tuple(-(-n // sample.kwargs["stride"]) for n in sample.input.shape[2:])
            continue
        with pytest.raises(ArgumentError) as caught:
            getattr(ops, name)(sample.input, *sample.args, **sample.kwargs)
        assert isinstance(caught.value, error.error_type)
        assert re.search(error.error_regex, str(caught.value))


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in ("direct", "winograd")])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_and_gradgradcheck(name, algorithm):
    chosen = [s for s in samples(name, "float64") if sum(t.numel() for t in leaves(s)) < 400][::4][:2]
    assert chosen
    for sample in chosen:

        def call(*tensors, sample=sample):
            rest = iter(tensors[1:])
            args = [next(rest) if isinstance(a, torch.Tensor) else a for a in sample.args]
            return getattr(ops, name)(tensors[0], *args, **sample.kwargs, algorithm=algorithm)

        assert torch.autograd.gradcheck(call, leaves(sample), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves(sample), fast_mode=True)
