"""Everything the report shows about one run, as JSON values.

Everything about samples comes from the dev part (the test part stays locked: only the counted evaluations of
the model file speak of it). Where the data are gone, or changed since, the report says so and shows the rest.
"""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from convlens import explain
from convlens.data import Dataset, open_dataset
from convlens.errors import ConvlensError, MissingExtraError
from convlens.explorer.payload import plain, quantised, thumbnail
from convlens.modelfile import Predictor, load

__all__ = ["data_of", "run_record"]

_SAMPLES = 4  # inputs looked at from inside
_WORST = 24
_FILTERS = 64  # filters drawn of a layer
_MAPS = 32  # maps drawn of a layer
_SIDE = 64  # maps are drawn at most this many places wide
_EXCITED_LAYERS = 6
_EXCITED_CHANNELS = 12
_EXCITING = 5
_EXCITED_S = 4.0  # seconds at most for the search, and for the boxes
_JUDGED = 2048  # dev samples judged for confusion and calibration


def run_record(run: str | Path) -> dict[str, Any]:
    """The record of a finished run or of a model file alone.

    Raises:
        PathError: no such run, or one that has not finished.
        ModelFileError: not a model file of ours, or damaged.
    """
    predictor = load(run)
    predictor.model = explain.opened(predictor.model)
    card = predictor.card
    data, why_no_data = data_of(card.data, card.recipe)
    record: dict[str, Any] = {
        "title": Path(run).resolve().name,
        "model": {
            "name": card.architecture.get("name"),
            "parameters": sum(p.numel() for p in predictor.model.parameters()),
            "classes": list(card.class_names),
            "input": list(card.preprocessing.shape),
            "kind": card.preprocessing.kind,
        },
        "test_accuracy": card.test_accuracy,
        "test_evaluations": plain([e.model_dump() for e in card.test_evaluations]),
        "training": plain(card.training),
        "diagnosis": plain(card.diagnosis),
        "recipe": plain(card.recipe),
        "preprocessing": plain(card.preprocessing.model_dump(mode="json")),
        "data": plain(card.data) | {"missing": why_no_data},
        "environment": _environment(predictor),
        "curves": _curves(Path(run)),
        "filters": _filters(predictor.model),
        "layers": _layers(predictor),
    }
    if data is not None:
        record |= _about_samples(predictor, data)
    return record


def data_of(data: dict[str, Any], recipe: dict[str, Any]) -> tuple[Dataset | None, str | None]:
    """The data a net was trained on and None, or None and why they are not to be had.

    Args:
        data: what the model file says of its data (source, fingerprint).
        recipe: its recipe, whose ``data_options`` say how they were read.
    """
    source = data.get("source")
    if not source:
        return None, "the model file doesn't say what it was trained on"
    try:
        from convlens.data import DataOptions

        options = DataOptions(**recipe.get("data_options", {}))
        opened = open_dataset(source, **options.model_dump(exclude_unset=True))
    except (ConvlensError, OSError, TypeError, ValueError) as error:
        return None, f"{source} cannot be opened here: {error}"
    if opened.fingerprint != data.get("fingerprint"):
        return None, f"{source} has changed since this net was trained on it"
    return opened, None


def _environment(predictor: Predictor) -> dict[str, Any]:
    return {
        "convlens": predictor.card.convlens_version,
        "created": predictor.card.created,
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": version("torch"),
        "executable": Path(sys.executable).name,
    }


def _curves(run: Path) -> list[dict[str, Any]]:
    from convlens.modelfile.card import model_path

    file = model_path(run).with_name("metrics.jsonl")
    if not file.is_file():
        return []
    import json

    return [plain(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _filters(model: nn.Module) -> list[dict[str, Any]]:
    drawn = []
    for layer, filters in explain.learned_filters(model).items():
        weights = np.stack([one.weights for one in filters[:_FILTERS]])
        if weights.ndim == 5:
            weights = weights[:, :, weights.shape[2] // 2]
        if weights.ndim == 3:
            weights = weights[:, :, None, :]
        drawn.append(
            {
                "layer": layer,
                "count": len(filters),
                "in_channels": int(weights.shape[1]),
                "names": [one.looks_like for one in filters[:_FILTERS]],
                "similarities": [round(one.similarity, 3) for one in filters[:_FILTERS]],
                "weights": quantised(weights if weights.shape[1] == 3 else weights[:, :1]),
            }
        )
    return drawn


def _layers(predictor: Predictor) -> list[dict[str, Any]]:
    probe = torch.zeros(1, *predictor.preprocessing.shape)
    return [plain(row) for row in explain.layer_table(predictor.model, probe)]


def _about_samples(predictor: Predictor, data: Dataset) -> dict[str, Any]:
    part = "dev" if len(data.indices("dev")) else "train"
    numbers = data.indices(part)[:_JUDGED]
    stored = torch.from_numpy(np.ascontiguousarray(data.inputs[numbers]))
    probabilities = torch.cat([predictor.probabilities(chunk) for chunk in stored.split(256)]).numpy()
    record: dict[str, Any] = {
        "part": part,
        "split_sizes": {name: len(index) for name, index in data.splits.items()},
        "class_counts": {name: plain(data.class_counts(name)) for name in data.splits if len(data.indices(name))},
        "report": plain(data.report.model_dump(mode="json")),
    }
    chosen = [int(number) for number in numbers[:_SAMPLES]]
    if not data.multilabel:
        labels = data.labels[numbers]
        judged = explain.mistakes(probabilities, labels, worst=_WORST)
        record["mistakes"] = plain(judged) | {
            "pictures": [thumbnail(data.inputs[numbers[one.sample]], data.kind) for one in judged.worst],
            "names": [str(data.names[numbers[one.sample]]) for one in judged.worst],
        }
        wrong = [int(numbers[one.sample]) for one in judged.worst[:1]]
        chosen = [*wrong, *_one_of_each_class(numbers, labels, _SAMPLES - len(wrong))]
    record["samples"] = [_inside(predictor, data, number) for number in chosen]
    record["field"] = _field(predictor, data, chosen[-1])
    record["exciting"] = _exciting(predictor, data)
    return record


def _exciting(predictor: Predictor, data: Dataset) -> dict[str, Any] | None:
    """The training samples that excite the first channels of each convolution most, and what they see there."""
    layers = list(explain.learned_filters(predictor.model))
    if len(layers) > _EXCITED_LAYERS:
        # the first, the last, and some between
        places = np.linspace(0, len(layers) - 1, _EXCITED_LAYERS).round().astype(int)
        layers = [layers[place] for place in places]
    numbers = data.indices("train" if len(data.indices("train")) else "dev")[:_JUDGED]
    if not layers:
        return None
    stored = torch.from_numpy(np.ascontiguousarray(data.inputs[numbers]))
    try:
        found = explain.exciting_samples(
            predictor.model,
            stored,
            layers,
            preprocessing=predictor.preprocessing,
            top=_EXCITING,
            batch_size=64,
            budget_s=_EXCITED_S,
        )
    except ConvlensError:  # a layer that these inputs do not reach
        return None
    pictures: dict[str, Any] = {}
    drawn = []
    begun = time.perf_counter()
    for layer in layers:
        channels = []
        for channel, strongest in enumerate(found.layers[layer][:_EXCITED_CHANNELS]):
            row = []
            for one in strongest:
                number = int(numbers[one.sample])
                if str(number) not in pictures:
                    truth = None if data.multilabel else data.class_names[int(data.labels[number])]
                    pictures[str(number)] = {"truth": truth, **thumbnail(data.inputs[number], data.kind, 64)}
                box = None
                if time.perf_counter() - begun < _EXCITED_S:
                    alone = predictor.preprocessing.normalise(stored[one.sample][None])
                    reach = explain.effective_field(predictor.model, alone, layer, channel, one.position).reach
                    box = plain(reach)
                row.append({"number": number, "value": one.value, "box": box})
            channels.append(row)
        drawn.append({"layer": layer, "count": len(found.layers[layer]), "channels": channels})
    return {
        "searched": found.samples,
        "size": list(data.preprocessing.size),
        "pictures": pictures,
        "layers": drawn,
    }


def _one_of_each_class(numbers: Any, labels: Any, count: int) -> list[int]:
    _, first = np.unique(labels, return_index=True)
    return [int(numbers[place]) for place in sorted(first)[:count]]


def _inside(predictor: Predictor, data: Dataset, number: int) -> dict[str, Any]:
    """One sample from inside: picture, answer, maps of every layer, evidence for the answer."""
    stored = torch.from_numpy(np.array(data.inputs[number]))[None]
    normalised = predictor.preprocessing.normalise(stored)
    probabilities = predictor.probabilities(stored)[0].numpy()
    maps = []
    for layer in explain.feature_maps(predictor.model, normalised):
        if layer.maps is None or layer.maps.ndim < 2:
            continue
        planes = layer.maps[:_MAPS]
        if planes.ndim == 4:
            planes = planes[:, planes.shape[1] // 2]
        if planes.ndim == 2:
            planes = planes[:, None, :]
        stride = max(1, -(-max(planes.shape[1:]) // _SIDE))
        maps.append(
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "silent": len(layer.silent),
                "maps": quantised(planes[:, ::stride, ::stride]),
            }
        )
    shown = {
        "name": str(data.names[number]),
        "truth": None if data.multilabel else data.class_names[int(data.labels[number])],
        "top": [[name, value] for name, value in predictor.top(probabilities, 5)],
        "picture": thumbnail(data.inputs[number], data.kind),
        "maps": maps,
    }
    try:
        heat = explain.class_evidence(predictor.model, normalised)
        flat = heat.heat if heat.heat.ndim == 2 else heat.heat.reshape(-1, heat.heat.shape[-1])
        if heat.heat.ndim == 3:
            flat = heat.heat[heat.heat.shape[0] // 2]
        shown["evidence"] = {"layer": heat.layer, "class": data.class_names[heat.target], "heat": quantised(flat)}
    except (MissingExtraError, ConvlensError) as error:
        shown["evidence"] = {"missing": str(error)}
    return shown


def _field(predictor: Predictor, data: Dataset, number: int) -> dict[str, Any]:
    """What the middle unit of each convolution sees of one sample."""
    stored = torch.from_numpy(np.array(data.inputs[number]))[None]
    normalised = predictor.preprocessing.normalise(stored)
    fields = []
    for layer in explain.learned_filters(predictor.model):
        try:
            found = explain.effective_field(predictor.model, normalised, layer)
        except ConvlensError:
            continue
        heat = found.heat
        if heat.ndim == 3:
            heat = heat[heat.shape[0] // 2]
        fields.append(
            {
                "layer": layer,
                "reach": plain(found.reach),
                "core": plain(found.core),
                "heat": quantised(heat if heat.ndim == 2 else heat[None]),
            }
        )
    return {
        "picture": thumbnail(data.inputs[number], data.kind),
        "size": list(data.preprocessing.size),
        "layers": fields,
    }
