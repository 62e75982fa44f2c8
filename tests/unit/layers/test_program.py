"""Whole nets as programs: equal results, and no stale ones whatever changes between calls."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import convlens
from convlens.layers.program import Built, in_place, program_of
from convlens.layers.program import watch as watching
from convlens.layers.program.watch import Watch
from convlens.planner import settings


@pytest.fixture(autouse=True)
def estimated():
    """Choices without measuring, so that tests are quick and alike everywhere."""
    before = settings.current().mode
    settings._change(mode="estimate")
    yield
    settings._change(mode=before)


class Block(nn.Module):
    def __init__(self, a, b, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.relu = nn.ReLU(inplace=True)
        self.side = (
            nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if stride > 1 else None
        )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.side is None else self.side(x)))


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Two(nn.Module):
    """Returns two maps, one of them its input's, and keeps a value for later use."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        first = self.conv(x)
        return torch.cat([first, self.last(first.relu())], 1), first


class Elements(nn.Module):
    """Norms without a convolution, a padded shortcut as CIFAR's ResNets have it, a join, views of what stays."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(3)
        self.down, self.gate = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv(self.first(x)), 2)
        x = nn.functional.silu(self.norm(x))
        side = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = nn.functional.relu(self.down(x) + side)
        x = x * nn.functional.hardsigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = torch.cat([x, x[:, :5], x.flip(1)], 1)
        return nn.functional.adaptive_max_pool2d(x, 1).flatten(1), x.flatten(2).mean(2)


def residual():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Block(16, 16), Block(16, 24, 2), Squeeze(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7),
    )  # fmt: skip


def inverted():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.BatchNorm2d(12), nn.Hardswish(),
        nn.Conv2d(12, 20, 1), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def chain(conv, norm, pool):
    return nn.Sequential(conv(2, 8, 3), norm(8), nn.ReLU(), pool(2), conv(8, 8, 2))


NETS = {
    "residual": (residual, (2, 3, 16, 20)),
    "inverted": (inverted, (2, 3, 17, 16)),
    "two": (Two, (2, 3, 9, 9)),
    "elements": (Elements, (2, 3, 22, 18)),
    "signal": (lambda: chain(nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d), (3, 2, 40)),
    "volume": (lambda: chain(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d), (2, 2, 10, 9, 8)),
}  # fmt: skip


def pair(name):
    make, shape = NETS[name]
    torch.manual_seed(0)
    x = torch.randn(shape)
    net = make()
    net(x)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    plain = net.eval()
    return plain, convlens.accelerate(copy.deepcopy(plain), report=False), x


def leaves(value):
    return value if isinstance(value, tuple) else (value,)


def same(plain, net, x):
    for want, got in zip(leaves(plain(x)), leaves(net(x)), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)
        assert got.stride() == want.stride()


def with_program(net, x):
    for _ in range(3):
        net(x)
    program = program_of(net, x)
    assert isinstance(program, Built), program
    return program


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_program_gives_what_the_layers_give(name):
    plain, net, x = pair(name)
    for _ in range(4):
        same(plain, net, x)
    with_program(net, x)
    same(plain, net, torch.randn_like(x))
    same(plain, net, torch.cat([x, x])[1:])  # another batch
    if x.dim() == 4:
        same(plain, net, x.contiguous(memory_format=torch.channels_last))
    with torch.inference_mode():
        same(plain, net, torch.randn_like(x))


@torch.no_grad()
def test_results_stay_when_the_next_call_comes():
    _, net, x = pair("two")
    with_program(net, x)
    first = net(x)
    kept = [t.clone() for t in first]
    net(torch.randn_like(x))
    assert all(torch.equal(t, k) for t, k in zip(first, kept, strict=True))


def _data(net):
    net[4].conv1.weight.data.mul_(1.5)


def _in_place(net):
    net[0].weight[0, 0, 0, 0] += 1.0


def _statistics(net):
    net[1].running_mean[3] += 1.0


def _another_layer(net):
    net[2] = nn.Tanh()


def _attribute(net):
    net[1].eps = 0.1


def _another_tensor(net):
    net[9].bias = nn.Parameter(torch.ones(7))


def _stride(net):
    net[4].conv1.stride = net[4].conv2.stride = (1, 1)
    net[4].conv1.dilation = (2, 2)
    net[4].conv1.padding = (2, 2)


def _half_trained(net):
    net[1].train()


CHANGES = (_data, _in_place, _statistics, _another_layer, _attribute, _another_tensor, _stride, _half_trained)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_nothing_is_computed_with_what_was(change):
    plain, net, x = pair("residual")
    with_program(net, x)
    change(plain)
    change(net)
    for _ in range(3):
        same(plain, net, x)


@torch.no_grad()
def test_hooks_see_what_they_would_see():
    plain, net, x = pair("residual")
    with_program(net, x)
    seen = []
    handle = net[4].conv1.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    same(plain, net, x)
    same(plain, net, x)
    assert len(seen) == 2
    handle.remove()
    for _ in range(3):
        same(plain, net, x)
    assert len(seen) == 2


def test_gradients_go_through_the_layers():
    plain, net, x = pair("residual")
    with torch.no_grad():
        with_program(net, x)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain(one).square().sum().backward()
    net(other).square().sum().backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-3)
    for (name, p), q in zip(plain.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_training_and_back():
    plain, net, x = pair("residual")
    for model in (plain, net):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(2):
            with torch.no_grad():
                model.eval()(x)
            model.train()(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(net(x), plain(x), rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_nan_and_infinity_come_out_as_they_would():
    plain, net, x = pair("residual")
    with_program(net, x)
    for value in (float("nan"), float("inf"), 1e38):
        bad = x.clone()
        bad[0, 0, 3, 3] = value
        torch.testing.assert_close(net(bad), plain(bad), equal_nan=True, rtol=1e-3, atol=1e-3)
    same(plain, net, x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

    def forward(self, x):
        return self.inner(x) * (2 if x.sum() > 0 else 3)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x) + torch.rand(1)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return self.conv(x.mul_(2)) + self.count


@pytest.mark.parametrize("kind", [Branching, Counting, Writing])
@torch.no_grad()
def test_what_is_no_list_of_calls_runs_as_written(kind):
    torch.manual_seed(0)
    plain = kind().eval()
    net = convlens.accelerate(copy.deepcopy(plain), report=False)
    for sign in (1, -1, 1, 1, -1):
        x = sign * torch.rand(2, 3, 8, 8)
        other = x.clone()
        torch.testing.assert_close(net(x), plain(other))
        assert torch.equal(x, other)
    assert not isinstance(program_of(net, x), Built)
    if kind is Branching:
        assert isinstance(program_of(net.inner, x), Built)


@torch.no_grad()
def test_random_numbers_are_drawn_anew():
    net = convlens.accelerate(Random().eval(), report=False)
    x = torch.rand(1, 3, 6, 6)
    assert len({float(net(x).sum()) for _ in range(5)}) == 5


@torch.no_grad()
def test_threads_at_once_do_not_mix():
    plain, net, x = pair("inverted")
    with_program(net, x)
    inputs = [torch.randn_like(x) for _ in range(4)]
    wrong = []

    def work(one):
        want = plain(one)
        wrong.extend(1 for _ in range(20) if not torch.allclose(net(one), want, rtol=2e-4, atol=2e-5))

    threads = [threading.Thread(target=work, args=(one,)) for one in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_copies_and_restore():
    plain, net, x = pair("residual")
    with_program(net, x)
    twin = copy.deepcopy(net)
    net[0].weight.zero_()
    for _ in range(3):
        same(plain, twin, x)
    convlens.layers.restore(twin)
    assert type(twin) is type(plain)
    assert torch.equal(twin(x), plain(x))


@torch.no_grad()
def test_kernels_are_chosen_within_the_program(monkeypatch, tmp_path):
    settings._change(mode="measure")
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(in_place, "_measured", lambda *given: made.append(measured(*given)) or made[-1])
    plain, net, x = pair("residual")
    program = with_program(net, x)
    same(plain, net, x)
    same(plain, net, torch.randn_like(x))
    choices = {tuple(times) for found in made for times in found.values()}
    assert any(len(names) > 1 for names in choices)
    fastest = {min(times, key=lambda name: times[name].median_us) for found in made for times in found.values()}
    assert fastest & set(program.kernels)


measured = in_place._measured


def test_a_change_of_a_dict_shows_in_its_version():
    module = Squeeze(8)
    watch = Watch(module, [p.detach() for p in module.parameters()])
    assert watch.same()
    module.training = False
    assert not watch.same()
    module.training = True
    assert watch.same()
    module.down.stride = (1, 1)  # another object of the same value
    assert watch.same()
    handle = module.down.register_forward_hook(lambda *_: None)
    assert not watch.same()
    handle.remove()
    assert watch.same()
    module.up = nn.Conv2d(4, 8, 1)
    assert not watch.same()


def test_without_versions_the_contents_are_compared(monkeypatch):
    monkeypatch.setattr(watching, "_tag_offset", lambda: None)
    test_a_change_of_a_dict_shows_in_its_version()
