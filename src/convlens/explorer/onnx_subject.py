"""An ONNX file as something to explore: where its net begins and ends, and how raw inputs become its input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from convlens.data import Preprocessing
from convlens.errors import ArgumentError, ModelFileError
from convlens.explain.onnx_net import OnnxNet, load_onnx, onnx_net

__all__ = ["OnnxSubject", "open_onnx"]

_ANSWERS = ("Softmax", "LogSoftmax", "Sigmoid")


class OnnxSubject:
    """What an ONNX file says.

    Attributes:
        net: the module, from normalised inputs to scores.
        preprocessing: None where the file doesn't hold any.
        class_names: empty where it holds none.
        data: what it was trained on, as our exports tell it.
        input_shape: ``(channels, *size)``.
    """

    def __init__(self, path: str, input_shape: Sequence[int] | None) -> None:
        model = load_onnx(path)
        facts = _facts(model)
        self.preprocessing = _preprocessing(facts)
        self.class_names = tuple(str(name) for name in facts.get("class_names", ()))
        self.data = dict(facts.get("data") or {})
        begin = _normalised(model) if self.preprocessing is not None else None
        end = _scores(model)
        if self.preprocessing is not None and begin is not None:
            self.input_shape = self.preprocessing.shape
        else:
            self.preprocessing = None
            self.input_shape = tuple(input_shape) if input_shape else _shape(model)
        if begin is not None or end is not None:
            model = _between(model, begin, end)
        self.net: OnnxNet = onnx_net(model, self.input_shape)


def open_onnx(path: str, input_shape: Sequence[int] | None = None) -> OnnxSubject:
    """Read an ONNX file.

    Args:
        path: the file.
        input_shape: ``(channels, *size)``, needed where the file leaves sizes open.

    Raises:
        MissingExtraError: the libraries of ``convlens[onnx]`` are not installed.
        PathError: no such file.
        ModelFileError: damaged, or with an operator that is not read.
        ArgumentError: the file leaves its sizes open and ``input_shape`` was not given.
    """
    return OnnxSubject(path, input_shape)


def _facts(model: Any) -> dict[str, Any]:
    """The metadata that convlens' own exports carry; {} for other files."""
    if model.producer_name != "convlens":
        return {}
    try:
        return {one.key: json.loads(one.value) for one in model.metadata_props}
    except ValueError as error:
        raise ModelFileError(f"ONNX: metadata cannot be read: {error}") from error


def _preprocessing(facts: dict[str, Any]) -> Preprocessing | None:
    if "preprocessing" not in facts:
        return None
    try:
        return Preprocessing.model_validate(facts["preprocessing"])
    except ValidationError as error:
        raise ModelFileError(f"ONNX: its preprocessing cannot be read: {error}") from error


def _normalised(model: Any) -> str | None:
    """Name of the value that our export's preprocessing ends with."""
    return next((node.output[0] for node in model.graph.node if "offset" in node.input), None)


def _scores(model: Any) -> str | None:
    """Name of the scores before a last softmax; None where the graph ends with scores."""
    last = next((node for node in model.graph.node if model.graph.output[0].name in node.output), None)
    return last.input[0] if last is not None and last.op_type in _ANSWERS else None


def _between(model: Any, begin: str | None, end: str | None) -> Any:
    from onnx.utils import Extractor

    stored = {one.name for one in model.graph.initializer}
    source = begin or next(one.name for one in model.graph.input if one.name not in stored)
    try:
        return Extractor(model).extract_model([source], [end or model.graph.output[0].name])
    except Exception as error:  # onnx's checker raises a type of its own
        raise ModelFileError(f"ONNX: the part between {source} and {end} cannot be taken: {error}") from error


def _shape(model: Any) -> tuple[int, ...]:
    stored = {one.name for one in model.graph.initializer}
    first = next((one for one in model.graph.input if one.name not in stored), None)
    sizes = [] if first is None else [axis.dim_value for axis in first.type.tensor_type.shape.dim]
    if len(sizes) < 3 or 0 in sizes[1:]:
        raise ArgumentError(
            "input_shape", "channels and sizes, e.g. 3,224,224, as this ONNX file leaves them open", None
        )
    return tuple(sizes[1:])
