"""Networks to measure whole: some of `convlens.models`, and third-party ones where timm is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from convlens import layers, models
from convlens.bench.stand_in import without_torchvision
from convlens.errors import ArgumentError, UnsupportedError
from convlens.models.summary import summary

__all__ = ["NetCase", "net_cases", "plain_torch"]

_DEFAULT = (
    "lenet5", "convnet-s", "convnet-m", "resnet20", "resnet56", "resnet18", "resnet50", "vgg11", "mobilenet-v2",
    "googlenet", "convnext-tiny", "resnet1d", "c3d-small",
)  # fmt: skip
_THIRD_PARTY = ("timm/resnet26", "timm/mobilenetv3_large_100")
_USUAL_SHAPE = (3, 224, 224)
_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class NetCase:
    """A network with random weights; ``input_shape`` is one input's, ``(channels, *size)``.

    ``name`` is one of `convlens.models`, ``timm/NAME``, or ``module:function``, the user's code that returns one.
    """

    name: str
    input_shape: tuple[int, ...]

    def plain(self) -> torch.nn.Module:
        """The network of torch's own layers, in eval mode, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.name.startswith("timm/"):
                model = _from_timm(self.name.removeprefix("timm/"))
            elif ":" in self.name:
                model = _from_function(self.name)
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

    Args:
        names: of `convlens.models`, ``timm/NAME``, or ``module:function`` for a function that returns a
            ``torch.nn.Module``; the latter two take pictures of 3×224×224, or of the shape that is written behind
            an @, as in ``timm/resnet18@3,128,128``.

    Raises:
        ArgumentError: a name that neither has, or a shape that is none.
    """
    wanted = list(names)
    if not wanted:
        wanted = [*_DEFAULT, *(_THIRD_PARTY if importlib.util.find_spec("timm") else ())]
    cases = []
    for asked in wanted:
        name, at, sizes = asked.partition("@")
        shape = _shape(sizes) if at else None
        if name.startswith("timm/") or ":" in name:
            cases.append(NetCase(name, shape or _USUAL_SHAPE))
        else:
            entry = models.info(name)
            cases.append(NetCase(entry.name, shape or (entry.in_channels, *entry.input_size)))
    return cases


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if len(sizes) < 2 or not all(size.isdecimal() and int(size) for size in sizes):
        raise ArgumentError("names", "channels and sizes behind the @, as in 3,224,224", repr(text))
    return tuple(map(int, sizes))


def _from_function(name: str) -> torch.nn.Module:
    module, _, function = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError("names", "module:function that can be imported here", f"{name} ({error})") from error
    model = build()
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError("names", "a function that returns a torch.nn.Module", type(model).__name__)
    return model


def _from_timm(name: str) -> torch.nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise UnsupportedError("names", "timm installed", f"timm/{name}", "pip install timm, or name others")
    with without_torchvision():
        import timm
    if not timm.is_model(name):
        raise ArgumentError("names", "a network that timm has (timm.list_models())", f"timm/{name}")
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
