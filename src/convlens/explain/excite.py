"""Which pictures excite a unit most, and where in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convlens.data import Preprocessing
from convlens.errors import ArgumentError
from convlens.explain.capture import capture, quiet

__all__ = ["Excitation", "most_exciting"]


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
    if len(inputs) == 0:
        raise ArgumentError("inputs", "at least one sample", "none")
    best: Tensor | None = None
    samples = places = torch.empty(0, dtype=torch.long)
    size: tuple[int, ...] = ()
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        if preprocessing is not None:
            batch = preprocessing.normalise(batch)
        with torch.no_grad(), quiet(model):
            _, caught = capture(model, batch, [layer])
        if layer not in caught:
            raise ArgumentError("layer", "a layer that these inputs reach", repr(layer))
        maps = caught[layer].output
        size = tuple(maps.shape[2:])
        # a dense layer's feature is a map of one place
        peaks, where = (maps if maps.ndim > 2 else maps.unsqueeze(2)).flatten(2).max(2)
        numbers = torch.arange(start, start + len(batch)).unsqueeze(1).expand_as(where)
        if best is None:
            best, samples, places = peaks, numbers, where
        else:
            best = torch.cat([best, peaks])
            samples, places = torch.cat([samples, numbers]), torch.cat([places, where])
        best, order = best.topk(min(top, len(best)), dim=0)
        samples, places = samples.gather(0, order), places.gather(0, order)
    if best is None:
        return []
    channels = zip(best.T.tolist(), samples.T.tolist(), places.T.tolist(), strict=True)
    return [
        [Excitation(sample, value, _unflat(place, size)) for value, sample, place in zip(*channel, strict=True)]
        for channel in channels
    ]


def _unflat(place: int, size: tuple[int, ...]) -> tuple[int, ...]:
    position = []
    for n in reversed(size):
        place, rest = divmod(place, n)
        position.append(rest)
    return tuple(reversed(position))
