"""accelerate: equal outputs, gradients and keys; copies; restore; everything that has its own way of computing."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import convlens
from convlens import layers
from convlens.errors import DtypeError, UnsupportedError
from convlens.layers.redirect import Redirect, functions_called


class Standardised(nn.Conv2d):
    """Weight standardisation, as timm's StdConv2d: own forward, functional call."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def conv2d_same(x, weight, bias):
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2)


class Same(nn.Conv2d):
    """As timm's Conv2dSame: the functional call is in a helper."""

    def forward(self, x):
        return conv2d_same(x, self.weight, self.bias)


class Renamed(nn.Conv2d):
    """Only a constructor of its own."""

    def __init__(self, a, b):
        super().__init__(a, b, 3, padding=1)


class Functional(nn.Module):
    """All parameters by hand, all calls functional."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 3, 3) / 9)
        self.pool = functools.partial(F.avg_pool2d, kernel_size=2)

    def forward(self, x):
        x, places = F.max_pool2d(F.conv2d(x, self.weight, padding=1), 2, return_indices=True)
        return self.pool(F.max_unpool2d(x, places, 2))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = Renamed(8, 8)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.first(x))))


def mixed():
    """Every case in one net."""
    shared = Residual()
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(3, 2, 1),
        Standardised(8, 8, 3, padding=1),
        shared,
        shared,
        parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        parametrizations.spectral_norm(Standardised(8, 8, 1)),
        nn.ConvTranspose2d(8, 8, 2, 2),
        Same(8, 8, 3),
        Functional(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def one_d():
    return nn.Sequential(
        nn.Conv1d(2, 4, 5, 2),
        nn.GELU(),
        nn.AvgPool1d(2),
        nn.LPPool1d(2, 2),
        nn.ConvTranspose1d(4, 2, 3),
        nn.MaxPool1d(2),
    )


def three_d():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, dilation=2), nn.MaxPool3d(2), nn.Conv3d(4, 2, 1), nn.AvgPool3d(2, ceil_mode=True)
    )


def patches():
    return nn.Sequential(
        nn.Unfold(2, stride=2), nn.Fold((8, 8), 2, stride=2), nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(2)
    )


NETS = {
    "mixed": (mixed, (2, 3, 16, 16)),
    "signal": (one_d, (2, 2, 60)),
    "volume": (three_d, (1, 1, 12, 12, 12)),
    "patches": (patches, (2, 3, 8, 8)),
}


def run(net, x, upstream=None):
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    out = net(x)
    upstream = torch.ones_like(out) if upstream is None else upstream
    grads = torch.autograd.grad(out, [x, *net.parameters()], upstream, allow_unused=True)
    return out.detach(), grads


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_keys_stay(name, training):
    make, shape = NETS[name]
    torch.manual_seed(0)
    net = make().double()
    if training and name == "mixed":  # spectral_norm's power iteration moves at every training call
        parametrize.remove_parametrizations(net[7], "weight")
    net.train(training)
    x = torch.randn(shape, dtype=torch.float64)
    reference = copy.deepcopy(net)
    keys, printed = list(net.state_dict()), repr(net)
    assert convlens.accelerate(net, report=False) is net
    assert list(net.state_dict()) == keys
    assert repr(net) == printed
    upstream = torch.randn_like(reference(x))
    reference.load_state_dict(net.state_dict())
    want, want_grads = run(reference, x, upstream)
    got, got_grads = run(net, x, upstream)
    torch.testing.assert_close(got, want)
    for own, theirs in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("name", NETS)
def test_restore_gives_every_class_back(name):
    make, shape = NETS[name]
    net = make().eval()
    classes = [type(m) for m in net.modules()]
    bases = [type(m).__bases__ for m in net.modules()]
    attributes = [set(vars(m)) for m in net.modules()]
    x = torch.randn(shape)
    want = net(x)
    convlens.accelerate(net, x, report=False)
    assert any(new is not old for new, old in zip(map(type, net.modules()), classes, strict=True))
    assert convlens.restore(net) is net
    for module, kind, base in zip(net.modules(), classes, bases, strict=True):
        assert type(module) is kind or (
            type(module).__bases__ == base and kind.__name__.startswith("Parametrized")
        )
    assert [set(vars(m)) for m in net.modules()] == attributes
    assert torch.equal(net(x), want)
    convlens.restore(net)


def test_what_became_of_each_module():
    net = mixed()
    convlens.accelerate(net, report=False)
    found = {row.name: (row.kind, row.action) for row in layers.acceleration_of(net)}
    assert found["0"] == ("Conv2d", "replaced")
    assert found["3"] == ("Standardised", "redirected")
    assert found["4.second"] == ("Renamed", "replaced")
    assert found["6"] == ("Conv2d", "replaced")
    assert found["7"] == ("Standardised", "redirected")
    assert found["9"] == ("Same", "redirected")
    assert found["10"] == ("Functional", "redirected")
    assert "4" not in found
    assert isinstance(net[3], Standardised)
    assert type(net[3]).__name__ == "Standardised"
    assert type(net[0]) is layers.Conv2d


def test_the_calls_do_reach_convlens(monkeypatch):
    calls = []
    real = convlens.ops.convolution._conv
    monkeypatch.setattr(
        convlens.ops.convolution, "_conv", lambda ndim, *args: calls.append(ndim) or real(ndim, *args)
    )
    net = mixed().eval()
    convlens.accelerate(net, report=False)
    with torch.no_grad():
        net(torch.randn(1, 3, 16, 16))
    # conv, std, twice (depthwise, plain), weight norm, spectral, same, functional
    assert len(calls) == 10


def test_copies_and_files(tmp_path):
    net = nn.Sequential(Standardised(3, 4, 3), Renamed(4, 4), nn.Conv2d(4, 2, 1)).eval()
    convlens.accelerate(net, report=False)
    x = torch.randn(1, 3, 8, 8)
    want = net(x)
    actions = [row.action for row in layers.acceleration_of(net)]
    for twin in (copy.deepcopy(net), copy.copy(net)):
        assert torch.equal(twin(x), want)
        assert [row.action for row in layers.acceleration_of(twin)] == actions
    twin = convlens.restore(copy.deepcopy(net))
    assert type(twin[0]) is Standardised
    assert type(net[0]) is not Standardised
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    fresh = nn.Sequential(Standardised(3, 4, 3), Renamed(4, 4), nn.Conv2d(4, 2, 1)).eval()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(fresh(x), want)


def test_a_whole_module_survives_torch_save():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    convlens.accelerate(net, report=False)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(twin(x), net(x))
    reduced = nn.Sequential(Standardised(3, 4, 3))
    convlens.accelerate(reduced, report=False)
    rebuild, arguments, *_ = reduced[0].__reduce_ex__(2)
    assert arguments == (Standardised,)
    assert type(rebuild(*arguments)) is type(reduced[0])


def test_hooks_go_on_working():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3))
    seen = []
    net[0].register_forward_pre_hook(lambda module, args: seen.append("before"))
    net[1].register_forward_hook(lambda module, args, out: seen.append("after"))
    convlens.accelerate(net, report=False)
    net(torch.randn(1, 3, 8, 8))
    assert seen == ["before", "after"]


def test_parametrizations_come_and_go():
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), parametrizations.orthogonal(Standardised(4, 4, 1))
    )
    x = torch.randn(1, 3, 8, 8)
    want = net(x)
    convlens.accelerate(net, report=False)
    torch.testing.assert_close(net(x), want)
    twin = convlens.restore(copy.deepcopy(net))  # leaves the original accelerated, though torch shares the class
    assert type(twin[0]).__bases__ == (nn.Conv2d,)
    assert type(net[0]).__bases__ == (layers.Conv2d,)
    torch.testing.assert_close(twin(x), want)
    for module in net:
        parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(net(x), want)
    assert type(net[0]) is layers.Conv2d
    convlens.restore(net)
    assert [type(m) for m in net] == [nn.Conv2d, Standardised]


def with_own_forward():
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: x
    return layer


def with_flip():
    layer = nn.Conv2d(3, 4, 3)
    layer.flip = "something else"
    return layer


class OnlyAdaptive(nn.Module):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 1)


class ByHand(nn.Conv2d):
    def forward(self, x):
        return torch.einsum("nchw,oc->nohw", x, self.weight[:, :, 0, 0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.LazyConv2d(4, 3), "lazy: run one batch"),
        (lambda: torch.fx.symbolic_trace(nn.Sequential(Functional())), None),
        (with_own_forward, "replaced on the instance"),
        (with_flip, "attributes of its own"),
        (OnlyAdaptive, "calls only adaptive_avg_pool2d"),
        (lambda: ByHand(3, 4, 1), "its own computation"),
    ],
)
def test_what_is_left_has_a_reason(make, reason):
    module = make()
    kind = type(module)
    convlens.accelerate(module, report=False)
    assert type(module) is kind
    found = layers.acceleration_of(module)
    assert [row.action for row in found] == ["left"] * len(found)
    if reason:
        assert reason in found[0].reason


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_scripted_and_quantised_modules_are_left():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))
    convlens.accelerate(scripted, report=False)
    quantised = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    convlens.accelerate(quantised, report=False)
    assert "quantised" in layers.acceleration_of(quantised)[0].reason


def test_a_difference_restores_the_model(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    monkeypatch.setattr(layers.Conv2d, "compute", staticmethod(lambda *args, **kwargs: 1.1 * F.conv2d(*args[:3])))
    with pytest.raises(UnsupportedError, match="relative difference"):
        convlens.accelerate(net, torch.randn(1, 3, 8, 8), report=False)
    assert type(net[0]) is nn.Conv2d
    assert net[1].training


def test_example_inputs_of_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 2)

        def forward(self, a, b):
            return {"sum": self.conv(a + b), "shape": a.shape}

    a = torch.randn(1, 1, 4, 4)
    for example in ((a, a), {"a": a, "b": a}):
        convlens.accelerate(Two(), example, report=False)


def test_the_table(capsys):
    convlens.accelerate(nn.Sequential(nn.Conv2d(1, 1, 1), nn.LazyConv2d(1, 1)))
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("convlens.accelerate", "replaced", "Conv2d", "left", "LazyConv2d"):
        assert word in shown.err
    convlens.accelerate(nn.Linear(1, 1))
    assert "neither convolves nor pools" in capsys.readouterr().err


@pytest.mark.parametrize("door", [convlens.accelerate, convlens.restore])
def test_only_modules(door):
    with pytest.raises(DtypeError, match="torch.nn.Module"):
        door(torch.zeros(1))


def test_accelerating_twice_is_once():
    net = convlens.accelerate(mixed(), report=False)
    classes = [type(m) for m in net.modules()]
    convlens.accelerate(net, report=False)
    assert [type(m) for m in net.modules()] == classes


def test_compile_and_export_take_an_accelerated_net():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.MaxPool2d(2), Functional2()).eval()
    x = torch.randn(1, 3, 12, 12)
    want = net(x)
    convlens.accelerate(net, report=False)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), want)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), want)


class Functional2(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x, 2)


def test_a_traced_graph_of_an_accelerated_net():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.AvgPool2d(2), nn.ConvTranspose2d(4, 2, 2))
    convlens.accelerate(net, report=False)
    x = torch.randn(1, 3, 12, 12)
    traced = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(traced(x), net(x))
    targets = {node.target for node in traced.graph.nodes}
    assert {convlens.ops.conv2d, convlens.ops.avg_pool2d, convlens.ops.conv_transpose2d} <= targets


def test_redirect_covers_every_name_of_a_function():
    x = torch.randn(1, 2, 6, 6)
    with Redirect():
        for call in (
            lambda: torch.conv2d(x, x.new_ones(1, 2, 2, 2)),
            lambda: F.max_pool2d(x, 2),
            lambda: torch.max_pool2d(x, 2),
            lambda: F.adaptive_max_pool2d(x, 2, return_indices=True)[0],
            lambda: F.max_pool2d(x, 2, return_indices=True)[1],
            lambda: F.lp_pool2d(x, 2, 2),
        ):
            assert call().shape[0] == 1
        with pytest.raises(convlens.errors.ShapeError):
            F.max_pool2d(x, 9)


def test_reading_code_finds_helpers_closures_and_partials():
    assert "conv2d" in functions_called(Same(1, 1, 1))
    assert functions_called(Functional()) >= {"conv2d", "max_pool2d", "avg_pool2d", "max_unpool2d"}
    assert functions_called(Residual()) == set()

    class Decorated(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return self.helper(x)

        def helper(self, x):
            return [F.conv1d(x, x) for _ in range(2)]

    assert "conv1d" in functions_called(Decorated())
