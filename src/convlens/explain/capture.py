"""What every layer of a net holds while it computes: caught by hooks, whatever the net is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError

__all__ = ["Captured", "capture", "capture_one", "layer_names", "named_layer", "quiet"]


@dataclass(frozen=True, slots=True)
class Captured:
    """Input and output of one layer in one forward pass; the tensors are part of the graph if it has one."""

    name: str
    kind: str
    input: Tensor
    output: Tensor


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers without sub-layers, in the order of definition; the model itself if it has none."""
    leaves = [name for name, module in model.named_modules() if not any(module.children())]
    return [name for name in leaves if name] or [""]


def named_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer called ``name``.

    Raises:
        ArgumentError: there is none; the text lists the names that are close or all of a small net.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if name not in layers:
        import difflib

        known = difflib.get_close_matches(name, layers, n=5, cutoff=0.4) or layer_names(model)[:20]
        raise ArgumentError("layer", f"the name of a layer, e.g. {', '.join(known)}", repr(name))
    return layers[name]


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode, its weights without gradients (nobody here asks); afterwards as before."""
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def capture(
    model: nn.Module,
    input: Tensor,
    layers: Sequence[str] | None = None,
    *,
    keep: Callable[[str, nn.Module, Tensor], bool] | None = None,
) -> tuple[Tensor, dict[str, Captured]]:
    """Run ``model`` on ``input`` and catch what its layers computed.

    Args:
        model: any module; its mode is left as it is.
        input: a batch as the model takes it.
        layers: names to catch; default all layers without sub-layers.
        keep: asked for each output; what it declines is not held.

    Returns:
        The model's output and the catches in the order of computation. A layer that runs several times
        is held once per run, the later ones as ``name#2``, ``name#3`` ….

    Raises:
        ArgumentError: a name that is not a layer's.
    """
    wanted = list(layers) if layers is not None else layer_names(model)
    caught: dict[str, Captured] = {}
    handles = []

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def catch(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            taken = next((value for value in inputs if isinstance(value, Tensor)), None)
            given = output[0] if isinstance(output, (tuple, list)) and output else output
            if taken is None or not isinstance(given, Tensor):
                return
            if keep is not None and not keep(name, module, given):
                return
            times = sum(key == name or key.startswith(f"{name}#") for key in caught)
            key = name if times == 0 else f"{name}#{times + 1}"
            caught[key] = Captured(key, type(module).__name__, taken, given)

        return catch

    try:
        for name in wanted:
            handles.append(named_layer(model, name).register_forward_hook(hook(name)))
        output = model(input)
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(output, (tuple, list)):
        output = output[0]
    if isinstance(output, dict):
        output = next(iter(output.values()))
    if not isinstance(output, torch.Tensor):
        raise ArgumentError("model", "a module that returns a tensor", type(output).__name__)
    return output, caught


class _Enough(Exception):
    """The layer asked for has run."""


def capture_one(model: nn.Module, input: Tensor, layer: str) -> Captured:
    """Run ``model`` on ``input`` only as far as ``layer``, and catch what that computed, in its first run.

    Raises:
        ArgumentError: no such layer, or one that this input doesn't reach.
    """
    found: list[Captured] = []

    def catch(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        taken = next((value for value in inputs if isinstance(value, Tensor)), None)
        given = output[0] if isinstance(output, (tuple, list)) and output else output
        if taken is not None and isinstance(given, Tensor):
            found.append(Captured(layer, type(module).__name__, taken, given))
            raise _Enough

    handle = named_layer(model, layer).register_forward_hook(catch)
    try:
        with contextlib.suppress(_Enough):
            model(input)
    finally:
        handle.remove()
    if not found:
        raise ArgumentError("layer", "a layer that this input reaches", repr(layer))
    return found[0]
