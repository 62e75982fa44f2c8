"""Networks to measure whole: some of `convlens.models`, and third-party ones where timm is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from convlens import layers, models
from convlens.errors import ArgumentError, MissingExtraError
from convlens.models.summary import summary

__all__ = ["NetCase", "net_cases", "plain_torch"]

_DEFAULT = (
    "lenet5", "convnet-s", "convnet-m", "resnet20", "resnet56", "resnet18", "resnet50", "vgg11", "mobilenet-v2",
    "googlenet", "convnext-tiny", "resnet1d", "c3d-small",
)  # fmt: skip
_THIRD_PARTY = ("timm/regnety_004", "timm/efficientnet_lite0")
_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class NetCase:
    """A network with random weights; ``input_shape`` is one input's, ``(channels, *size)``."""

    name: str
    input_shape: tuple[int, ...]

    def plain(self) -> torch.nn.Module:
        """The network of torch's own layers, in eval mode, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.name.startswith("timm/"):
                model = _from_timm(self.name.removeprefix("timm/"))
            else:
                model = plain_torch(models.create(self.name))
            for module in model.modules():  # fresh statistics would make batch norm nothing
                if isinstance(module, _BATCH_NORMS) and module.running_var is not None:
                    module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                    module.running_var.uniform_(0.5, 1.5)
        return model.eval()

    def macs(self) -> int:
        """Multiply-adds of one input."""
        return summary(self.plain(), self.input_shape).macs


def net_cases(names: Iterable[str] = ()) -> list[NetCase]:
    """The networks called ``names``; by default a set of `convlens.models`, and two of timm's if that is there.

    Raises:
        ArgumentError: a name that neither has.
    """
    wanted = list(names)
    if not wanted:
        wanted = [*_DEFAULT, *(_THIRD_PARTY if importlib.util.find_spec("timm") else ())]
    cases = []
    for name in wanted:
        if name.startswith("timm/"):
            cases.append(NetCase(name, (3, 224, 224)))
        else:
            entry = models.info(name)
            cases.append(NetCase(entry.name, (entry.in_channels, *entry.input_size)))
    return cases


def _from_timm(name: str) -> torch.nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm", f"network timm/{name}") from error
    if not timm.is_model(name):
        raise ArgumentError("names", "networks that timm has", f"timm/{name}")
    model: torch.nn.Module = timm.create_model(name, pretrained=False)
    return model


def plain_torch(model: torch.nn.Module) -> torch.nn.Module:
    """``model`` with our layers exchanged for torch's, in place: what a peer is given. Returns ``model``."""
    for name, child in list(model.named_children()):
        if isinstance(child, layers.ConvBlock2d):
            setattr(model, name, plain_torch(child.parts()))
        else:
            plain_torch(child)
    kind: Any = type(model)
    if kind.__module__.startswith("convlens.layers"):
        theirs = getattr(torch.nn, kind.__name__, None)
        if theirs is not None and issubclass(kind, theirs):
            model.__class__ = theirs
    return model
