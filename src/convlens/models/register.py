"""The register of networks: names, what each is for, and how it is built. Imports no torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convlens.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from convlens.models.network import Network

__all__ = ["ModelInfo", "create", "info", "names", "smallest_size"]

TIMM_PREFIX = "timm/"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a registered name stands for.

    Attributes:
        name: the name, as `create` takes it.
        ndim: number of spatial axes of the input (1 signals and sequences, 2 pictures, 3 volumes).
        in_channels: channels of the published net; what `create` uses when none are given.
        num_classes: classes of the published net; what `create` uses when none are given.
        input_size: spatial size of the published net's input; what `create` uses when none is given.
        about: one line for lists.
        source: the paper.
        home: ``"file:function"`` inside this package.
    """

    name: str
    ndim: int
    in_channels: int
    num_classes: int
    input_size: tuple[int, ...]
    about: str
    source: str
    home: str


_SOURCES = {
    "alexnet": "Krizhevsky, Sutskever, Hinton 2012; Krizhevsky 2014 (arXiv 1404.5997)",
    "c3d": "after Tran et al. 2015",
    "convnet": "after Jordan 2024 (arXiv 2404.00498)",
    "convnext": "Liu et al. 2022 (arXiv 2201.03545)",
    "googlenet": "Szegedy et al. 2015 (arXiv 1409.4842)",
    "lenet": "LeCun, Bottou, Bengio, Haffner 1998",
    "mobilenet": "Howard et al. 2017 (arXiv 1704.04861); Sandler et al. 2018 (arXiv 1801.04381)",
    "net39": "lecture row F3",
    "nin": "Lin, Chen, Yan 2014 (arXiv 1312.4400)",
    "resnet": "He, Zhang, Ren, Sun 2016 (arXiv 1512.03385)",
    "signals": "Wang, Yan, Oates 2017; Alipanahi et al. 2015; Hu et al. 2015",
    "vgg": "Simonyan, Zisserman 2015 (arXiv 1409.1556)",
}

# name, home, in_channels, num_classes, input_size, about
_ENTRIES: list[tuple[str, str, int, int, tuple[int, ...], str]] = [
    ("alexnet", "alexnet:alexnet", 3, 1000, (227, 227), "two towers, response normalisation"),
    ("alexnet-2014", "alexnet:alexnet_2014", 3, 1000, (224, 224), "one tower"),
    ("c3d-small", "c3d:c3d_small", 1, 10, (16, 32, 32), "volumes and video, 3×3×3 windows"),
    ("convnet-m", "convnet:convnet_m", 3, 10, (32, 32), "small and fast, for 32×32 colour"),
    ("convnet-s", "convnet:convnet_s", 1, 10, (28, 28), "small and fast, for 28×28"),
    ("convnext-tiny", "convnext:convnext_tiny", 3, 1000, (224, 224), "depthwise 7×7, layer norm"),
    ("fcn1d", "signals:fcn1d", 1, 2, (96,), "signals: three windows and a global mean"),
    ("genome1d", "signals:genome1d", 4, 2, (57,), "one-hot sequences: motif finder"),
    ("googlenet", "googlenet:googlenet", 3, 1000, (224, 224), "windows of several sizes side by side"),
    ("lenet5", "lenet:lenet5", 1, 10, (28, 28), "LeNet-5 with ReLU and max pooling"),
    ("lenet5-1998", "lenet:lenet5_1998", 1, 10, (28, 28), "LeNet-5 as published"),
    ("mobilenet-v1", "mobilenet:mobilenet_v1", 3, 1000, (224, 224), "depthwise 3×3 and 1×1 in turn"),
    ("mobilenet-v2", "mobilenet:mobilenet_v2", 3, 1000, (224, 224), "inverted residual blocks"),
    ("net39", "net39:net39", 3, 10, (39, 39), "three convolutions, one dense layer"),
    ("nin", "nin:nin", 3, 1000, (224, 224), "1×1 layers after each window, no dense layer"),
    ("nin32", "nin:nin32", 3, 10, (32, 32), "the same for 32×32"),
    ("resnet18", "resnet:resnet18", 3, 1000, (224, 224), "residual, 18 layers"),
    ("resnet1d", "resnet:resnet1d", 1, 2, (96,), "signals: residual, windows 8, 5, 3"),
    ("resnet20", "resnet:resnet20", 3, 10, (32, 32), "residual for 32×32, 20 layers"),
    ("resnet34", "resnet:resnet34", 3, 1000, (224, 224), "residual, 34 layers"),
    ("resnet3d-18", "resnet:resnet3d_18", 3, 400, (16, 112, 112), "volumes and video: residual, 18 layers"),
    ("resnet50", "resnet:resnet50", 3, 1000, (224, 224), "residual bottlenecks, 50 layers"),
    ("resnet56", "resnet:resnet56", 3, 10, (32, 32), "residual for 32×32, 56 layers"),
    ("spectral-patch", "signals:spectral_patch", 156, 3, (5, 5), "hyperspectral patches, bands as channels"),
    ("spectral-pixel", "signals:spectral_pixel", 156, 3, (1, 1), "hyperspectral pixels: windows over the bands"),
    ("spectral1d", "signals:spectral1d", 1, 3, (156,), "spectra: windows over the bands"),
    ("vgg11", "vgg:vgg11", 3, 1000, (224, 224), "3×3 all the way, 11 layers"),
    ("vgg16", "vgg:vgg16", 3, 1000, (224, 224), "3×3 all the way, 16 layers"),
    ("vgg19", "vgg:vgg19", 3, 1000, (224, 224), "3×3 all the way, 19 layers"),
]

_REGISTER = {
    name: ModelInfo(name, len(size), channels, classes, size, about, _SOURCES[home.split(":")[0]], home)
    for name, home, channels, classes, size, about in _ENTRIES
}


def names() -> list[str]:
    """Every registered name, sorted. ``timm/NAME`` is accepted too when timm is installed."""
    return sorted(_REGISTER)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_BY_PLAIN_NAME = {_plain(name): name for name in _REGISTER}


def info(name: str) -> ModelInfo:
    """What ``name`` stands for. Case, hyphens and underscores do not matter (``ResNet-18`` = ``resnet18``).

    Raises:
        ArgumentError: nothing of that name; the text names the nearest.
    """
    known = _BY_PLAIN_NAME.get(_plain(name)) if isinstance(name, str) else None
    if known is None:
        near = difflib.get_close_matches(_plain(str(name)), _BY_PLAIN_NAME, n=1)
        fix = f"did you mean {_BY_PLAIN_NAME[near[0]]!r}?" if near else None
        raise ArgumentError("name", f"one of {', '.join(names())} or {TIMM_PREFIX}NAME", repr(name), fix)
    return _REGISTER[known]


def create(
    name: str,
    in_channels: int | None = None,
    num_classes: int | None = None,
    input_size: int | tuple[int, ...] | list[int] | None = None,
    **options: Any,
) -> Network:
    """Build a network with fresh weights, scaled to the fan-in of each unit (row I4).

    Args:
        name: one of `names`, or ``timm/NAME``.
        in_channels: channels of the input, 1 or more; the published net's when None.
        num_classes: length of the output, 1 or more; the published net's when None.
        input_size: spatial size of one sample, one number for all axes or one per axis; the published
            net's when None. Nets that end in global pooling take any size from the smallest legal one up;
            nets that flatten (`lenet5`, `net39`, …) are built for exactly this size.
        options: what the network's own builder takes besides (its docstring says).

    Returns:
        An ``nn.Module`` from ``(batch, in_channels, *input_size)`` to ``(batch, num_classes)`` logits, with the
        two parts ``features`` and ``classifier`` (row F5) and ``config``, the arguments that build it again.

    Raises:
        ArgumentError: an unknown name or option, or a count below 1.
        ShapeError: the input is too small; the text gives the smallest legal size.
        MissingExtraError: ``timm/NAME`` without timm.
    """
    if isinstance(name, str) and name.startswith(TIMM_PREFIX):
        module = importlib.import_module("convlens.models.timm_bridge")
        counts = _count("in_channels", in_channels, 3), _count("num_classes", num_classes, 1000)
        bridged: Network = module.create(name, *counts, input_size, options)
        return bridged
    entry = info(name)
    channels = _count("in_channels", in_channels, entry.in_channels)
    classes = _count("num_classes", num_classes, entry.num_classes)
    size = _size(input_size, entry)
    file, function = entry.home.split(":")
    builder: Callable[..., Network] = getattr(importlib.import_module(f"convlens.models.{file}"), function)
    _check_options(entry.name, builder, options)
    network = builder(channels, classes, size, **options)
    network.check_size(size, "input_size")
    network.config = {
        "name": entry.name, "in_channels": channels, "num_classes": classes, "input_size": list(size), **options,
    }  # fmt: skip
    return network


def smallest_size(name: str) -> tuple[int, ...]:
    """The smallest spatial size for which ``name`` can be built, by window arithmetic; nothing is run.

    A net may pad more when its input is small (LeNet-5 does), so the answer is the fixed point of
    "the smallest size that a net built for this size takes".
    """
    import torch

    entry = info(name)
    size = entry.input_size
    with torch.device("meta"):
        while (smaller := create(name, input_size=size).smallest_size) != size:
            size = smaller
    return size


def _count(argument: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(argument, "a whole number, 1 or more", repr(value))
    return value


def _size(value: int | tuple[int, ...] | list[int] | None, entry: ModelInfo) -> tuple[int, ...]:
    if value is None:
        return entry.input_size
    size = (value,) * entry.ndim if isinstance(value, int) else tuple(value)
    if len(size) != entry.ndim or not all(isinstance(n, int) and n >= 1 for n in size):
        expected = f"one whole number for each of the {entry.ndim} axes of {entry.name}, 1 or more"
        others = [other.name for other in _REGISTER.values() if other.ndim == len(size) != entry.ndim]
        fix = f"nets for {len(size)} axes: {', '.join(others)}" if others else None
        raise ShapeError("input_size", expected, value, fix)
    return size


def _check_options(name: str, builder: Any, options: dict[str, Any]) -> None:
    accepted = list(inspect.signature(builder).parameters)[3:]
    for option in options:
        if option not in accepted:
            expected = (
                f"one of the options of {name} ({', '.join(accepted)})" if accepted else f"no option ({name})"
            )
            raise ArgumentError("options", expected, repr(option))
    for option in ("dropout", "stochastic_depth"):
        if option in options and not 0.0 <= options[option] < 1.0:
            raise ArgumentError(option, "a probability from 0 up to but without 1", options[option])
    if "width" in options and not options["width"] > 0.0:
        raise ArgumentError("width", "a multiplier above 0", options["width"])
