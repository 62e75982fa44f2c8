"""``timm/NAME``, with a stand-in for timm (its import needs a torchvision built for this very torch)."""

import sys
import types

import pytest
import torch
from torch import nn

from convlens import models
from convlens.errors import ArgumentError, MissingExtraError, UnsupportedError


@pytest.fixture
def stand_in(monkeypatch):
    """timm's two functions and the contract used here: ``num_classes=0`` gives features and their width."""

    def create_model(name, in_chans, num_classes, depth=1):
        assert (name, num_classes) == ("tinynet", 0)
        body = nn.Sequential(nn.Conv2d(in_chans, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        body.num_features = 6
        return body

    module = types.ModuleType("timm")
    module.is_model = lambda name: name == "tinynet"
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)


def test_timm_says_how_to_install_it_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'convlens\[timm\]'"):
        models.create("timm/tinynet")


def test_a_timm_that_fails_to_import_is_one_clear_error(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsupportedError, match="torchvision that belongs to this torch"):
        models.create("timm/tinynet")


def test_timm_networks_come_through_the_same_door(stand_in):
    network = models.create("timm/tinynet", in_channels=5, num_classes=4, input_size=16, depth=2)
    assert network(torch.zeros(1, 5, 16, 16)).shape == (1, 4)
    again = models.create(**network.config)
    assert again.state_dict().keys() == network.state_dict().keys()


def test_what_timm_refuses_is_an_argument_error(stand_in):
    with pytest.raises(ArgumentError, match="timm knows"):
        models.create("timm/no-such-net")
    with pytest.raises(ArgumentError, match="nonsense"):
        models.create("timm/tinynet", nonsense=1)


def test_the_real_timm():
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    network = models.create("timm/resnet10t", in_channels=5, num_classes=4).eval()
    assert network(torch.zeros(1, 5, 64, 64)).shape == (1, 4)
