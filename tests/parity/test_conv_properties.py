"""Convolutions over all parameters at once (Hypothesis), and on inputs at the edges, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from convlens import ops
from convlens.errors import ArgumentError
from convlens.kernels.plain import plain_kernels

ALGORITHMS = ["auto", "vendor", *(kernel.algorithm for kernel in plain_kernels())]
OURS = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}
OURS_TRANSPOSED = {1: ops.conv_transpose1d, 2: ops.conv_transpose2d, 3: ops.conv_transpose3d}
TORCHS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCHS_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def calls(draw):
    ndim, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    kernel, stride, dilation = per_axis(1, 4), per_axis(1, 3), per_axis(1, 2)
    pairs = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(ndim))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(max(1, r - sum(p)) + draw(st.integers(0, 5)) for r, p in zip(reach, pairs, strict=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    input = torch.randn(*batch, 2 * groups, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2 * groups, 2, *kernel, dtype=torch.float64, requires_grad=True)
    bias = draw(st.sampled_from([None, torch.randn(2 * groups, dtype=torch.float64, requires_grad=True)]))
    return ndim, input, weight, bias, stride, pairs, dilation, groups


def assert_same(got, want, tensors):
    """Values, gradients, and gradients of a sum of those, to 1e-12 of double precision."""
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-11)
    leaves = [t for t in tensors if t is not None]
    upstream = torch.randn_like(want)
    first = [torch.autograd.grad(out, leaves, upstream, create_graph=True) for out in (got, want)]
    weights = [torch.randn_like(t) for t in leaves]
    second = [
        torch.autograd.grad(sum((g * w).sum() for g, w in zip(grads, weights, strict=True)), leaves[:2])
        for grads in first
    ]
    for ours, theirs in (first, second):
        for mine, torchs in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-12, atol=1e-10)


@quick
@given(calls(), st.sampled_from(ALGORITHMS), st.booleans(), st.sampled_from(["zeros", "replicate", "symmetric"]))
def test_every_parameter_of_a_convolution(call, algorithm, flip, mode):
    ndim, input, weight, bias, stride, pairs, dilation, groups = call
    out = OURS[ndim](
        input, weight, bias, stride, pairs, dilation, groups, padding_mode=mode, flip=flip, algorithm=algorithm
    )
    padded = bordered(input, pairs, mode)
    kernel = weight.flip(tuple(range(2, ndim + 2))) if flip else weight
    assert_same(out, TORCHS[ndim](padded, kernel, bias, stride, 0, dilation, groups), (input, weight, bias))


def bordered(input, pairs, mode):
    """The padding rule by itself: one axis at a time, one place at a time."""
    for axis, (before, after) in enumerate(pairs, start=input.dim() - len(pairs)):
        n, places = input.shape[axis], []
        for place in range(-before, n + after):
            if mode == "symmetric":
                place %= 2 * n
                place = min(place, 2 * n - 1 - place)
            elif mode == "replicate":
                place = min(max(place, 0), n - 1)
            inside = 0 <= place < n
            chosen = input.select(axis, place if inside else 0)
            places.append(chosen if inside else torch.zeros_like(chosen))
        input = torch.stack(places, axis)
    return input


@quick
@given(calls(), st.sampled_from(ALGORITHMS), st.integers(0, 2))
def test_every_parameter_of_a_transposed_convolution(call, algorithm, extra):
    ndim, input, weight, bias, stride, pairs, dilation, groups = call
    even = tuple(min(pair) for pair in pairs)
    extra = tuple(min(extra, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    args = (stride, even, extra, groups, dilation)
    try:
        want = TORCHS_TRANSPOSED[ndim](input, weight, bias, *args)
    except RuntimeError:
        with pytest.raises(ArgumentError):
            OURS_TRANSPOSED[ndim](input, weight, bias, *args, algorithm=algorithm)
        return
    out = OURS_TRANSPOSED[ndim](input, weight, bias, *args, algorithm=algorithm)
    assert_same(out, want, (input, weight, bias))


# --- inputs at the edges --------------------------------------------------------------------------------------


def edge_inputs():
    torch.manual_seed(0)
    whole = torch.randn(2, 3, 8, 8)
    special = whole.clone()
    special[0, 0, 2, 3], special[1, 1, 4, 4], special[1, 2, 0, 0] = float("nan"), float("inf"), -0.0
    return {
        "special": special,
        "denormal": whole * 1e-41,
        "strided": torch.randn(2, 3, 16, 16)[..., ::2, ::2],
        "expanded": torch.randn(1, 3, 1, 8).expand(2, 3, 8, 8),
        "overlapping": torch.randn(40).as_strided((2, 3, 8, 8), (1, 2, 3, 1)),
        "one_pixel": whole[..., :1, :1],
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", edge_inputs())
def test_edge_inputs_are_as_in_torch(name, algorithm):
    input = edge_inputs()[name]
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    want = F.conv2d(input, weight, padding=1)
    got = ops.conv2d(input, weight, padding=1, algorithm=algorithm)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-5 if name != "denormal" else 1e-38)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape, weight", [((0, 3, 8, 8), (4, 3, 3, 3)), ((2, 0, 8, 8), (4, 0, 3, 3))])
def test_nothing_in_gives_what_torch_gives(algorithm, shape, weight):
    input, kernel = torch.zeros(shape, requires_grad=True), torch.zeros(weight, requires_grad=True)
    got, want = ops.conv2d(input, kernel, algorithm=algorithm), F.conv2d(input, kernel)
    assert got.shape == want.shape
    assert [g.shape for g in torch.autograd.grad(got.sum(), (input, kernel))] == [input.shape, kernel.shape]


WRONG = {
    "channels": ({"input": (2, 4, 8, 8)}, r"input: expected 3 channels .* received 4.*set in_channels=4"),
    "groups": ({"groups": 2}, r"weight: expected out_channels to be a multiple of groups=2, received 5"),
    "small": ({"input": (2, 3, 2, 8)}, r"window spans 1\*\(3-1\)\+1 = 3.*2 \+ 0 \+ 0 \(padding\) = 2, 1 too few"),
    "stride": ({"stride": 0}, r"stride: expected 1 or more \(non-positive stride"),
    "fraction": ({"stride": 1.5}, r"stride: expected whole numbers, received 1.5"),
    "axes": ({"padding": (1, 2, 3)}, r"padding: expected 1 or 2 numbers, received 3"),
    "sides": ({"padding": ((1, 2, 3), (0, 0))}, r"padding: expected 2 numbers \(before, after\)"),
    "negative": ({"padding": -1}, r"negative padding is not supported"),
    "name": ({"padding": "sane"}, r"padding: expected .*'same'.* received 'sane'"),
    "mode": ({"padding_mode": "mirror"}, r"padding_mode: expected one of 'zeros'.* received 'mirror'"),
    "algorithm": ({"algorithm": "magic"}, r"algorithm: expected 'auto' or one of .*received 'magic'"),
    "bias": ({"bias": (4,)}, r"bias: expected 1 dimension with 5 elements"),
    "dims": ({"input": (8, 8)}, r"input: expected 4 dimensions .*input.unsqueeze\(0\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_explained(case):
    changed, pattern = WRONG[case]
    shapes = {"input": (2, 3, 8, 8), "weight": (5, 3, 3, 3), "bias": (5,)}
    arguments = {k: v for k, v in changed.items() if k not in shapes}
    tensors = [torch.zeros(changed.get(name, shape)) for name, shape in shapes.items()]
    with pytest.raises(ArgumentError, match=pattern):
        ops.conv2d(*tensors, **arguments)


def test_wrong_types_are_explained():
    x, w = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    with pytest.raises(TypeError, match="input: expected a torch.Tensor, received list"):
        ops.conv2d([[1.0]], w)
    with pytest.raises(ArgumentError, match="Input type and weight type should be the same"):
        ops.conv2d(x, w.double())
    with pytest.raises(ArgumentError, match="padding_mode: expected 'zeros'"):
        ops.conv_transpose2d(x, w, padding_mode="reflect")
    with pytest.raises(ArgumentError, match="smaller than either"):
        ops.conv_transpose2d(x, w, stride=2, output_padding=2)
