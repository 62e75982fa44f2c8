"""The registered operators inside torch: opcheck, compile, export, autocast, vmap, layouts, strides, copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from convlens import ops
from convlens.kernels.plain import plain_kernels

ALGORITHMS = ["auto", "vendor", *(kernel.algorithm for kernel in plain_kernels())]
TRANSPOSED = {
    1: (ops.conv_transpose1d, F.conv_transpose1d),
    2: (ops.conv_transpose2d, F.conv_transpose2d),
    3: (ops.conv_transpose3d, F.conv_transpose3d),
}
CONV = {1: (ops.conv1d, F.conv1d), 2: (ops.conv2d, F.conv2d), 3: (ops.conv3d, F.conv3d)}


def geometry(ndim=2, groups=1, channels_last=None, algorithm="im2col"):
    return ((2,) * ndim, (1, 2) * ndim, (1,) * ndim, groups, channels_last, algorithm)


def operands(dtype=torch.float64, groups=1, batch=2, requires_grad=True):
    torch.manual_seed(0)
    input = torch.randn(batch, 4, 7, 6, dtype=dtype, requires_grad=requires_grad)
    weight = torch.randn(6, 4 // groups, 3, 2, dtype=dtype, requires_grad=requires_grad)
    bias = torch.randn(6, dtype=dtype, requires_grad=requires_grad)
    return input, weight, bias


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels_last", [None, False, True])
def test_opcheck(groups, channels_last):
    input, weight, bias = operands(groups=groups)
    g = geometry(groups=groups, channels_last=channels_last)
    torch.library.opcheck(torch.ops.convlens.conv, (input, weight, bias, *g))
    out = torch.ops.convlens.conv(input, weight, bias, *g).detach().requires_grad_()
    torch.library.opcheck(torch.ops.convlens.conv_transposed, (out, weight, None, [7, 6], *g))
    g = geometry(groups=groups, channels_last=bool(channels_last))
    torch.library.opcheck(torch.ops.convlens.conv_weight_grad, (out, input, [3, 2], True, *g))
    torch.library.opcheck(torch.ops.convlens.conv_weight_grad, (out, input, [3, 2], False, *g))


def net(algorithm):
    def run(input, weight, bias):
        hidden = ops.conv2d(input, weight, bias, padding="same", algorithm=algorithm).relu()
        return ops.conv_transpose2d(hidden, weight, stride=2, algorithm=algorithm)

    return run


@pytest.mark.parametrize("algorithm", ["auto", "vendor", "im2col"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(algorithm, dynamic):
    torch._dynamo.reset()
    function = net(algorithm)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    tensors = operands()
    expected, got = function(*tensors), compiled(*tensors)
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(got, tensors, upstream), torch.autograd.grad(expected, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    larger = operands(batch=3)
    torch.testing.assert_close(compiled(*larger), function(*larger))


@pytest.mark.parametrize("algorithm", ["auto", "fourier"])
@pytest.mark.parametrize("strict", [False, True])
def test_exports(algorithm, strict):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            _, weight, bias = operands()
            self.weight, self.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())

        def forward(self, input):
            return net(algorithm)(input, self.weight, self.bias)

    module, input = Net(), operands(requires_grad=False)[0]
    program = torch.export.export(module, (input,), strict=strict, dynamic_shapes=({0: torch.export.Dim("n")},))
    many = torch.cat([input, input, input])
    torch.testing.assert_close(program.module()(many), module(many))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_autocast_is_torchs(algorithm):
    input, weight, bias = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = ops.conv2d(input, weight, bias, algorithm=algorithm)
        theirs = F.conv2d(input, weight, bias)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    (grad,) = torch.autograd.grad(ours.float().sum(), weight)
    assert grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        direct = torch.ops.convlens.conv(input, weight, bias, *geometry())
    assert direct.dtype == torch.bfloat16


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mapped", [(0, None, None), (None, 0, None), (1, 0, 0), (0, 0, None), (None, None, 0)])
def test_vmap_is_torchs(algorithm, groups, mapped):
    torch.manual_seed(0)
    shapes = ([2, 4, 7, 6], [6, 4 // groups, 3, 2], [6])
    tensors = []
    for shape, dim in zip(shapes, mapped, strict=True):
        if dim is not None:
            shape.insert(dim, 3)
        tensors.append(torch.randn(shape, dtype=torch.float64))

    def mapping(conv, transpose, **kwargs):
        def one(input, weight, bias):
            out = conv(input, weight, bias, 2, 1, 1, groups, **kwargs)
            return transpose(out, weight, None, 2, 1, 0, groups, **kwargs)

        return torch.vmap(one, mapped)(*tensors)

    ours = mapping(ops.conv2d, ops.conv_transpose2d, algorithm=algorithm)
    torch.testing.assert_close(ours, mapping(F.conv2d, F.conv_transpose2d))


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_per_sample_gradients(algorithm):
    input, weight, bias = operands(requires_grad=False)

    def loss(conv, weight, bias, image, **kwargs):
        return conv(image[None], weight, bias, 2, 1, **kwargs).square().sum()

    def per_sample(conv, **kwargs):
        one = torch.func.grad(lambda w, b, x: loss(conv, w, b, x, **kwargs), argnums=(0, 1))
        return torch.vmap(one, (None, None, 0))(weight, bias, input)

    for ours, theirs in zip(per_sample(ops.conv2d, algorithm=algorithm), per_sample(F.conv2d), strict=True):
        torch.testing.assert_close(ours, theirs)


# torch scripts its own decompositions on the first use of forward mode
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
@pytest.mark.parametrize("varied", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_forward_mode_derivatives_are_torchs(algorithm, varied):
    tensors = operands(requires_grad=False)

    def along(conv, transpose, **kwargs):
        def one(*some):
            every = list(tensors)
            for place, tensor in zip(varied, some, strict=True):
                every[place] = tensor
            out = conv(*every, padding=1, **kwargs)
            return transpose(out, every[1], every[2][:4], padding=1, **kwargs).square()

        primals = tuple(tensors[place] for place in varied)
        first = torch.func.jvp(one, primals, tuple(map(torch.cos, primals)))
        second = torch.func.jacfwd(torch.func.grad(lambda *some: one(*some).sum()))(*primals)
        return first, second

    ours = along(ops.conv2d, ops.conv_transpose2d, algorithm=algorithm)
    torch.testing.assert_close(ours, along(F.conv2d, F.conv_transpose2d))


@pytest.fixture(params=[1, 2], ids=["one_thread", "two_threads"])
def threads(request):
    """oneDNN takes 1x1 kernels over from torch's own ones where there are two threads, and stores otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kernel, groups, dtype", [(3, 1, "float32"), (1, 1, "float32"), (3, 2, "float64")])
def test_strides_are_torchs_forward_and_backward(algorithm, ndim, kernel, groups, dtype, threads):
    for which in ("neither", "input", "weight", "both"):
        for batch, channels, outputs in ((2, 4, 6), (1, 4, 2 * groups), (17, 2, 2), (2, groups, groups)):
            tensors = stored(which, ndim, batch, channels, outputs, kernel, groups, dtype)
            assert_same_strides(CONV[ndim], algorithm, *tensors, (1, 1, 1, groups))


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kernel, groups", [(3, 1), (1, 1), (1, 2)])
def test_strides_of_the_transposed_are_torchs(algorithm, ndim, kernel, groups, threads):
    for which in ("neither", "input", "weight", "both"):
        for batch, channels, outputs in ((2, 6, 4), (1, 2, 4), (17, groups, groups)):
            input, weight = stored(
                which, ndim, batch, channels, outputs, kernel, groups, "float32", transposed=True
            )
            assert_same_strides(TRANSPOSED[ndim], algorithm, input, weight, (1, kernel // 2, 0, groups, 1))


def stored(which, ndim, batch, channels, outputs, kernel, groups, dtype, transposed=False):
    """Input and weight, each contiguous or in channels_last."""
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(ndim, torch.contiguous_format)
    input = torch.randn(batch, channels, *(6,) * ndim, dtype=dtype)
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    weight = torch.randn(*shape, *(kernel,) * ndim, dtype=dtype)
    input = input.contiguous(memory_format=last) if which in ("input", "both") else input
    weight = weight.contiguous(memory_format=last) if which in ("weight", "both") else weight
    return input, weight


def assert_same_strides(doors, algorithm, input, weight, window):
    results = []
    for conv, extra in zip(doors, ({"algorithm": algorithm}, {}), strict=True):
        x, w = input.clone().requires_grad_(), weight.clone().requires_grad_()
        out = conv(x, w, None, *window, **extra)
        results.append((out, *torch.autograd.grad(out, (x, w), torch.ones_like(out))))
    for got, want in zip(*results, strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        out = ops.conv2d(torch.empty(2, 3, 9, 9), torch.empty(4, 3, 3, 3), stride=2, algorithm="fourier")
        assert out.shape == (2, 4, 4, 4)
    for algorithm in ALGORITHMS:
        meta = ops.conv2d(torch.empty(2, 3, 9, 9, device="meta"), torch.empty(4, 3, 3, 3, device="meta"), stride=2)
        assert meta.shape == (2, 4, 4, 4), algorithm


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_results_can_be_copied_and_used_by_hooks(algorithm):
    input, weight, bias = operands()
    out = ops.conv2d(input.detach(), weight.detach(), bias.detach(), algorithm=algorithm)
    assert torch.equal(copy.deepcopy(out), out)
    seen = []
    result = ops.conv2d(input, weight, bias, algorithm=algorithm)
    result.register_hook(seen.append)
    result.sum().backward()
    assert len(seen) == 1
    assert weight.grad is not None


class Tagged(torch.Tensor):
    """A subclass that remembers what was called on it."""

    called: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.called.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_subclasses_are_kept(algorithm):
    input, weight, _ = operands(requires_grad=False)
    out = ops.conv2d(input.as_subclass(Tagged), weight, algorithm=algorithm)
    assert type(out) is Tagged
    torch.testing.assert_close(out.as_subclass(torch.Tensor), F.conv2d(input, weight))
