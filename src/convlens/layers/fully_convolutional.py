"""A classifier with a dense head as a net that takes larger images (LECTURES B8, A6): 1×1 ⇔ dense.

A dense layer on an ``H×W`` map of features *is* a convolution with an ``H×W`` window, and the dense layers after
it are 1×1 convolutions. Written so, the net slides over an image of any size and gives one answer per place; on an
image of the size it was trained with there is one place, and the answer is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from convlens.errors import ArgumentError, DtypeError, UnsupportedError
from convlens.layers.accelerate import restore
from convlens.layers.convolution import Conv1d, Conv2d, Conv3d
from convlens.layers.pooling import AvgPool1d, AvgPool2d, AvgPool3d, MaxPool1d, MaxPool2d, MaxPool3d

__all__ = ["fully_convolutional"]

_CONV: dict[int, Any] = {1: Conv1d, 2: Conv2d, 3: Conv3d}
_AVG: dict[int, Any] = {1: AvgPool1d, 2: AvgPool2d, 3: AvgPool3d}
_MAX: dict[int, Any] = {1: MaxPool1d, 2: MaxPool2d, 3: MaxPool3d}
_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

_ELEMENTWISE_MODULES = (
    nn.Dropout,
    nn.AlphaDropout,
    nn.Identity,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign),
)
_ELEMENTWISE_NAMES = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh"),
        *("hardswish", "hardsigmoid", "hardtanh", "softplus", "dropout", "contiguous", "clone", "detach", "float"),
        *("add", "sub", "mul", "truediv", "neg", "clamp"),
    }
)
_TRIED = (28, 32, 224, 64, 39, 96, 128, 227, 299, 256, 160, 192, 384, 48, 40, 36, 112, 240, 320, 512)


@dataclass(frozen=True)
class _Spread:
    """What a vector of the head has become: ``channels`` maps, of ``size`` for an image of the original size."""

    channels: int
    size: tuple[int, ...]

    @property
    def is_vector(self) -> bool:
        return all(n == 1 for n in self.size)


def fully_convolutional(model: nn.Module, input_shape: Sequence[int] | None = None) -> nn.Module:
    """Turn a trained classifier into a net that accepts larger inputs.

    Flattening goes, the first dense layer becomes a convolution over the whole map, further ones 1×1 convolutions;
    global and adaptive pooling becomes pooling with the window it has at the original size. The model given is not
    changed. state_dict keys stay, dense weights get window axes.

    Args:
        model: a module that `torch.fx` can trace, with its weights.
        input_shape: ``(channels, *size)`` that the model was trained with. May be left out where flattening makes
            only one size possible.

    Returns:
        A module for ``(N, channels, *larger)`` that gives ``(N, classes, *places)``; at the original size one
        place, with the model's output. Padding inside the net means that in a larger image a place sees its
        neighbours where the model saw zeros.

    Raises:
        UnsupportedError: a part of the head that has no convolutional form, named.
        ArgumentError: an ``input_shape`` that the model does not take, or none where one is needed.
    """
    if not isinstance(model, nn.Module):
        raise DtypeError("model", "a torch.nn.Module", type(model).__name__)
    training = model.training
    own = restore(copy.deepcopy(model)).eval()
    shape = tuple(input_shape) if input_shape is not None else _only_shape(own)
    example = torch.zeros((1, *shape), dtype=_dtype(own), device=_device(own))
    example.copy_(torch.linspace(-1, 1, example.numel()).view_as(example))
    expected = _run(own, example)
    graph = _traced(own)
    _Shapes(graph).run(example)
    converted = _Conversion(graph, len(shape) - 1).convert()
    got = _run(converted, example)
    if got.flatten(1).shape != expected.flatten(1).shape or not torch.allclose(
        got.flatten(1), expected.flatten(1), rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1e-12)
    ):
        raise UnsupportedError(
            "model", "equal output at the original size", "another output", "report the network"
        )
    return converted.train(training)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def _run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        out = model(x)
    except Exception as error:
        raise ArgumentError(
            "input_shape", "a shape that the model takes", tuple(x.shape[1:]), f"({error})"
        ) from error
    if not isinstance(out, torch.Tensor):
        raise UnsupportedError("model", "one tensor as output", type(out).__name__)
    return out


def _only_shape(model: nn.Module) -> tuple[int, ...]:
    """The one input shape that a flattening head allows."""
    first = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    how = "pass input_shape=(channels, height, width)"
    if first is None:
        raise ArgumentError("model", "a net with convolutions", type(model).__name__, how)
    shadow = copy.deepcopy(model).to("meta")
    sides = [*_TRIED, *(n for n in range(4, 513) if n not in _TRIED)]
    fitting = [n for n in sides if _takes(shadow, (first.in_channels, *(n,) * len(first.kernel_size)))][:1]
    if not fitting:
        raise ArgumentError("input_shape", "the shape that the model was trained with", None, how)
    beside = (first.in_channels, *(2 * fitting[0] + 16,) * len(first.kernel_size))
    if _takes(shadow, beside):
        raise ArgumentError(
            "input_shape", "the shape that the model was trained with: it takes several", None, how
        )
    return (first.in_channels, *(fitting[0],) * len(first.kernel_size))


@torch.no_grad()
def _takes(shadow: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        shadow(torch.empty((1, *shape), device="meta"))
    except (RuntimeError, ValueError):
        return False
    return True


_WHOLE = (nn.Linear, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd)


class _Tracer(fx.Tracer):
    """Layers of torch.nn and of ours are not entered, nor what others derive from them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, _WHOLE) or type(m).__module__.startswith("convlens.layers")
        return whole or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise UnsupportedError(
            "model",
            "a forward without branches on values, which torch.fx can trace",
            f"{type(error).__name__}: {error}",
        ) from error
    return fx.GraphModule(model, graph, type(model).__name__)


class _Shapes(fx.Interpreter):
    """Runs the graph once and notes the shape of every tensor."""

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


class _Conversion:
    """One pass over the graph: what is spread out (`_Spread`) is followed from the flattening to the output."""

    def __init__(self, module: fx.GraphModule, ndim: int) -> None:
        self.module = module
        self.ndim = ndim
        self.spread: dict[fx.Node, _Spread] = {}

    def convert(self) -> fx.GraphModule:
        for node in list(self.module.graph.nodes):
            if node.op in ("call_module", "call_function", "call_method"):
                self._convert_node(node)
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        if output.args[0] not in self.spread:
            raise UnsupportedError(
                "model",
                "a head that begins with flattening or global pooling",
                "none found",
                "give the classifier",
            )
        self.module.graph.eliminate_dead_code()
        self.module.graph.lint()
        self.module.recompile()
        return self.module

    def _convert_node(self, node: fx.Node) -> None:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None or node.op == "call_function" and node.target is getattr:
            return
        layer = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = _name(node)
        if source not in self.spread:
            if "shape" in source.meta and len(source.meta["shape"]) == self.ndim + 2:
                self._convert_from_maps(node, source, layer, name)
            return
        spread = self.spread[source]
        if isinstance(layer, nn.Linear):
            self._convolve(node, layer, spread)
        elif _flattens(layer, name) or name in ("squeeze", "contiguous"):
            self._forward_input(node, source, spread)
        elif name in ("size", "shape", "dim"):
            return
        elif isinstance(layer, nn.BatchNorm1d) and spread.is_vector:
            self._exchange(node, _batch_norm(layer, self.ndim), spread)
        elif isinstance(layer, nn.LayerNorm) and spread.is_vector:
            self._exchange(node, _ChannelNorm(layer), spread)
        elif isinstance(layer, (nn.Softmax, nn.LogSoftmax)) and spread.is_vector:
            self._exchange(node, type(layer)(1), spread)
        elif isinstance(layer, _ELEMENTWISE_MODULES) or (layer is None and name in _ELEMENTWISE_NAMES):
            self.spread[node] = spread
        elif layer is None and name in ("softmax", "log_softmax") and spread.is_vector:
            node.args = (source, 1)
            node.kwargs = {}
            self.spread[node] = spread
        else:
            raise UnsupportedError(
                "model",
                "a head of dense layers, activations, dropout and batch norm",
                f"{node.name} ({type(layer).__name__ if layer is not None else name}) after the flattening",
                "make that part convolutional by hand",
            )

    def _convert_from_maps(self, node: fx.Node, source: fx.Node, layer: nn.Module | None, name: str) -> None:
        """A node that reads feature maps: flattening and global pooling are where the head begins."""
        if not self._is_on_every_path(node):  # squeeze-and-excitation looks at the whole map, whatever its size
            return
        channels, *size = source.meta["shape"][1:]
        shape = node.meta.get("shape", ())
        if _flattens(layer, name) and len(shape) == 2:
            self._forward_input(node, source, _Spread(channels, tuple(size)))
        elif (pool := _pooling(layer, name, node)) is not None:
            self._pool(node, source, pool, tuple(size), shape)

    def _is_on_every_path(self, node: fx.Node) -> bool:
        """Whether the input reaches the output through ``node`` only."""
        reached = {other for other in self.module.graph.nodes if other.op == "placeholder"}
        for other in self.module.graph.nodes:
            if other is not node and any(source in reached for source in other.all_input_nodes):
                if _name(other) not in ("size", "getattr", "dim"):
                    reached.add(other)
                if other.op == "output":
                    return False
        return True

    def _pool(
        self, node: fx.Node, source: fx.Node, pool: dict[int, Any], size: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        wanted = shape[2:] if len(shape) == self.ndim + 2 else (1,) * self.ndim
        if any(n % m for n, m in zip(size, wanted, strict=True)):
            raise UnsupportedError(
                "model",
                f"adaptive pooling whose regions are equal: {size} split into {wanted}",
                f"{node.name}, where they overlap",
                "train with an input size that divides evenly",
            )
        window = tuple(n // m for n, m in zip(size, wanted, strict=True))
        # one region slides a step at a time; several tile the map, as at the original size
        stride = tuple(1 if m == 1 else w for w, m in zip(window, wanted, strict=True))
        name = f"{node.name}_as_window"
        self.module.add_submodule(name, pool[self.ndim](window, stride))
        with self.module.graph.inserting_before(node):
            fresh = self.module.graph.call_module(name, (source,))
        fresh.meta["shape"] = (*shape[:2], *wanted)
        self._replace(node, fresh)
        if len(shape) == 2:  # mean without keepdim
            self.spread[fresh] = _Spread(shape[1], (1,) * self.ndim)

    def _forward_input(self, node: fx.Node, source: fx.Node, spread: _Spread) -> None:
        """Leave ``node`` out; what it gave is now ``source``, known to be spread."""
        with self.module.graph.inserting_before(node):
            fresh = self.module.graph.call_function(_as_is, (source,))
        self._replace(node, fresh)
        self.spread[fresh] = spread

    def _replace(self, node: fx.Node, fresh: fx.Node) -> None:
        node.replace_all_uses_with(fresh)
        self.module.graph.erase_node(node)

    def _convolve(self, node: fx.Node, layer: nn.Linear, spread: _Spread) -> None:
        if layer.in_features != spread.channels * torch.Size(spread.size).numel():
            raise UnsupportedError("model", f"{layer.in_features} features into {node.target}", spread)
        weight = layer.weight.detach()
        window = _CONV[self.ndim](
            *(spread.channels, layer.out_features, spread.size),
            bias=layer.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            window.weight.copy_(weight.view(window.weight.shape))
            if layer.bias is not None:
                window.bias.copy_(layer.bias)
        window.weight.requires_grad_(layer.weight.requires_grad)
        self._exchange(node, window, _Spread(layer.out_features, (1,) * self.ndim))

    def _exchange(self, node: fx.Node, layer: nn.Module, spread: _Spread) -> None:
        layer.train(self.module.get_submodule(str(node.target)).training)
        self.module.set_submodule(str(node.target), layer)
        self.spread[node] = spread


def _as_is(x: torch.Tensor) -> torch.Tensor:
    """Where the flattening was."""
    return x


def _name(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _flattens(layer: nn.Module | None, name: str) -> bool:
    if layer is not None:
        return isinstance(layer, nn.Flatten)
    return name in ("flatten", "view", "reshape")


def _pooling(layer: nn.Module | None, name: str, node: fx.Node) -> dict[int, Any] | None:
    """The windowed pooling that a global or adaptive one becomes."""
    kind = type(layer).__name__ if layer is not None else name
    if kind.startswith(("AdaptiveAvgPool", "adaptive_avg_pool", "GlobalAvgPool", "global_avg_pool")):
        return _AVG
    if kind.startswith(("AdaptiveMaxPool", "adaptive_max_pool", "GlobalMaxPool", "global_max_pool")):
        return _MAX
    if layer is None and name in ("mean", "amax"):
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        rank = len(node.args[0].meta["shape"])  # type: ignore[union-attr]
        if isinstance(axes, (tuple, list)) and sorted(int(a) % rank for a in axes) == list(range(2, rank)):
            return _AVG if name == "mean" else _MAX
    return None


def _batch_norm(layer: nn.BatchNorm1d, ndim: int) -> nn.Module:
    """The same normalisation of every map; parameters and statistics keep their names."""
    options = {"eps": layer.eps, "momentum": layer.momentum, "affine": layer.affine}
    fresh: nn.Module = _NORM[ndim](layer.num_features, **options, track_running_stats=layer.track_running_stats)
    fresh.load_state_dict(layer.state_dict())
    return fresh


class _ChannelNorm(nn.LayerNorm):
    """A LayerNorm over the channels at every place."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__(layer.normalized_shape, layer.eps, layer.elementwise_affine, layer.bias is not None)
        self.load_state_dict(layer.state_dict())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(N, C, *places)``."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)
