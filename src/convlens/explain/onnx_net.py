"""An ONNX file as a ``torch.nn.Module``, so that everything here can look inside it.

The library that does this, onnx2torch, needs torchvision, whose wheels do not load beside every build of torch. So
the operators that convolutional nets are made of are read here, about sixty. A file with another one is refused by
name, and a net that does not answer as onnxruntime does is not opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import ConvlensError, MissingExtraError, ModelFileError, PathError, ShapeError
from convlens.explain.onnx_operators import BUILDERS, Node

__all__ = ["OnnxNet", "load_onnx", "onnx_net"]

_TOLERANCE = 1e-3


class OnnxNet(nn.Module):
    """A graph run node by node.

    Layers carry the names that their weights have in the file (``layer1.0.conv1``), others their operator's. What
    only computes shapes is no layer.
    """

    def __init__(self, nodes: Sequence[Node], stored: dict[str, Tensor], source: str, result: str) -> None:
        super().__init__()
        self._source, self._result = source, result
        self._steps: list[tuple[Any, tuple[str, ...], tuple[str, ...], str]] = []
        self._numbers: dict[str, Tensor] = {}  # whole numbers: sizes and places, which are no weights
        self._buffers_of: dict[str, str] = {}
        sizes = _only_sizes(nodes, stored)
        for node in nodes:
            layer = BUILDERS[node.kind](node)
            held = {id(tensor) for tensor in layer.parameters()}
            taken = [
                name for place, name in enumerate(node.inputs) if not (held and place and name in node.stored)
            ]
            for name in taken:
                self._keep(name, stored)
            if set(node.outputs) <= sizes:
                object.__setattr__(self, f"_plumbing_{len(self._steps)}", layer)
            else:
                self._place(_layer_name(node), layer)
            self._steps.append((layer, tuple(taken), node.outputs, node.kind))
        if isinstance(stored.get(result), Tensor):
            raise ModelFileError("ONNX: the output is a constant.")

    def _keep(self, name: str, stored: dict[str, Tensor]) -> None:
        value = stored.get(name)
        if value is None or name in self._numbers or name in self._buffers_of:
            return
        if value.is_floating_point():
            self._buffers_of[name] = f"constant_{len(self._buffers_of)}"
            self.register_buffer(self._buffers_of[name], value.float() if value.dtype != torch.float64 else value)
        else:
            self._numbers[name] = value

    def _place(self, name: str, layer: nn.Module) -> None:
        parent: nn.Module = self
        *path, leaf = name.split(".")
        for part in path:
            inner = parent._modules.get(part)
            if inner is None:
                inner = nn.Module()
                parent.add_module(part, inner)
            parent = inner
        taken, number = leaf, 2
        while hasattr(parent, taken):
            taken, number = f"{leaf}_{number}", number + 1
        parent.add_module(taken, layer)

    def forward(self, input: Tensor) -> Tensor:
        """The graph's result for a batch."""
        values: dict[str, Any] = {self._source: input, "": None} | self._numbers
        values |= {name: getattr(self, buffer) for name, buffer in self._buffers_of.items()}
        for layer, inputs, outputs, _ in self._steps:
            found = layer(*(values[name] for name in inputs))
            made = found if isinstance(found, tuple) else (found,)
            values.update(zip(outputs, made, strict=False))
        result: Tensor = values[self._result]
        return result


def load_onnx(path: str | Path) -> Any:
    """The checked protocol buffer of an ONNX file.

    Raises:
        MissingExtraError: the libraries of ``convlens[onnx]`` are not installed.
        PathError: no such file.
        ModelFileError: not an ONNX file, or an inconsistent one.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - the answers are compared with its
    except ImportError as error:
        raise MissingExtraError(str(error.name), "onnx", "looking inside an ONNX file") from error
    if not Path(path).is_file():
        raise PathError(f"{path}: no such file.")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # protobuf and onnx raise types of their own for damaged files
        raise ModelFileError(f"{path} is not an ONNX file that can be read: {error}") from error


def onnx_net(model: Any, input_shape: Sequence[int]) -> OnnxNet:
    """Build the module of a graph with one input, and see that it answers as onnxruntime does.

    Args:
        model: from `load_onnx`.
        input_shape: ``(channels, *size)`` of one input, float32.

    Raises:
        ModelFileError: an operator that is not read, more than one input, or an answer unlike onnxruntime's.
        ShapeError: the net does not take ``input_shape``.
    """
    import onnx

    stored = {one.name: _tensor(one) for one in model.graph.initializer}
    free = [one.name for one in model.graph.input if one.name not in stored]
    if len(free) != 1:
        raise ModelFileError(f"ONNX: expected one input, received {len(free)}: {', '.join(free) or 'none'}.")
    nodes = []
    unknown = set()
    for one in model.graph.node:
        attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in one.attribute}
        if one.op_type == "Constant" and "value" in attributes:
            stored[one.output[0]] = attributes["value"]
        elif one.op_type in BUILDERS and one.domain in ("", "ai.onnx"):
            inputs = tuple(one.input)
            kept = {name: stored[name] for name in inputs if name in stored}
            node = Node(one.op_type, one.name or one.output[0], attributes, inputs, tuple(one.output), kept)
            if inputs and all(name in stored for name in inputs if name):
                stored[one.output[0]] = _folded(
                    node
                )  # weights that pass through Identity, sizes made of constants
            else:
                nodes.append(node)
        else:
            unknown.add(one.op_type)
    if unknown:
        raise ModelFileError(
            f"ONNX: operators that are not read: {', '.join(sorted(unknown))}. "
            f"Read are: {', '.join(sorted(BUILDERS))}."
        )
    try:
        net = OnnxNet(nodes, stored, free[0], model.graph.output[0].name).eval()
        _compared(net, model, free[0], tuple(input_shape))
    except ConvlensError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise ModelFileError(f"ONNX: the graph cannot be read as a net: {error}") from error
    return net


def _compared(net: OnnxNet, model: Any, source: str, shape: tuple[int, ...]) -> None:
    """Raise unless ``net`` answers a random input as onnxruntime does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    probe = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        wanted = session.run([model.graph.output[0].name], {source: probe.numpy()})[0]
    except Exception as error:  # onnxruntime raises types of its own
        raise ShapeError("input_shape", "a shape that the ONNX net takes", shape, str(error)) from error
    with torch.no_grad():
        given = net(probe).numpy()
    most = float(np.abs(wanted).max()) or 1.0
    if given.shape != wanted.shape or not np.abs(given - wanted).max() <= _TOLERANCE * most:
        raise ModelFileError("ONNX: the net as read here does not answer as onnxruntime does; it is not opened.")


def _folded(node: Node) -> Tensor:
    """The value of a node whose inputs are all stored."""
    with torch.no_grad():
        value: Tensor = BUILDERS[node.kind](_unstored(node))(*(node.stored.get(name) for name in node.inputs))
    return value


def _unstored(node: Node) -> Node:
    """The node with its weights as inputs, for those builders that would take them up."""
    return node if node.kind not in ("Gemm", "MatMul") else dataclasses.replace(node, stored={})


def _only_sizes(nodes: Sequence[Node], stored: dict[str, Tensor]) -> set[str]:
    """Names of values that depend on shapes and constants alone."""
    sizes = {""} | set(stored)
    for node in nodes:
        if node.kind == "Shape" or set(node.inputs) <= sizes:
            sizes |= set(node.outputs)
    return sizes


def _layer_name(node: Node) -> str:
    """The name its weight has in the file, without ``.weight``; else the node's own, or its operator's."""
    for name in node.inputs[1:2]:
        owner, dot, leaf = name.rpartition(".")
        if name in node.stored and dot and leaf in ("weight", "w", "kernel") and _is_path(owner):
            return owner
    own = node.name.strip("/").replace("/", ".")
    if own and _is_path(own) and not own.split(".")[-1].isdigit():
        return own
    return node.kind.lower()


def _is_path(text: str) -> bool:
    return all(part.replace("_", "").isalnum() for part in text.split("."))


def _tensor(proto: Any) -> Tensor:
    import onnx

    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(proto)))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return _tensor(value) if type(value).__name__ == "TensorProto" else value
