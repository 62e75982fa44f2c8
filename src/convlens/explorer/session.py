"""One visitor's net and input: what the pages ask for, answered as JSON values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens import explain
from convlens.errors import ArgumentError
from convlens.explain.capture import capture_one
from convlens.explain.pixel import Convolution
from convlens.explorer.change import Change, changed, size_formula
from convlens.explorer.comparison import compare_algorithms
from convlens.explorer.payload import plain, quantised, thumbnail
from convlens.explorer.planes import planes_of, under_window
from convlens.explorer.subject import Subject
from convlens.explorer.turns import Turns
from convlens.models.summary import summary
from convlens.window import ConvProblem

__all__ = ["Session", "position_of"]

_MOST_MAPS = 64
_MOST_SIDE = 128
_COMPARED_MACS = 2_000_000_000
_KEPT_BYTES = 256 << 20  # layers held after a pass; others are computed again when asked for
_SEARCHED = 4096  # training samples looked through for those that excite a unit
_SEARCH_S = 5.0
_BOXES_S = 0.3


class Session:
    """A subject, its current input, and the last pass over it; requests take `Turns`."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.turns = Turns(subject.model)
        self._stored = torch.zeros(1, *subject.preprocessing.shape)
        if subject.preprocessing.dtype == "uint8":
            self._stored = self._stored.to(torch.uint8)
        self._caught: dict[str, explain.Captured] = {}
        self._input = torch.empty(0)
        self._scores = torch.empty(0)
        self._truth: int | None = None
        self._planes: tuple[int, ...] | None = None
        self._excited: dict[str, explain.Excitations] = {}
        self._samples = subject.samples()
        self._described: dict[str, Any] | None = None
        if self._samples:
            self._use(self._samples[0]["number"])
        else:
            self._load(self._stored)

    def describe(self) -> dict[str, Any]:
        """The net: layers with shapes and costs, the edges between them, samples to choose from."""
        with self.turns.turn("net"):
            if self._described is None:
                self._described = self._describe()
            return self._described

    def _describe(self) -> dict[str, Any]:
        model, shape = self.subject.model, self.subject.preprocessing.shape
        counted = summary(model, (1, *shape))
        # what runs twice is one box; functional calls are between the boxes
        known = set(explain.layer_names(model))
        rows = {row.name: row for row in reversed(counted.rows) if row.name in known}
        layers = [row for row in dict.fromkeys(row.name for row in counted.rows) if row in rows]
        return {
            "title": self.subject.title,
            "kind": self.subject.preprocessing.kind,
            "input": list(shape),
            "classes": list(self.subject.class_names),
            "weights": counted.weights,
            "macs": counted.macs,
            "layers": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "shape": list(row.output_shape[1:]),
                    "weights": row.weights,
                    "macs": row.macs,
                    "field": plain(row.receptive_field),
                    "has_maps": len(row.output_shape) > 2,
                }
                for row in map(rows.__getitem__, layers)
            ],
            "edges": plain(explain.between(explain.layer_graph(model, self._input), {explain.INPUT, *layers})),
            "samples": self._samples,
            "has_data": self.subject.data is not None,
        }

    def use_sample(self, number: int) -> dict[str, Any]:
        """Make a sample of the data the input."""
        with self.turns.turn("input"):
            self._use(number)
            return self._current()

    def use_bytes(self, raw: bytes) -> dict[str, Any]:
        """Make an uploaded or drawn file the input.

        Raises:
            BadFileError: it cannot be decoded as an input of this net.
        """
        stored = self.subject.preprocessing.decode(raw)
        with self.turns.turn("input"):
            self._truth = None
            self._load(torch.from_numpy(np.array(stored))[None])
            return self._current()

    def current(self, planes: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The input and the net's answers.

        Args:
            planes: show this slice of a volume, or this band or these three, from now on.
        """
        with self.turns.turn("current"):
            self._planes = planes or self._planes
            return self._current()

    def layer(self, name: str, plane: int | None = None) -> dict[str, Any]:
        """Maps of one layer, and the numbers of its window.

        Args:
            name: the layer.
            plane: which slice of 3-D maps; default the middle.
        """
        with self.turns.turn("layer"):
            caught = self._catch(name)
            maps = caught.output[0].detach()
            slices = maps.shape[1] if maps.ndim == 4 else 1
            chosen = slices // 2 if plane is None else min(max(plane, 0), slices - 1)
            drawn = planes_of(maps[:_MOST_MAPS], chosen)
            step = max(1, -(-max(drawn.shape[1:]) // (_MOST_SIDE if maps.ndim > 2 else 4 * _MOST_SIDE)))
            record: dict[str, Any] = {
                "name": name,
                "kind": caught.kind,
                "shape": list(maps.shape),
                "step": step,
                "slice": chosen if maps.ndim == 4 else None,
                "maps": quantised(drawn[:, ::step, ::step].float().numpy()),
                "window": self._window(name),
            }
            filters = explain.learned_filters(self.subject.model, [name]).get(name, [])[:_MOST_MAPS]
            if filters:
                record["looks_like"] = [[one.looks_like, round(one.similarity, 3)] for one in filters]
            return record

    def filters(self, name: str, channel: int = 0, plane: int | None = None) -> dict[str, Any]:
        """The filters of one layer as they see input channel ``channel`` (all three of a colour input)."""
        with self.turns.turn("filters"):
            filters = explain.learned_filters(self.subject.model, [name]).get(name, [])
            if not filters:
                raise ArgumentError("layer", "a convolution", repr(name))
            weights = np.stack([one.weights for one in filters[:_MOST_MAPS]])
            channels, depth = weights.shape[1], weights.shape[2] if weights.ndim == 5 else 1
            chosen = depth // 2 if plane is None else min(max(plane, 0), depth - 1)
            if weights.ndim == 5:
                weights = weights[:, :, chosen]
            if weights.ndim == 3:
                weights = weights[:, :, None, :]
            shown = weights if channels == 3 else weights[:, min(channel, channels - 1)][:, None]
            return {
                "layer": name,
                "count": len(filters),
                "in_channels": channels,
                "channel": channel,
                "depth": depth,
                "plane": chosen,
                "names": [one.looks_like for one in filters[:_MOST_MAPS]],
                "similarities": [round(one.similarity, 3) for one in filters[:_MOST_MAPS]],
                "weights": quantised(shown),
            }

    def excited(self, name: str, channel: int) -> dict[str, Any]:
        """The training samples that excite one channel most, and where in them."""
        data = self.subject.data
        if data is None:
            raise ArgumentError("layer", "a net whose training data are here", self.subject.title)
        with self.turns.turn("excited"):
            numbers = data.indices("train" if len(data.indices("train")) else "dev")[:_SEARCHED]
            if name not in self._excited:
                self._excited[name] = explain.exciting_samples(
                    self.subject.model,
                    torch.from_numpy(np.ascontiguousarray(data.inputs[numbers])),
                    [name],
                    preprocessing=self.subject.preprocessing,
                    batch_size=64,
                    budget_s=_SEARCH_S,
                    step=self.turns.step,
                )
            found = self._excited[name]
            channels = found.layers[name]
            if not 0 <= channel < len(channels):
                raise ArgumentError("channel", f"0 to {len(channels) - 1}", channel)
            return {
                "layer": name,
                "channel": channel,
                "searched": found.samples,
                "pictures": self.subject.excitations(name, channel, channels[channel], numbers, _BOXES_S),
            }

    def pixel(self, name: str, channel: int, position: tuple[int, ...], apart: bool = True) -> dict[str, Any]:
        """One output value, its field on the net's input, and, if ``apart``, the sum it came from."""
        with self.turns.turn("pixel" if apart else "point"):
            caught = self._catch(name)
            field = explain.effective_field(self.subject.model, self._input, name, channel, position)
            record: dict[str, Any] = {
                "value": float(caught.output[(0, channel, *position)]),
                "field": plain(field.reach),
                "core": plain(field.core),
                "heat": quantised(self._plane(field.heat)),
            }
            if not apart:
                return record
            try:
                numbers = Convolution.of(explain.named_layer(self.subject.model, name))
            except ArgumentError:
                return record
            input = caught.input[0].detach()
            taken = explain.output_pixel(numbers, input, channel, position)
            return record | {
                "sum": plain(taken),
                "window": self._window(name),
                "under": under_window(input, taken),
            }

    def backward(self, name: str, channel: int, position: tuple[int, ...]) -> dict[str, Any]:
        """Where an error of 1 at one output value flows: to the layer's weights and to its input (C5)."""
        with self.turns.turn("backward"):
            caught = self._catch(name)
            layer = explain.named_layer(self.subject.model, name)
            numbers = Convolution.of(layer)
            input = caught.input[:1].detach().clone().requires_grad_(True)
            weight = layer.weight
            if not isinstance(weight, Tensor):
                raise ArgumentError("layer", "a convolution", type(layer).__name__)
            with torch.enable_grad():
                output = layer(input)
                upstream = torch.zeros_like(output)
                upstream[(0, channel, *position)] = 1.0
                grad_input, grad_weight = torch.autograd.grad(output, (input, weight), upstream)
            tap = (0,) * (weight.ndim - 2)
            apart = explain.weight_gradient(numbers, input.detach(), upstream, channel, 0, tap)
            return {
                "weight": plain(grad_weight[channel].detach().numpy()),
                "input": quantised(self._plane(grad_input[0].abs().sum(0).numpy())),
                "first_weight": float(apart.value),
            }

    def evidence(self, method: str, target: int | None) -> dict[str, Any]:
        """Where the input speaks for a class."""
        with self.turns.turn(f"evidence {target}"):
            found = explain.class_evidence(self.subject.model, self._input, target, method)
            return {
                "method": found.method,
                "layer": found.layer,
                "class": self._name(found.target),
                "heat": quantised(self._plane(found.heat)),
            }

    def adversary(self) -> dict[str, Any]:
        """The smallest change found that turns the answer."""
        with self.turns.turn("adversary"):
            found = explain.adversarial(self.subject.model, self._stored[0], self.subject.preprocessing)
            kind = self.subject.preprocessing.kind
            values = found.changed.numpy()
            as_stored = np.rint(values).astype(np.uint8) if kind == "image" else values
            return {
                "found": found.found,
                "original": self._name(found.original),
                "label": self._name(found.label),
                "confidence": found.confidence,
                "epsilon": found.epsilon,
                "changed": thumbnail(as_stored, kind, planes=self._planes),
                "difference": quantised(self._plane(found.difference.sum(0).numpy())),
            }

    def algorithms(self, name: str) -> dict[str, Any]:
        """Every algorithm on one layer: time, error and memory, or why it refuses."""
        with self.turns.turn("algorithms"):
            numbers = Convolution.of(explain.named_layer(self.subject.model, name))
            problem = explain.problem_of(numbers, self._catch(name).input)
            if problem.macs > _COMPARED_MACS:
                raise ArgumentError(
                    "layer", f"at most {_COMPARED_MACS:,} multiply-adds to compare", f"{problem.macs:,}"
                )
            return compare_algorithms(problem)

    def change(self, asked: Change) -> dict[str, Any]:
        """One channel's map with another window or kernel: shape, cost, and the net's answers where it fits."""
        with self.turns.turn("change"), torch.no_grad():
            layer = explain.named_layer(self.subject.model, asked.name)
            caught = self._catch(asked.name)
            numbers = Convolution.of(layer)
            after, map_, problem = changed(asked, numbers, caught.input)
            before = caught.output[0, asked.channel]
            both = [planes_of(one[None], one.shape[0] // 2)[0].float().numpy() for one in (before, map_)]
            record = {
                "kernel": plain(after.weight[asked.channel, asked.input_channel].flatten().numpy()),
                "kernel_size": list(after.weight.shape[2:]),
                "before": quantised(both[0]),
                "after": quantised(both[1]),
                "shape": [len(after.weight), *problem.output_size],
                "formula": size_formula(problem),
                "was": self._cost(explain.problem_of(numbers, caught.input), numbers),
                "now": self._cost(problem, after),
            }
            if map_.shape == before.shape and "#" not in asked.name:
                record["top"] = self._answers_with(layer, asked.channel, map_)
            return record

    def _answers_with(self, layer: torch.nn.Module, channel: int, map_: Tensor) -> list[tuple[str, float]]:
        """The net's answers if one channel of a layer said ``map_``."""

        def put(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
            replaced = output.clone()
            replaced[0, channel] = map_
            return replaced

        handle = layer.register_forward_hook(put)
        try:
            return self._top(self.subject.model(self._input))
        finally:
            handle.remove()

    def _cost(self, problem: ConvProblem, numbers: Convolution) -> dict[str, Any]:
        bias = 0 if numbers.bias is None else numbers.bias.numel()
        return {
            "macs": problem.macs,
            "weights": numbers.weight.numel() + bias,
            "bytes": 4 * len(numbers.weight) * int(np.prod(problem.output_size)),
            "sees": [d * (k - 1) + 1 for k, d in zip(problem.kernel_size, problem.dilation, strict=True)],
        }

    def _use(self, number: int) -> None:
        self._truth = self.subject.label(number)
        self._load(self.subject.stored(number))

    def _load(self, stored: Tensor) -> None:
        self._stored = stored
        self._input = self.subject.preprocessing.normalise(stored)
        spent = 0

        def affordable(name: str, module: torch.nn.Module, output: Tensor) -> bool:
            nonlocal spent
            spent += output.numel() * output.element_size()
            return spent <= _KEPT_BYTES

        with torch.no_grad():
            self._scores, self._caught = explain.capture(self.subject.model, self._input, keep=affordable)

    def _top(self, scores: Tensor) -> list[tuple[str, float]]:
        flat = scores.flatten(1)[0] if scores.ndim > 1 else scores
        probabilities = flat.sigmoid() if self.subject.multilabel else flat.softmax(0)
        best = probabilities.topk(min(5, len(probabilities)))
        return [
            (self._name(i), float(p)) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _name(self, number: int) -> str:
        names = self.subject.class_names
        return names[number] if number < len(names) else f"class {number}"

    def _current(self) -> dict[str, Any]:
        stored = self._stored[0].numpy()
        return {
            "picture": thumbnail(stored, self.subject.preprocessing.kind, planes=self._planes),
            "size": list(self.subject.preprocessing.size),
            "top": self._top(self._scores),
            "truth": None if self._truth is None else self._name(self._truth),
            "truth_number": self._truth,
        }

    def _catch(self, name: str) -> explain.Captured:
        if name not in self._caught:
            if name.partition("#")[1]:
                raise ArgumentError("layer", "a layer that the input reaches", repr(name))
            with torch.no_grad():
                self._caught[name] = capture_one(self.subject.model, self._input, name)
        return self._caught[name]

    def _plane(self, values: Any) -> Any:
        """The plane of a heat map that a page draws: the shown slice of a volume, a signal as one row."""
        if values.ndim == 1:
            return values[None]
        if values.ndim < 3:
            return values
        middle = values.shape[0] // 2
        return values[min(self._planes[0], values.shape[0] - 1) if self._planes else middle]

    def _window(self, name: str) -> dict[str, Any] | None:
        try:
            numbers = Convolution.of(explain.named_layer(self.subject.model, name))
        except ArgumentError:
            return None
        return {
            "kernel": list(numbers.weight.shape[2:]),
            "in_channels": numbers.weight.shape[1],
            "stride": list(numbers.stride),
            "padding": [list(pad) for pad in numbers.padding],
            "dilation": list(numbers.dilation),
            "groups": numbers.groups,
        }


def position_of(text: str) -> tuple[int, ...]:
    """``"3,4"`` → ``(3, 4)``.

    Raises:
        ArgumentError: not whole numbers between commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError("position", "whole numbers between commas", repr(text)) from error
