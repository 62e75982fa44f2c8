"""The doors of pooling, unpooling, unfold and fold: mistakes in words, torch's transforms, 1-D to 3-D."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convlens import ops
from convlens.errors import ArgumentError, ConvlensError, DtypeError, ShapeError

X = torch.randn(2, 3, 8, 8)

MISTAKES = {
    "axes missing": (lambda o: o.max_pool2d(X[0, 0], 2), "add the channel axis"),
    "axes of 1-D": (lambda o: o.avg_pool2d(torch.zeros(4), 2), "4 axes"),
    "axes of 3-D": (lambda o: o.max_pool2d(X[None], 2), "use max_pool3d"),
    "no tensor": (lambda o: o.max_pool2d([[1.0]], 2), "torch.as_tensor"),
    "window too large": (lambda o: o.max_pool2d(X, 9), r"1\*\(9-1\)\+1 = 9"),
    "dilated window too large": (lambda o: o.max_pool2d(X, 5, dilation=2), r"2\*\(5-1\)\+1 = 9"),
    "avg window too large": (lambda o: o.avg_pool2d(X, (2, 9)), "columns"),
    "window 0": (lambda o: o.max_pool2d(X, 0), "kernel_size: expected 1 or more"),
    "window negative": (lambda o: o.avg_pool2d(X, -1), "kernel_size: expected 1 or more"),
    "stride 0": (lambda o: o.max_pool2d(X, 2, 0), "stride: expected 1 or more"),
    "stride negative": (lambda o: o.avg_pool2d(X, 2, -2), "stride: expected 1 or more"),
    "dilation 0": (lambda o: o.max_pool2d(X, 2, dilation=0), "dilation: expected 1 or more"),
    "padding negative": (lambda o: o.max_pool2d(X, 2, padding=-1), "padding"),
    "padding over half": (lambda o: o.max_pool2d(X, 2, padding=2), "at most 2//2 = 1"),
    "avg padding over half": (lambda o: o.avg_pool2d(X, 2, padding=2), "at most 2//2 = 1"),
    "three sizes in 2-D": (lambda o: o.max_pool2d(X, (2, 2, 2)), "1 or 2 numbers"),
    "a float": (lambda o: o.max_pool2d(X, 2.5), "kernel_size: expected whole numbers"),
    "a float stride": (lambda o: o.avg_pool2d(X, 2, 1.5), "stride: expected whole numbers"),
    "a huge window": (lambda o: o.max_pool2d(X, 2**40), "kernel_size"),
    "divisor 0": (lambda o: o.avg_pool2d(X, 2, divisor_override=0), "other than 0"),
    "avg of booleans": (lambda o: o.avg_pool2d(X > 0, 2), "input.float"),
    "max of complex": (lambda o: o.max_pool2d(X + 0j, 2), "have an order"),
    "adaptive axes": (lambda o: o.adaptive_avg_pool2d(X[0, 0], 2), "channel axis"),
    "adaptive sizes": (lambda o: o.adaptive_max_pool2d(X, (1, 2, 3)), "1 or 2 numbers"),
    "adaptive negative": (lambda o: o.adaptive_avg_pool2d(X, -1), "output_size: expected 0 or more"),
    "adaptive nothing": (lambda o: o.adaptive_max_pool2d(X[:, :, :0], 2), "at least one element"),
    "lp norm 0": (lambda o: o.lp_pool2d(X, 0, 2), "other than 0"),
    "unpool index type": (lambda o: o.max_unpool2d(X, X.int(), 2), "indices.long"),
    "unpool shapes": (lambda o: o.max_unpool2d(X, X[:1].long(), 2), "the shape of input"),
    "unpool outside": (lambda o: o.max_unpool2d(X, torch.full_like(X, 999).long(), 2), "0 to 255"),
    "unpool size": (lambda o: o.max_unpool2d(X, X.abs().long(), 2, output_size=(3, 3)), "less than stride"),
    "unfold window": (lambda o: o.unfold(X, 9), "pad 1 more"),
    "unfold axes": (lambda o: o.unfold(X[0, 0], 2), "4 axes"),
    "fold rows": (lambda o: o.fold(torch.zeros(1, 7, 4), (4, 4), 2, stride=2), r"2 \* 2 = 4 rows"),
    "fold columns": (lambda o: o.fold(torch.zeros(1, 8, 5), (4, 4), 2, stride=2), r"2 \* 2 = 4 columns"),
    "fold axes": (lambda o: o.fold(X, (4, 4), 2), "3 axes"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_argument_numbers_and_fix(name):
    call, words = MISTAKES[name]
    with pytest.raises(ArgumentError, match=words) as ours:
        call(ops)
    with pytest.raises(Exception) as theirs:
        call(F)
    assert "expected" in str(ours.value)
    assert "received" in str(ours.value)
    # torch's words are there for code that looks for them
    assert not str(theirs.value) or ours.value.__cause__ is not None


BEYOND = {
    "pairs, one axis": (lambda: ops.max_pool2d(X, 2, padding=((1, 1),) * 3), ShapeError),
    "pairs of three": (lambda: ops.max_pool2d(X, 2, padding=((1, 1, 1), (0, 0))), ShapeError),
    "unknown name": (lambda: ops.avg_pool2d(X, 2, padding="some"), ArgumentError),
    "unknown mode": (lambda: ops.avg_pool2d(X, 2, padding_mode="mirror"), ArgumentError),
    "unpool same": (lambda: ops.max_unpool2d(X, X.long(), 2, padding="same"), ArgumentError),
    "lp unknown": (lambda: ops.lp_pool2d(X, 2, 2, padding="some"), ArgumentError),
    "unfold four numbers": (lambda: ops.unfold(X, (2, 2, 2, 2)), ArgumentError),
    "divisor of text": (lambda: ops.avg_pool2d(X, 2, padding="same", divisor_override="3"), DtypeError),
    "fold no tensor": (lambda: ops.fold(3, (4, 4), 2), DtypeError),
}


@pytest.mark.parametrize("name", BEYOND)
def test_mistakes_beyond_torchs_arguments(name):
    call, kind = BEYOND[name]
    with pytest.raises(kind):
        call()


def test_an_error_that_is_not_about_the_arguments_stays_itself():
    with pytest.raises(Exception) as raised:
        ops.avg_pool2d(X.to_sparse(), 2)
    assert not isinstance(raised.value, ShapeError)


POOLS = {
    "max": lambda x: ops.max_pool2d(x, 2),
    "max same": lambda x: ops.max_pool2d(x, 3, 2, "same"),
    "max mode": lambda x: ops.max_pool2d(x, 3, 1, ((1, 0), (2, 1)), padding_mode="symmetric"),
    "max indices": lambda x: ops.max_pool2d(x, 3, 2, "same", return_indices=True)[0],
    "max dilated": lambda x: ops.max_pool2d(x, 2, 1, 1, 3),
    "avg": lambda x: ops.avg_pool2d(x, 2),
    "avg same": lambda x: ops.avg_pool2d(x, 3, 2, "same", count_include_pad=False),
    "lp same": lambda x: ops.lp_pool2d(x.abs() + 1, 2, 3, 2, padding="same"),
    "adaptive": lambda x: ops.adaptive_max_pool2d(x, 3),
    "unfold pairs": lambda x: ops.unfold(x, 3, padding=((1, 0), (0, 2))),
}


@pytest.mark.parametrize("name", POOLS)
def test_compile_without_breaks(name):
    torch.compiler.reset()
    dynamic = name in ("max", "max same", "avg same")
    compiled = torch.compile(POOLS[name], fullgraph=True, backend="eager", dynamic=dynamic)
    for x in (X, torch.randn(1, 3, 9, 11)) if dynamic else (X,):
        torch.testing.assert_close(compiled(x), POOLS[name](x))


@pytest.mark.parametrize("name", POOLS)
def test_vmap_export_fake_and_autocast(name):
    pool = POOLS[name]
    stacked = torch.randn(2, 2, 3, 8, 8)
    torch.testing.assert_close(torch.vmap(pool)(stacked), torch.stack([pool(x) for x in stacked]))

    class Module(torch.nn.Module):
        def forward(self, x):
            return pool(x)

    torch.testing.assert_close(torch.export.export(Module(), (X,)).module()(X), pool(X))
    assert pool(X.to("meta")).shape == pool(X).shape
    with torch.autocast("cpu", torch.bfloat16):
        assert pool(X).shape == pool(X).shape
    torch.testing.assert_close(torch.func.grad(lambda x: pool(x).sum())(X).shape, X.shape)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unfold_and_fold_are_each_others_transpose(ndim):
    size, kernel = (5, 6, 4)[:ndim], (2, 3, 2)[:ndim]
    options = {
        "dilation": (2, 1, 1)[:ndim],
        "padding": ((1, 0), (2, 1), (0, 1))[:ndim],
        "stride": (1, 2, 1)[:ndim],
    }
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    columns = ops.unfold(x, kernel, **options)
    upstream = torch.randn_like(columns)
    (expected,) = torch.autograd.grad(columns, x, upstream)
    torch.testing.assert_close(ops.fold(upstream, size, kernel, **options), expected)
    single = ops.unfold(x[0], kernel, **options)
    torch.testing.assert_close(single, columns[0])
    torch.testing.assert_close(ops.fold(upstream[0], size, kernel, **options), expected[0])
    assert torch.autograd.gradcheck(lambda v: ops.unfold(v, kernel, **options), x, fast_mode=True)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64)
    conv = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}[ndim]
    want = conv(x, weight, None, options["stride"], options["padding"], options["dilation"])
    torch.testing.assert_close((weight.flatten(1) @ columns).view_as(want), want)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpooling_with_pairs_undoes_pooling(ndim):
    pool = {1: ops.max_pool1d, 2: ops.max_pool2d, 3: ops.max_pool3d}[ndim]
    unpool = {1: ops.max_unpool1d, 2: ops.max_unpool2d, 3: ops.max_unpool3d}[ndim]
    x = torch.rand(2, 3, *(7,) * ndim) + 1
    pads = ((1, 0),) * ndim
    values, places = pool(x, 2, 2, pads, return_indices=True)
    back = unpool(values, places, 2, 2, pads)
    assert back.shape == x.shape
    assert torch.equal(back[back != 0].sort().values, values.flatten().sort().values)
    assert torch.equal(back[back != 0], x[back != 0])


def test_global_pools():
    for ndim in (1, 2, 3):
        x = torch.randn(2, 3, *(4,) * ndim)
        mean, largest = getattr(ops, f"global_avg_pool{ndim}d"), getattr(ops, f"global_max_pool{ndim}d")
        torch.testing.assert_close(mean(x).flatten(1), x.flatten(2).mean(2))
        torch.testing.assert_close(largest(x).flatten(1), x.flatten(2).amax(2))


def test_integers_that_torch_leaves_out():
    x = torch.tensor([[[3, 1, 2, 5]]])
    assert ops.max_pool1d(x, 2).tolist() == [[[3, 5]]]
    assert ops.max_pool1d(x, 2, return_indices=True)[1].tolist() == [[[0, 3]]]


def test_adaptive_pool1d_keeps_an_axis():
    x = torch.randn(1, 2, 5)
    assert torch.equal(ops.adaptive_avg_pool1d(x, (None,)), x)


def test_errors_are_caught_as_torchs_are():
    for kind in (RuntimeError, ValueError, ConvlensError):
        with pytest.raises(kind):
            ops.max_pool2d(X, 9)
