"""``timm/NAME``: any network of the timm library behind the same door."""

from __future__ import annotations

from typing import Any

from torch import nn

from convlens.errors import ArgumentError, MissingExtraError, UnsupportedError
from convlens.models.network import Network

__all__ = ["create"]


def create(
    name: str,
    in_channels: int,
    num_classes: int,
    input_size: int | tuple[int, ...] | list[int] | None,
    options: Any,
) -> Network:
    """A timm network without its head as ``features``, and a dense layer as ``classifier``.

    Args:
        name: ``timm/NAME``.
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: ``(height, width)`` or one number; only remembered (``img_size`` is an option where
            timm has one).
        options: passed on to ``timm.create_model`` (weights are fresh unless ``pretrained=True``).

    Raises:
        MissingExtraError: timm is not installed.
        ArgumentError: timm knows no such network, or refuses an option.
        UnsupportedError: timm is installed but cannot be imported beside this torch.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm", f"model {name!r}") from error
    except RuntimeError as error:  # torchvision's operators were built for another torch
        fix = "install the torchvision that belongs to this torch (pytorch.org lists the pairs)"
        raise UnsupportedError("name", "a timm that can be imported", f"{name!r} ({error})", fix) from error
    if not timm.is_model(name.removeprefix("timm/")):
        raise ArgumentError("name", "a network that timm knows (timm.list_models())", repr(name))
    try:
        body: nn.Module = timm.create_model(
            name.removeprefix("timm/"), in_chans=in_channels, num_classes=0, **options
        )
    except TypeError as error:
        raise ArgumentError("options", "options that timm's network takes", options, str(error)) from error
    width = int(getattr(body, "head_hidden_size", None) or body.num_features)  # type: ignore[arg-type]
    network = Network(body, nn.Linear(width, num_classes), in_channels=in_channels)
    size = None if input_size is None else [input_size] * 2 if isinstance(input_size, int) else list(input_size)
    network.config = {
        "name": name, "in_channels": in_channels, "num_classes": num_classes, "input_size": size, **options,
    }  # fmt: skip
    return network
