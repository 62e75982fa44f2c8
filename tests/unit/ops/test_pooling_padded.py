"""Pooling beyond torch's arguments, against the definition: paddings, modes, windows wholly in padding."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens import ops
from convlens.errors import ArgumentError, DtypeError, ShapeError

_spec = importlib.util.spec_from_file_location("pool_reference", Path(__file__).with_name("pool_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
MAX = {1: ops.max_pool1d, 2: ops.max_pool2d, 3: ops.max_pool3d}
AVG = {1: ops.avg_pool1d, 2: ops.avg_pool2d, 3: ops.avg_pool3d}


@st.composite
def pools(draw, dilated=True):
    ndim = draw(st.sampled_from((1, 1, 2, 2, 3)))
    axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(ndim))  # noqa: E731
    size, kernel, stride = axis(1, 6 if ndim < 3 else 4), axis(1, 3), axis(1, 3)
    dilation = axis(1, 3) if dilated else (1,) * ndim
    pads = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(ndim))
    ceil = draw(st.booleans())
    batch = draw(st.sampled_from(((2, 2), (1,), (0, 2))))
    seed = draw(st.integers(0, 99))
    return size, kernel, stride, pads, dilation, ceil, draw(st.sampled_from(MODES)), batch, seed


def output_size(size, kernel, stride, pads, dilation, ceil):
    """Count windows by walking: starts inside what is padded (ceil) or windows that fit (floor)."""
    counts = []
    for n, k, s, (before, after), d in zip(size, kernel, stride, pads, dilation, strict=True):
        span, padded = d * (k - 1) + 1, n + before + after
        if padded < span:
            # a window larger than everything: ceil keeps one that torch's formula still counts
            count = -(-(padded - span) // s) + 1 if ceil else (padded - span) // s + 1
        else:
            count = len(range(0, padded - span + 1, s))
            if ceil and (count - 1) * s + span < padded and count * s < n + before:
                count += 1
        counts.append(count)
    return tuple(counts)


def values(size, batch, seed, repeats=False):
    generator = torch.Generator().manual_seed(seed)
    if repeats:
        return torch.randint(0, 3, (*batch, *size), generator=generator).double()
    return torch.randn(*batch, *size, dtype=torch.float64, generator=generator)


@given(pools())
@settings(max_examples=250, deadline=None)
def test_max_pool_with_any_padding_is_the_definition(case):
    size, kernel, stride, pads, dilation, ceil, mode, batch, seed = case
    outputs = output_size(size, kernel, stride, pads, dilation, ceil)
    x = values(size, batch, seed, repeats=seed % 2 == 0)
    arguments = (kernel, stride, pads, dilation, ceil)
    if min(outputs) < 1:
        with pytest.raises(ShapeError, match="under the window"):
            MAX[len(size)](x, *arguments, padding_mode=mode)
        return
    want, places = reference.max_pool(x, kernel, stride, pads, dilation, mode, outputs)
    got = MAX[len(size)](x, *arguments, padding_mode=mode)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    got, indices = MAX[len(size)](x, *arguments, return_indices=True, padding_mode=mode)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    inside = [p if p is not None else i for p, i in zip(places, indices.flatten().tolist(), strict=True)]
    assert indices.flatten().tolist() == inside
    assert all(0 <= i < x[(0,) * len(batch)].numel() for i in inside)


@given(pools(dilated=False), st.booleans(), st.sampled_from((None, None, 3, -2)))
@settings(max_examples=250, deadline=None)
def test_avg_pool_with_any_padding_is_the_definition(case, count_include_pad, divisor):
    size, kernel, stride, pads, dilation, ceil, mode, batch, seed = case
    count_include_pad = count_include_pad or mode != "zeros"
    outputs = output_size(size, kernel, stride, pads, dilation, ceil)
    x = values(size, batch, seed)
    options = {} if len(size) == 1 else {"divisor_override": divisor}
    arguments = {"ceil_mode": ceil, "count_include_pad": count_include_pad, "padding_mode": mode, **options}
    if min(outputs) < 1:
        with pytest.raises(ShapeError, match="under the window"):
            AVG[len(size)](x, kernel, stride, pads, **arguments)
        return
    divisor = options.get("divisor_override")
    want = reference.avg_pool(x, kernel, stride, pads, mode, outputs, count_include_pad, divisor)
    got = AVG[len(size)](x, kernel, stride, pads, **arguments)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@given(pools())
@settings(max_examples=60, deadline=None)
def test_gradients_of_padded_pools(case):
    size, kernel, stride, pads, dilation, ceil, mode, _, seed = case
    if min(output_size(size, kernel, stride, pads, dilation, ceil)) < 1:
        return
    x = values(size, (2,), seed).requires_grad_()
    for indexed in (False, True):

        def pool(v, indexed=indexed):
            out = MAX[len(size)](v, kernel, stride, pads, dilation, ceil, indexed, padding_mode=mode)
            out = out[0] if indexed else out
            return torch.where(out.isinf(), 0.0, out)

        assert torch.autograd.gradcheck(pool, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(pool, x, fast_mode=True)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients_of_a_padded_average(mode):
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    count = mode != "zeros"

    def pool(v):
        return ops.avg_pool2d(v, 3, 2, ((0, 2), (1, 0)), True, count, padding_mode=mode)

    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_a_window_wholly_in_padding(ndim, dtype):
    """torch 2.13 stores an index outside the plane here, and its backward writes there."""
    x = torch.arange(9).reshape(3, *(1,) * ndim, 3)[..., : 3 if ndim > 1 else 1].to(dtype)
    out, indices = MAX[ndim](x, 2, 2, 1, 2, return_indices=True)
    assert ((indices >= 0) & (indices < 3)).all()
    lowest = -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min
    assert (out == lowest).all()  # the axis of size 1 is stepped over
    torch.testing.assert_close(MAX[ndim](x, 2, 2, 1, 2), out)
    if dtype.is_floating_point:
        x.requires_grad_()
        MAX[ndim](x, 2, 2, 1, 2).sum().backward()
        assert x.grad.abs().max() == 0


def test_dilated_and_padded_as_torch_where_no_window_misses():
    x = torch.randn(2, 3, 9, 8)
    want = torch.nn.functional.max_pool2d(x, 3, 2, 1, 2, return_indices=True)
    for got, expected in zip(ops.max_pool2d(x, 3, 2, 1, 2, return_indices=True), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("mode", MODES)
def test_nan_and_infinities_come_through(mode):
    x = torch.tensor([[[1.0, float("nan"), -torch.inf, 2.0, torch.inf, -torch.inf]]])
    out = ops.max_pool1d(x, 2, 1, ((0, 1),), padding_mode=mode)
    assert out[0, 0, :5].isnan().tolist() == [True, True, False, False, False]
    assert out[0, 0, 3:5].tolist() == [torch.inf, torch.inf]
    alone = torch.full((1, 1, 4), -torch.inf)
    assert ops.max_pool1d(alone, 2, 1, "same", return_indices=True)[1].tolist() == [[[0, 1, 2, 3]]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_leaves_ceil_of_size_over_stride(size, stride):
    x = torch.randn(1, 1, size, size + 1)
    for pool in (ops.max_pool2d, ops.avg_pool2d):
        assert pool(x, 3, stride, "same").shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    assert ops.max_pool2d(x, (1, 2), 1, "full").shape[2:] == (size, size + 2)
    assert ops.max_pool2d(x, 1, stride, "valid").shape[2:] == (-(-size // stride), -(-(size + 1) // stride))


@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize("padding", [0, 1, ((1, 0), (0, 1)), "same"])
def test_channels_last_stays(pool, padding):
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = pool(x, 2, 2, padding)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_halves_do_not_overflow_in_an_average(dtype):
    x = torch.full((1, 1, 8, 8), 6e4, dtype=dtype)
    out = ops.avg_pool2d(x, 8, 8, ((1, 0), (0, 0)), count_include_pad=False)
    assert out.dtype == dtype
    torch.testing.assert_close(out, x[..., :1, :1].expand_as(out))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lp_pool_padded_is_the_norm(ndim):
    pool = {1: ops.lp_pool1d, 2: ops.lp_pool2d, 3: ops.lp_pool3d}[ndim]
    x = torch.rand(2, 3, *(5,) * ndim, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (1, 0) * ndim)
    torch.testing.assert_close(pool(x, 2, 2, 2, padding=((1, 0),) * ndim), pool(padded, 2, 2, 2))
    torch.testing.assert_close(pool(x, 3.0, 2, padding=0), pool(x, 3.0, 2))
    assert pool(x, 2, 2, 2, padding="same").shape[2:] == (3,) * ndim


def test_lp_pool1d_takes_its_window_in_a_tuple():
    x = torch.rand(1, 1, 6)
    torch.testing.assert_close(ops.lp_pool1d(x, 2, (2,)), ops.lp_pool1d(x, 2, 2))


def test_padding_that_repeats_values_is_always_counted():
    with pytest.raises(ArgumentError, match="count_include_pad"):
        ops.avg_pool2d(torch.zeros(1, 1, 4, 4), 2, 1, "same", False, False, padding_mode="reflect")


def test_order_needs_real_numbers():
    for dtype in (torch.complex64, torch.bool):
        with pytest.raises(DtypeError, match="order"):
            ops.max_pool2d(torch.zeros(1, 1, 4, 4, dtype=dtype), 2, 1, "same")
