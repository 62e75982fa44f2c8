"""One visitor's net and input: what the pages ask for, answered as JSON values."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens import explain, planner
from convlens.errors import ArgumentError
from convlens.explain.pixel import Convolution
from convlens.explorer.payload import plain, quantised, thumbnail
from convlens.explorer.subject import Subject
from convlens.kernels import all_kernels
from convlens.models.summary import summary
from convlens.window import ConvProblem

__all__ = ["Session"]

_MOST_MAPS = 64
_MOST_SIDE = 128
_COMPARED_MACS = 2_000_000_000


class Session:
    """A subject, its current input, and the last pass over it.

    One lock: torch uses all cores anyway, and a page's requests are answered in order.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._lock = threading.Lock()
        self._stored = torch.zeros(1, *subject.preprocessing.shape)
        if subject.preprocessing.dtype == "uint8":
            self._stored = self._stored.to(torch.uint8)
        self._caught: dict[str, explain.Captured] = {}
        self._input = torch.empty(0)
        self._answers: list[tuple[str, float]] = []
        numbers = subject.samples()[:1]
        self._load(subject.stored(numbers[0]["number"]) if numbers else self._stored)

    def describe(self) -> dict[str, Any]:
        """The net: layers with shapes and costs, the edges between them, samples to choose from."""
        with self._lock:
            model, shape = self.subject.model, self.subject.preprocessing.shape
            counted = summary(model, (1, *shape))
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
                        "has_maps": row.name in self._caught and self._caught[row.name].output.ndim > 2,
                    }
                    for row in counted.rows
                ],
                "edges": [list(edge) for edge in explain.layer_graph(model, self._input)],
                "samples": self.subject.samples(),
            }

    def use_sample(self, number: int) -> dict[str, Any]:
        """Make a sample of the data the input."""
        with self._lock:
            self._load(self.subject.stored(number))
            return self._current()

    def use_bytes(self, raw: bytes) -> dict[str, Any]:
        """Make an uploaded or drawn file the input.

        Raises:
            BadFileError: it cannot be decoded as an input of this net.
        """
        stored = self.subject.preprocessing.decode(raw)
        with self._lock:
            self._load(torch.from_numpy(np.array(stored))[None])
            return self._current()

    def current(self) -> dict[str, Any]:
        """The input and the net's answers."""
        with self._lock:
            return self._current()

    def layer(self, name: str) -> dict[str, Any]:
        """Maps and filters of one layer, and the numbers of its window."""
        with self._lock:
            caught = self._catch(name)
            maps = caught.output[0].detach()
            slices = maps.shape[1] if maps.ndim == 4 else 1
            drawn = maps[:_MOST_MAPS]
            if drawn.ndim == 4:
                drawn = drawn[:, slices // 2]
            elif drawn.ndim == 2:
                drawn = drawn[:, None, :]
            elif drawn.ndim == 1:
                drawn = drawn[None, None, :]
            step = max(1, -(-max(drawn.shape[1:]) // _MOST_SIDE))
            record: dict[str, Any] = {
                "name": name,
                "kind": caught.kind,
                "shape": list(maps.shape),
                "step": step,
                "slice": slices // 2 if maps.ndim == 4 else None,
                "maps": quantised(drawn[:, ::step, ::step].float().numpy()),
            }
            filters = explain.learned_filters(self.subject.model, [name]).get(name, [])[:_MOST_MAPS]
            if filters:
                record["looks_like"] = [[one.looks_like, round(one.similarity, 3)] for one in filters]
            record["window"] = self._window(name)
            return record

    def pixel(self, name: str, channel: int, position: tuple[int, ...]) -> dict[str, Any]:
        """One output value taken apart, and its field on the net's input."""
        with self._lock:
            caught = self._catch(name)
            field = explain.effective_field(self.subject.model, self._input, name, channel, position)
            record: dict[str, Any] = {
                "value": float(caught.output[(0, channel, *position)]),
                "field": plain(field.reach),
                "core": plain(field.core),
                "heat": quantised(_plane(field.heat)),
            }
            try:
                numbers = Convolution.of(explain.named_layer(self.subject.model, name))
            except ArgumentError:
                return record
            return record | {
                "sum": plain(explain.output_pixel(numbers, caught.input[0].detach(), channel, position))
            }

    def backward(self, name: str, channel: int, position: tuple[int, ...]) -> dict[str, Any]:
        """Where an error of 1 at one output value flows: to the layer's weights and to its input (C5)."""
        with self._lock:
            caught = self._catch(name)
            numbers = Convolution.of(explain.named_layer(self.subject.model, name))
            layer = explain.named_layer(self.subject.model, name)
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
                "input": quantised(_plane(grad_input[0].abs().sum(0).numpy())),
                "first_weight": float(apart.value),
            }

    def evidence(self, method: str, target: int | None) -> dict[str, Any]:
        """Where the input speaks for a class."""
        with self._lock:
            found = explain.class_evidence(self.subject.model, self._input, target, method)
            return {
                "method": found.method,
                "layer": found.layer,
                "class": self.subject.class_names[found.target],
                "heat": quantised(_plane(found.heat)),
            }

    def adversary(self) -> dict[str, Any]:
        """The smallest change found that turns the answer."""
        with self._lock:
            found = explain.adversarial(self.subject.model, self._stored[0], self.subject.preprocessing)
            kind = self.subject.preprocessing.kind
            changed = found.changed.numpy()
            names = self.subject.class_names
            return {
                "found": found.found,
                "original": names[found.original],
                "label": names[found.label],
                "confidence": found.confidence,
                "epsilon": found.epsilon,
                "changed": thumbnail(np.rint(changed).astype(np.uint8) if kind == "image" else changed, kind),
                "difference": quantised(_plane(found.difference.sum(0).numpy())),
            }

    def algorithms(self, name: str) -> dict[str, Any]:
        """Every algorithm on one layer: time, error and memory, or why it refuses."""
        with self._lock:
            problem = self._problem(name)
            if problem.macs > _COMPARED_MACS:
                raise ArgumentError(
                    "layer", f"at most {_COMPARED_MACS:,} multiply-adds to compare", f"{problem.macs:,}"
                )
            return compare_algorithms(problem)

    def _load(self, stored: Tensor) -> None:
        self._stored = stored
        self._input = self.subject.preprocessing.normalise(stored)
        with torch.no_grad():
            output, self._caught = explain.capture(self.subject.model, self._input)
        probabilities = output.flatten(1).softmax(1)[0] if output.ndim > 1 else output.softmax(0)
        best = probabilities.topk(min(5, len(probabilities)))
        names = self.subject.class_names
        self._answers = [
            (names[i] if i < len(names) else f"class {i}", float(p))
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _current(self) -> dict[str, Any]:
        stored = self._stored[0].numpy()
        return {
            "picture": thumbnail(stored, self.subject.preprocessing.kind),
            "size": list(self.subject.preprocessing.size),
            "top": self._answers,
        }

    def _catch(self, name: str) -> explain.Captured:
        if name not in self._caught:
            explain.named_layer(self.subject.model, name)
            raise ArgumentError("layer", "a layer that the input reaches", repr(name))
        return self._caught[name]

    def _window(self, name: str) -> dict[str, Any] | None:
        try:
            numbers = Convolution.of(explain.named_layer(self.subject.model, name))
        except ArgumentError:
            return None
        return {
            "kernel": list(numbers.weight.shape[2:]),
            "stride": list(numbers.stride),
            "padding": [list(pad) for pad in numbers.padding],
            "dilation": list(numbers.dilation),
            "groups": numbers.groups,
        }

    def _problem(self, name: str) -> ConvProblem:
        numbers = Convolution.of(explain.named_layer(self.subject.model, name))
        return explain.problem_of(numbers, self._catch(name).input)


def compare_algorithms(problem: ConvProblem) -> dict[str, Any]:
    """Time, error and memory of every kernel that takes ``problem``; the refusals of the others."""
    from convlens.planner.trial import measure

    able = [kernel for kernel in all_kernels() if kernel.refusal(problem) is None]
    with torch.no_grad():
        figures = measure(problem, able, repeats=5, budget_s=0.3, drop_above=None)
    chosen = planner.plan(problem)
    rows = []
    for kernel in all_kernels():
        found = figures.get(kernel.name)
        rows.append(
            {
                "kernel": kernel.name,
                "algorithm": kernel.algorithm,
                "time_us": found.median_us if found else None,
                "error": found.error if found else None,
                "memory": kernel.workspace_bytes(problem) if found else None,
                "refusal": kernel.refusal(problem),
                "chosen": kernel.name == chosen.kernel,
            }
        )
    return {"macs": problem.macs, "reason": chosen.reason, "rows": rows}


def _plane(values: Any) -> Any:
    """The plane of a heat map that a page draws: the middle slice of a volume, a signal as one row."""
    if values.ndim == 1:
        return values[None]
    return values[values.shape[0] // 2] if values.ndim == 3 else values


def position_of(text: str) -> tuple[int, ...]:
    """``"3,4"`` → ``(3, 4)``.

    Raises:
        ArgumentError: not whole numbers between commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError("position", "whole numbers between commas", repr(text)) from error
