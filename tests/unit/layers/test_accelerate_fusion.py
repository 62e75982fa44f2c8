"""accelerate's chains: folded batch norm, one-pass blocks; train, eval, hooks, copies and files stay exact."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convlens
from convlens import layers
from convlens.layers import chains, fusion


class Basic(nn.Module):
    """A residual block as torchvision writes it: one ReLU module used twice."""

    def __init__(self, a, b, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        self.downsample = None
        if stride != 1 or a != b:
            self.downsample = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(Basic(8, 8), Basic(8, 16, 2), Basic(16, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(self.layers(x), 1)
        return self.fc(torch.flatten(x, 1))


def vgg():
    parts, channels = [], 3
    for width in (8, 16):
        parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        parts += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(5))


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip


class Branches(nn.Module):
    """The first convolution's result is used twice, so it may not be folded; functional ReLU and pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")
        self.bn = nn.BatchNorm2d(8, affine=False)
        self.side = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.bn_side = nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        side = F.relu(self.bn_side(self.side(F.max_pool2d(x, 2))))
        return torch.cat([F.max_pool2d(self.bn(x), 2), side], 1)


class Shared(nn.Module):
    """One convolution, two batch norms; a chain in a block that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.blocks = nn.Sequential(block, block)

    def forward(self, x):
        return self.blocks(self.one(self.conv(x)) + self.two(self.conv(x + 1)))


def one_d():
    return nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2))


def three_d():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1, bias=False), nn.ReLU())


NETS = {
    "resnet": (ResNet, (2, 3, 32, 32), 8),
    "vgg": (vgg, (2, 3, 16, 16), 4),
    "lenet": (lenet, (4, 1, 32, 32), 2),
    "branches": (Branches, (2, 3, 12, 12), 1),
    "shared": (Shared, (2, 3, 8, 8), 3),
    "signal": (one_d, (2, 2, 30), 1),
    "volume": (three_d, (2, 1, 6, 6, 6), 2),
}


def randomised(net, x):
    """Batch norms with statistics and weights that do something."""
    net(x)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        for name in ("running_mean", "running_var", "weight", "bias"):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and getattr(module, name) is not None:
                held = getattr(module, name).data
                held.copy_(torch.rand(held.shape, generator=generator, dtype=held.dtype) + 0.5)
    return net


def pair(name, dtype=torch.float64):
    """A plain net, its accelerated twin and an input."""
    make, shape, _ = NETS[name]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    plain = randomised(make().to(dtype), x)
    return plain, convlens.accelerate(copy.deepcopy(plain), report=False), x


def fused(net):
    return [chain for module in net.modules() for chain in fusion.chains_in(module)]


def same(net, plain, x):
    """Equal outputs without gradients, twice: while the graphs prove themselves, and after that."""
    with torch.no_grad():
        want = plain(x)
        for _ in range(2):
            got = net(x)
            torch.testing.assert_close(got, want)
            assert got.stride() == want.stride()


@pytest.fixture
def as_one(monkeypatch):
    """Counts the chains that ran as one."""
    calls = []
    real = chains.Chain._as_one
    monkeypatch.setattr(chains.Chain, "_as_one", lambda self, x: calls.append(self) or real(self, x))
    return calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETS)
def test_chains_are_found_run_and_equal(name, dtype, as_one):
    plain, net, x = pair(name, dtype)
    expected = NETS[name][2]
    assert len({id(chain) for chain in fused(net)}) == expected
    same(net.eval(), plain.eval(), x)
    assert len({id(chain) for chain in as_one}) == expected
    assert list(net.state_dict()) == list(plain.state_dict())
    assert repr(net) == repr(plain)


@pytest.mark.parametrize("name", NETS)
def test_train_eval_train_goes_as_without(name):
    plain, net, x = pair(name)
    optimizers = [torch.optim.SGD(n.parameters(), 0.05, momentum=0.9) for n in (plain, net)]
    for _ in range(3):
        for n, optimizer in zip((plain, net), optimizers, strict=True):
            n.train()
            optimizer.zero_grad()
            n(x).square().mean().backward()
            optimizer.step()
        for own, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(own.grad, theirs.grad)
        same(net.eval(), plain.eval(), x)
    for own, theirs in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("name", ["resnet", "vgg", "shared"])
def test_gradients_in_eval_mode(name):
    plain, net, x = pair(name)
    grads = []
    for n in (plain.eval(), net.eval()):
        given = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(n(given).square().sum(), [given, *n.parameters()]))
    for own, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(own, theirs)


def _by_data(net):
    for tensor in net.parameters():
        tensor.data.mul_(1.1)


def _by_new_parameter(net):
    net[0].weight = nn.Parameter(net[0].weight.detach() * 2)


def _by_statistics(net):
    net[1].running_var.mul_(3)


def _by_load(net):
    net.load_state_dict({key: value * 2 for key, value in net.state_dict().items()})


def _by_new_layer(net):
    net[2] = nn.Tanh()


def _by_removing(net):
    del net[1]


def _by_epsilon(net):
    net[1].eps = 0.1


def _by_training_the_norm(net):
    net[1].train()


def _by_float(net):
    net.float().double()


CHANGES = [
    _by_data, _by_new_parameter, _by_statistics, _by_load, _by_new_layer, _by_removing, _by_epsilon,
    _by_training_the_norm, _by_float,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_eval_mode_is_seen(change):
    plain, net, x = pair("vgg")
    same(net.eval(), plain.eval(), x)
    change(plain)
    change(net)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(x))


def test_an_attribute_that_steers_the_forward_is_seen():
    class Steered(Basic):
        skip = 1.0

        def forward(self, x):
            return self.bn1(self.conv1(x)) * self.skip if self.skip else self.conv1(x)

    torch.manual_seed(0)
    plain = Steered(3, 4).double()
    plain.skip = 2.0
    net, x = convlens.accelerate(copy.deepcopy(plain), report=False), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    for skip in (2.0, 3.0, 0.0):
        plain.skip = net.skip = skip
        same(net.eval(), plain.eval(), x)


def test_a_forward_that_traces_wrongly_keeps_its_own():
    class Lists(Basic):
        """As torchvision's DenseNet: a tensor or a list of them."""

        def forward(self, x):
            x = x.neg() if isinstance(x, torch.Tensor) else x
            return self.bn1(self.conv1(x))

    torch.manual_seed(0)
    plain = Lists(3, 4).double()
    net, x = convlens.accelerate(copy.deepcopy(plain), report=False), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    same(net.eval(), plain.eval(), x)


def test_hooks_see_what_they_saw(as_one):
    plain, net, x = pair("vgg")
    seen = {}
    for which, n in (("plain", plain.eval()), ("net", net.eval())):
        n[0].register_forward_hook(lambda m, i, o, which=which: seen.setdefault(which, o.clone()))
    same(net, plain, x)
    torch.testing.assert_close(seen["net"], seen["plain"])
    assert {chain.steps[0] for chain in as_one} == {net[3], net[6], net[9]}
    hooked = convlens.accelerate(copy.deepcopy(plain), report=False)
    assert all(chain.steps[0] is not hooked[0] for chain in fused(hooked))


def test_layers_called_by_themselves_give_their_own_result():
    plain, net, x = pair("resnet")
    same(net.eval(), plain.eval(), x)
    with torch.no_grad():
        torch.testing.assert_close(net.conv1(x), plain.conv1(x))
        torch.testing.assert_close(
            net.layers[1].downsample[0](plain.conv1(x)), plain.layers[1].downsample[0](plain.conv1(x))
        )


def test_copies_files_and_restore():
    plain, net, x = pair("resnet")
    same(net.eval(), plain.eval(), x)
    twin = copy.deepcopy(net)
    assert len(fused(twin)) == len(fused(net))
    with torch.no_grad():
        twin.layers[0].bn1.weight.mul_(2)
    same(net, plain, x)
    plain.layers[0].bn1.weight.data.mul_(2)
    same(twin, plain, x)
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    buffer.seek(0)
    same(torch.load(buffer, weights_only=False), plain, x)
    net.load_state_dict(plain.state_dict())
    same(net, plain, x)
    fresh = ResNet().double().eval()
    fresh.load_state_dict(net.state_dict())
    same(fresh, plain, x)
    for accelerated in (net, twin):
        convlens.restore(accelerated)
        assert [type(m) for m in accelerated.modules()] == [type(m) for m in plain.modules()]
        assert [list(vars(m)) for m in accelerated.modules()] == [list(vars(m)) for m in plain.modules()]
        with torch.no_grad():
            assert torch.equal(accelerated(x), plain(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
def test_other_inputs_and_modes_go_layer_by_layer(as_one):
    plain, net, x = pair("vgg", torch.float32)
    plain.eval(), net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(x), plain(x), rtol=0.05, atol=0.05)
    assert not as_one
    with torch.inference_mode():
        torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-5)
    assert as_one
    same(net, plain, x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(torch.func.vmap(net)(x[:, None]), plain(x)[:, None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(net, x)(x), plain(x), rtol=1e-4, atol=1e-5)


def test_the_table_has_chains_and_gains(capsys):
    net = randomised(vgg(), torch.randn(2, 3, 16, 16)).eval()
    convlens.accelerate(net, torch.randn(2, 3, 16, 16))
    shown = " ".join(capsys.readouterr().err.split())
    for word in ("fused", "measured gain", "interleaved"):
        assert word in shown
    actions = [row.action for row in layers.acceleration_of(net)]
    assert actions.count("fused") == 4
    assert len(fused(net)) == 4
