"""Which pictures excite a unit most, and where in them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convlens.data import Preprocessing
from convlens.errors import ArgumentError
from convlens.explain.capture import capture, quiet

__all__ = ["Excitation", "Excitations", "exciting_samples", "most_exciting"]


@dataclass(frozen=True, slots=True)
class Excitations:
    """Of the first ``samples`` samples: per layer and channel the strongest, strongest first."""

    samples: int
    layers: dict[str, list[list[Excitation]]]


@dataclass(frozen=True, slots=True)
class Excitation:
    """One picture's strongest answer: sample number, value, and the place in the layer's map."""

    sample: int
    value: float
    position: tuple[int, ...]


def most_exciting(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    *,
    preprocessing: Preprocessing | None = None,
    top: int = 9,
    batch_size: int = 256,
) -> list[list[Excitation]]:
    """For every channel of ``layer`` the ``top`` samples with the strongest answer, strongest first.

    Args:
        model: the net.
        inputs: samples ``(N, channels, *size)``, in storage form if ``preprocessing`` is given.
        layer: name of the layer.
        preprocessing: normalises each batch.
        top: samples per channel.
        batch_size: samples at a time; the memory needed is one batch's maps.

    Raises:
        ArgumentError: no such layer, or no samples.
    """
    found = exciting_samples(model, inputs, [layer], preprocessing=preprocessing, top=top, batch_size=batch_size)
    return found.layers[layer]


def exciting_samples(
    model: nn.Module,
    inputs: Tensor,
    layers: Sequence[str],
    *,
    preprocessing: Preprocessing | None = None,
    top: int = 9,
    batch_size: int = 256,
    budget_s: float = math.inf,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Excitations:
    """`most_exciting` of several layers in one pass, within a time.

    Args:
        model, inputs, preprocessing, top, batch_size: as for `most_exciting`.
        layers: their names.
        budget_s: no batch begins after this many seconds, but the first always runs.
        step: told after each batch how many samples are done, of how many.

    Raises:
        ArgumentError: no such layer, or no samples.
    """
    if len(inputs) == 0:
        raise ArgumentError("inputs", "at least one sample", "none")
    best = {layer: _Best(top) for layer in layers}
    begun, seen = time.perf_counter(), 0
    for start in range(0, len(inputs), batch_size):
        if start and time.perf_counter() - begun > budget_s:
            break
        batch = inputs[start : start + batch_size]
        if preprocessing is not None:
            batch = preprocessing.normalise(batch)
        with torch.no_grad(), quiet(model):
            _, caught = capture(model, batch, layers)
        for layer in layers:
            if layer not in caught:
                raise ArgumentError("layer", "a layer that these inputs reach", repr(layer))
            best[layer].add(start, caught[layer].output)
        seen = start + len(batch)
        step(seen, len(inputs))
    return Excitations(seen, {layer: one.channels() for layer, one in best.items()})


class _Best:
    """The strongest answers so far, per channel."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.values = torch.empty(0)
        self.samples = self.places = torch.empty(0, dtype=torch.long)
        self.size: tuple[int, ...] = ()

    def add(self, start: int, maps: Tensor) -> None:
        self.size = tuple(maps.shape[2:])
        # a dense layer's feature is a map of one place
        peaks, where = (maps if maps.ndim > 2 else maps.unsqueeze(2)).flatten(2).max(2)
        numbers = torch.arange(start, start + len(maps)).unsqueeze(1).expand_as(where)
        if self.values.numel():
            peaks = torch.cat([self.values, peaks])
            numbers, where = torch.cat([self.samples, numbers]), torch.cat([self.places, where])
        self.values, order = peaks.topk(min(self.top, len(peaks)), dim=0)
        self.samples, self.places = numbers.gather(0, order), where.gather(0, order)

    def channels(self) -> list[list[Excitation]]:
        columns = zip(self.values.T.tolist(), self.samples.T.tolist(), self.places.T.tolist(), strict=True)
        return [
            [
                Excitation(sample, value, _unflat(place, self.size))
                for value, sample, place in zip(*column, strict=True)
            ]
            for column in columns
        ]


def _unflat(place: int, size: tuple[int, ...]) -> tuple[int, ...]:
    position = []
    for n in reversed(size):
        place, rest = divmod(place, n)
        position.append(rest)
    return tuple(reversed(position))
