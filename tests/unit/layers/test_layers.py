"""Layers: torch.nn's constructors, printed form and state_dict keys; our paddings, flip and algorithm on top."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch.nn.utils import parametrize

from convlens import layers
from convlens.errors import ArgumentError, ShapeError

NAMES = [n for n in layers.__all__ if n.startswith(("Conv", "Lazy", "MaxPool", "AvgPool", "LPPool", "Adaptive"))]
NAMES.remove("ConvBlock2d")  # torch has none


@pytest.mark.parametrize("name", [*NAMES, "Unfold", "Fold", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"])
def test_constructors_begin_as_torch_has_them(name):
    ours = list(inspect.signature(getattr(layers, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.nn, name)).parameters.values())
    for own, torchs in zip(ours, theirs, strict=False):
        assert own.name == torchs.name
        assert own.default == torchs.default
    assert all(extra.kind is extra.KEYWORD_ONLY for extra in ours[len(theirs) :])


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_printed_form_state_dict_and_value_are_torchs(ndim, kind):
    name = f"{kind}{ndim}d"
    arguments = {"stride": 2, "padding": 1, "groups": 2, "bias": False, "dilation": 2}
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(4, 6, 3, **arguments)
    torch.manual_seed(0)
    ours = getattr(layers, name)(4, 6, 3, **arguments)
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 4, *(9,) * ndim)
    torch.testing.assert_close(ours(x), theirs(x))


def test_printed_form_shows_what_is_ours():
    layer = layers.Conv2d(
        1, 1, 3, padding=((1, 0), (0, 2)), padding_mode="symmetric", flip=True, algorithm="im2col"
    )
    assert repr(layer) == (
        "Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1), padding=((1, 0), (0, 2)), padding_mode=symmetric, "
        "flip=True, algorithm=im2col)"
    )
    assert repr(layers.MaxPool2d(2, padding="same", padding_mode="reflect")).endswith("padding_mode=reflect)")
    assert "padding=same" in repr(layers.LPPool2d(2, 2, padding="same"))
    assert repr(layers.MaxPool2d(2)) == repr(torch.nn.MaxPool2d(2))


@pytest.mark.parametrize("padding", ["same", "full", ((1, 0), (0, 2)), 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
def test_paddings_of_a_convolution(padding, mode):
    layer = layers.Conv2d(2, 3, 3, stride=2, padding=padding, padding_mode=mode)
    x = torch.randn(1, 2, 7, 8)
    by_hand = {"same": ((1, 1), (0, 1)), "full": ((2, 2), (2, 2)), 1: ((1, 1), (1, 1))}.get(padding, padding)
    torch_mode = {"zeros": "constant", "symmetric": None}.get(mode, mode)
    if torch_mode is None:
        rows = [max(-1 - i, i if i < 7 else 13 - i) for i in range(-by_hand[0][0], 7 + by_hand[0][1])]
        columns = [max(-1 - i, i if i < 8 else 15 - i) for i in range(-by_hand[1][0], 8 + by_hand[1][1])]
        bordered = x[:, :, rows][:, :, :, columns]
    else:
        bordered = torch.nn.functional.pad(x, (*by_hand[1], *by_hand[0]), mode=torch_mode)
    want = torch.nn.functional.conv2d(bordered, layer.weight, layer.bias, 2)
    torch.testing.assert_close(layer(x), want)


def test_flip_is_true_convolution():
    layer = layers.Conv1d(1, 1, 2, bias=False, flip=True)
    layer.weight.data = torch.tensor([[[1.0, 10.0]]])
    assert layer(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist() == [[[12.0, 23.0]]]


@pytest.mark.parametrize("name", [f"Lazy{kind}{n}d" for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)])
def test_lazy_layers_become_ours(name):
    ndim = int(name[-2])
    lazy = getattr(layers, name)(4, 3, groups=2, padding=1)
    lazy(torch.randn(1, 6, *(5,) * ndim))
    assert type(lazy) is getattr(layers, name.removeprefix("Lazy"))
    assert lazy.in_channels == 6
    assert lazy.bias.shape == (4,)


def test_deepcopy_save_and_load(tmp_path):
    net = layers.Sequential(layers.Conv2d(1, 4, 3, padding="same", flip=True), layers.MaxPool2d(2, padding="same"))
    twin = copy.deepcopy(net)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(1, 1, 7, 7)
    torch.testing.assert_close(twin(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "make", [lambda: layers.Conv2d(3, 4, 3, padding="same"), lambda: layers.MaxPool2d(3, 2, "same")]
)
def test_compile_takes_a_layer_whole(make):
    layer = make()
    x = torch.randn(1, 3, 9, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_transposed_output_size():
    down, up = layers.Conv2d(1, 1, 3, 2, 1), layers.ConvTranspose2d(1, 1, 3, 2, 1)
    x = torch.randn(1, 1, 12, 11)
    assert up(down(x), output_size=x.shape).shape == x.shape
    with pytest.raises(ArgumentError, match=r"from 11 to 12 .*\(6-1\)\*2 - 2 \+ 1\*\(3-1\) \+ 1 = 11"):
        up(down(x), output_size=(13, 11))
    assert layers.ConvTranspose2d(1, 1, 3, 2, "same")(x).shape[2:] == (24, 22)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.Conv2d(3, 4, 3, groups=2), "in_channels.*2.*set in_channels=2 or 4"),
        (lambda: layers.Conv2d(4, 3, 3, groups=2), "out_channels.*multiple of groups=2"),
        (lambda: layers.Conv2d(4, 4, 3, groups=0), "groups must be a positive integer"),
        (lambda: layers.Conv2d(1, 1, 0), "kernel_size: expected 1 or more"),
        (lambda: layers.Conv2d(1, 1, (3, 3, 3)), "kernel_size: expected 1 or 2 numbers"),
        (lambda: layers.Conv2d(1, 1, 3, padding="mirror"), "'valid', 'same'"),
        (lambda: layers.Conv2d(1, 1, 3, padding_mode="mirror"), "padding_mode: expected one of"),
        (lambda: layers.Conv2d(1, 1, 3, padding=-1), "padding"),
        (lambda: layers.ConvTranspose2d(1, 1, 3, padding_mode="reflect"), "padding_mode"),
        (lambda: layers.MaxPool2d(2, padding_mode="mirror"), "padding_mode"),
        (lambda: layers.Maxout(0), "pieces"),
        (lambda: layers.MaxNorm(0), "limit"),
    ],
)
def test_constructors_refuse_in_words(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_e_maxout():
    x = torch.tensor([[1.0, 5.0, 2.0, -3.0]])
    assert layers.Maxout(2)(x).tolist() == [[5.0, 2.0]]
    image = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert layers.Maxout(3)(image).shape == (2, 2, 3, 4)
    assert torch.autograd.gradcheck(layers.Maxout(3), image)
    assert layers.Maxout(3, dim=-3)(image).shape == (2, 2, 3, 4)
    with pytest.raises(ShapeError, match="give the layer before it 8 outputs"):
        layers.Maxout(4)(image)
    assert repr(layers.Maxout(3)) == "Maxout(pieces=3, dim=1)"


def test_e_step_and_the_curves():
    x = torch.tensor([-1.0, 0.0, 1.0])
    assert layers.Step()(x).tolist() == [0.0, 0.0, 1.0]
    assert layers.Step(2.0)(x).tolist() == [0.0, 0.0, 0.0]
    assert repr(layers.Step()) == "Step(threshold=0.0)"
    e = torch.exp(torch.tensor(1.0))
    torch.testing.assert_close(layers.Sigmoid()(x), torch.tensor([1 / (1 + e), 0.5, e / (1 + e)]))
    torch.testing.assert_close(layers.Tanh()(x)[2], (e - 1 / e) / (e + 1 / e))
    assert layers.ReLU()(x).tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(layers.LeakyReLU(0.1)(x)[0], torch.tensor(-0.1))
    torch.testing.assert_close(layers.PReLU(init=0.25)(x)[0], torch.tensor(-0.25))
    torch.testing.assert_close(layers.Swish()(x), x * layers.Sigmoid()(x))
    torch.testing.assert_close(layers.SELU()(x)[2], torch.tensor(1.0507009873554805))
    torch.testing.assert_close(layers.Softmax(0)(x).sum(), torch.tensor(1.0))


def test_spatial_dropout_drops_whole_maps():
    torch.manual_seed(0)
    kept = layers.Dropout2d(0.5)(torch.ones(4, 32, 5, 5)).flatten(2)
    assert (kept == kept[..., :1]).all()
    assert 0 < (kept[..., 0] == 0).float().mean() < 1


def test_i8_weight_limits():
    torch.manual_seed(0)
    layer = layers.Conv2d(4, 3, 5)
    layer.weight.data *= torch.tensor([0.01, 10.0, 20.0]).view(3, 1, 1, 1)
    short = layer.weight.data[0].clone()
    assert layers.clip_weight_norms_(layers.Sequential(layer), 2.0) == 2
    torch.testing.assert_close(layer.weight.data.flatten(1).norm(dim=1)[1:], torch.tensor([2.0, 2.0]))
    assert torch.equal(layer.weight.data[0], short)
    up = layers.ConvTranspose2d(4, 3, 5)
    layers.max_norm(up, 0.5)
    torch.testing.assert_close(up.weight.transpose(0, 1).flatten(1).norm(dim=1), torch.full((3,), 0.5))
    up(torch.randn(1, 4, 3, 3)).sum().backward()
    assert up.parametrizations.weight.original.grad.isfinite().all()
    parametrize.remove_parametrizations(up, "weight")
    rule = layers.MaxNorm(1.0)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rule, weight)
    rule(torch.zeros(2, 2, requires_grad=True)).sum().backward()
    assert repr(rule) == "MaxNorm(limit=1.0, dim=0)"
