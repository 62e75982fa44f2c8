"""`export`: write the file, try it, and keep it only if it answers as the run does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import convlens.ops  # noqa: F401 - registers the operators that are decomposed below
from convlens.data import Preprocessing
from convlens.errors import ArgumentError, MissingExtraError, TrainingError
from convlens.export.gate import (
    Route,
    RouteAnswers,
    agree,
    gate_inputs,
    labelled_inputs,
    predictor_routes,
    raw_form,
)
from convlens.export.portable import Portable
from convlens.modelfile import Predictor, load
from convlens.modelfile.atomic import storage_errors
from convlens.modelfile.card import model_path

__all__ = ["CARD_NAME", "FORMATS", "OPSET", "Exported", "export"]

Format = Literal["onnx", "safetensors", "torch"]
FORMATS: tuple[str, ...] = get_args(Format)
OPSET = 18
"""ONNX operator set of exported files."""
CARD_NAME = "model_card.json"
"""Class names and model card in a ``torch`` archive: ``torch.export.load(path, extra_files={CARD_NAME: ""})``."""

_SUFFIX = {"onnx": ".onnx", "safetensors": ".safetensors", "torch": ".pt2"}
_LARGEST_SIDE = 65_535


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and the proof that it answers alike.

    Attributes:
        path: the file.
        format: one of `FORMATS`.
        inputs: how many inputs went through every route.
        routes: the routes that agreed.
        largest_gap: largest difference of a probability between any route and evaluation.
        labels_changed: for quantised files, the share of the inputs whose label changed.
        accuracy: for quantised files, accuracy before and after on labelled data of the dev part, and how many
            samples that were; None where the data are not to be had.
    """

    path: Path
    format: str
    inputs: int
    routes: tuple[str, ...]
    largest_gap: float
    labels_changed: float | None = None
    accuracy: tuple[float, float, int] | None = None

    @property
    def accuracy_cost(self) -> float | None:
        """Accuracy before less accuracy after quantisation, 0–1; None where it could not be measured."""
        return None if self.accuracy is None else self.accuracy[0] - self.accuracy[1]


def export(
    run: str | Path,
    to: Format = "onnx",
    out: str | Path | None = None,
    int8: bool = False,
    routes: Mapping[str, Callable[[Sequence[Any]], npt.NDArray[np.float32]]] | None = None,
) -> Exported:
    """Export a run and check the file before it is kept.

    Args:
        run: a run directory or model file.
        to: ``"onnx"``, ``"torch"`` (read with ``torch.export.load``) or ``"safetensors"``.
        out: the file; default beside the model file.
        int8: for ONNX: weights as 8-bit integers (dynamic quantisation); of that file the gate reports what it
            costs instead of asking for equal probabilities.
        routes: further ways to ask the run, by name, from raw inputs (as `Preprocessing.decode` takes them) to
            probabilities; they must agree before anything is written. ``convlens export`` gives training's
            evaluation and the server.

    Raises:
        ArgumentError: another format, or ``int8`` with one that has no such form.
        MissingExtraError: the libraries of ``convlens[onnx]`` are not installed.
        TrainingError: the exported file answers differently; nothing is kept.
        StorageError: the file cannot be written.
    """
    if to not in FORMATS:
        raise ArgumentError("to", f"one of {', '.join(FORMATS)}", repr(to))
    if int8 and to != "onnx":
        raise ArgumentError("int8", "False, or to='onnx'", True)
    predictor = load(run)
    source = model_path(run)
    target = Path(out) if out is not None else source.with_name(f"model{'-int8' if int8 else ''}{_SUFFIX[to]}")
    if target.resolve() == source.resolve():
        target = source.with_name(f"exported{_SUFFIX[to]}")
    inputs = gate_inputs(predictor)
    answers = predictor_routes(predictor, inputs)
    raw = [raw_form(predictor.preprocessing, one) for one in inputs]
    answers += [RouteAnswers(name, other(raw)) for name, other in (routes or {}).items()]
    if (difference := agree(answers)) is not None:
        raise TrainingError(f"{target} was not written: {difference}.")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is a rename within one disk
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
            trial = Path(folder) / target.name
            route = _WRITERS[to](predictor, trial, source, int8)
            answers.append(RouteAnswers(f"the {to} file", route(inputs)))
            if not int8 and (difference := agree(answers)) is not None:
                raise TrainingError(f"{target} was not kept: {difference}.")
            costs = _costs(predictor, route, answers) if int8 else (None, None)
            os.replace(trial, target)
    gap = max(float(np.abs(a.probabilities - answers[0].probabilities).max()) for a in answers)
    return Exported(target, to, len(inputs), tuple(a.route for a in answers), gap, *costs)


def _costs(
    predictor: Predictor, route: Route, answers: Sequence[RouteAnswers]
) -> tuple[float, tuple[float, float, int] | None]:
    """What quantisation changes: share of other labels, and accuracy before and after where there are labels."""
    labelled = labelled_inputs(predictor)
    before, after = answers[0].probabilities.argmax(1), answers[-1].probabilities.argmax(1)
    if labelled is None:
        return float((before != after).mean()), None
    inputs, labels = labelled
    before, after = predictor_routes(predictor, inputs)[0].probabilities.argmax(1), route(inputs).argmax(1)
    accuracy = float((before == labels).mean()), float((after == labels).mean()), len(labels)
    return float((before != after).mean()), accuracy


def _exported_program(predictor: Predictor) -> torch.export.ExportedProgram:
    """The portable net as a graph of plain aten operators with free batch size and, for pictures, free size."""
    preprocessing = predictor.preprocessing
    portable = Portable(predictor.model, preprocessing, predictor.card.multilabel)
    example, free = _example(preprocessing)
    with _quiet():
        program = torch.export.export(portable, (example,), dynamic_shapes=(free,))
        table = {torch.ops.convlens.conv.default: _as_aten}
        plain: torch.export.ExportedProgram = program.run_decompositions(table)
    for module in plain.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            # where each operator came from: names and paths of this machine, new in every process
            for key in ("from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn"):
                node.meta.pop(key, None)
    return plain


def _example(preprocessing: Preprocessing) -> tuple[Tensor, dict[int, Any]]:
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=65_536)}
    if preprocessing.kind != "image":
        dtype = torch.uint8 if preprocessing.dtype == "uint8" else torch.float32
        return torch.zeros(2, *preprocessing.shape, dtype=dtype), free
    # sizes unlike the net's, so that none of them is taken for a constant
    height, width = (size + 7 for size in preprocessing.size)
    free |= {
        axis: torch.export.Dim(name, min=1, max=_LARGEST_SIDE) for axis, name in ((1, "height"), (2, "width"))
    }
    return torch.zeros(2, height, width + 2, preprocessing.channels, dtype=torch.uint8), free


def _as_aten(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool | None,
    algorithm: str,
) -> Tensor:
    """Our registered convolution in torch's own terms; uneven padding is written out."""
    before, after = padding[::2], padding[1::2]
    if before != after:
        flat = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
        input, before = nn.functional.pad(input, flat), [0] * len(stride)
    out: Tensor = torch.ops.aten.convolution(
        input, weight, bias, stride, before, dilation, False, [0] * len(stride), groups
    )
    return out


def _write_onnx(predictor: Predictor, path: Path, source: Path, int8: bool) -> Route:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise MissingExtraError(str(error.name), "onnx", "export to ONNX") from error
    with _quiet():
        program = torch.onnx.export(
            _exported_program(predictor),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images" if predictor.preprocessing.kind == "image" else "inputs"],
            output_names=["probabilities"],
        )
    if program is None:
        raise TrainingError("torch.onnx.export gave no model.")
    model = program.model_proto
    _describe(model, predictor)
    path.write_bytes(model.SerializeToString(deterministic=True))
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _quiet():
            quantize_dynamic(path, path, weight_type=QuantType.QUInt8)
    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: np.concatenate([session.run(None, {name: one[None]})[0] for one in inputs])


def _describe(model: Any, predictor: Predictor) -> None:
    """Class names and model card as the file's metadata; names of scopes, which vary, are taken out."""
    card = predictor.metadata
    model.producer_name = "convlens"
    model.producer_version = str(card["convlens_version"])
    name, classes = card["architecture"].get("name"), len(predictor.class_names)
    model.doc_string = f"{name} with its preprocessing; probabilities of {classes} classes"
    del model.metadata_props[:]
    for key, value in _facts(predictor).items():
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True))
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    # shapes in between are inferred by whoever reads the file; those the optimiser left can be out of date
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]


def _facts(predictor: Predictor) -> dict[str, Any]:
    """What an exported file says about itself besides its graph."""
    card = predictor.metadata
    kept = ("architecture", "preprocessing", "multilabel", "data", "test_accuracy", "test_evaluations", "created")
    return {
        "class_names": list(predictor.class_names),
        **{name: card[name] for name in kept},
        "convlens_version": card["convlens_version"],
        "convlens_format": 1,
    }


def _write_torch(predictor: Predictor, path: Path, source: Path, int8: bool) -> Route:
    program = _exported_program(predictor)
    # a stored example would be a pickle inside the archive
    program._example_inputs = None
    with _quiet():
        facts = json.dumps(_facts(predictor), sort_keys=True, ensure_ascii=False)
        torch.export.save(program, path, extra_files={CARD_NAME: facts})
        module = torch.export.load(path).module()

    def route(inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return np.concatenate([module(torch.from_numpy(one[None].copy())).numpy() for one in inputs])

    return route


def _write_safetensors(predictor: Predictor, path: Path, source: Path, int8: bool) -> Route:
    shutil.copyfile(source, path)
    copied = load(path)
    return lambda inputs: predictor_routes(copied, inputs)[1].probabilities


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch, "safetensors": _write_safetensors}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about libraries that aren't needed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
