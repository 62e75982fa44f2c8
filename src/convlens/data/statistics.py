"""Mean and deviation per channel, from the training part only (row I2): dev and test must not leak into them."""

from __future__ import annotations

import numpy as np

from convlens.data.dataset import Indices
from convlens.data.preprocessing import Array

__all__ = ["channel_statistics"]

_CHUNK_BYTES = 8 << 20
_IN_CACHE = 1 << 15


def channel_statistics(
    inputs: Array, chosen: Indices, scale: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``(mean, std)`` of ``inputs[chosen] * scale`` per channel, in float64, read in chunks of about 8 MB.

    A constant channel gets the deviation 1, so that normalising never divides by zero. Values that are not finite
    are left out of the sums.

    Args:
        inputs: ``[N, channels, *spatial]``, uint8 or float32, perhaps memory-mapped.
        chosen: sample numbers, increasing.
        scale: factor from stored to scaled values.
    """
    channels = inputs.shape[1]
    if inputs.dtype == np.uint8:
        mean, var = _from_whole_numbers(inputs, chosen)
    else:
        mean, var = _from_sums(inputs, chosen)
    std = np.sqrt(np.maximum(var, 0.0)) * scale
    std = np.where(std > 1e-12, std, 1.0)
    if not len(chosen):
        mean, std = np.zeros(channels), np.ones(channels)
    return tuple(float(value) for value in mean * scale), tuple(float(value) for value in std)


def _chunks(inputs: Array, chosen: Indices) -> list[Indices]:
    per_sample = max(1, int(np.prod(inputs.shape[1:])) * inputs.dtype.itemsize)
    step = max(1, _CHUNK_BYTES // per_sample)
    return [chosen[start : start + step] for start in range(0, len(chosen), step)]


def _from_whole_numbers(inputs: Array, chosen: Indices) -> tuple[Array, Array]:
    """Exact: sums of bytes and of their squares stay whole numbers below 2⁵³ in float64."""
    channels = inputs.shape[1]
    sums, squares, count = np.zeros(channels), np.zeros(channels), 0
    for part in _chunks(inputs, chosen):
        block = inputs[part]
        for channel in range(channels):
            values = block[:, channel].reshape(-1)
            for start in range(0, len(values), _IN_CACHE):
                piece = values[start : start + _IN_CACHE].astype(np.float64)
                sums[channel] += piece.sum()
                squares[channel] += piece @ piece
        count += block[:, 0].size
    mean = sums / max(count, 1)
    return mean, squares / max(count, 1) - mean**2


def _from_sums(inputs: Array, chosen: Indices) -> tuple[Array, Array]:
    """Merged chunk by chunk as Chan, Golub and LeVeque (1979) do: stable for values far from zero."""
    channels = inputs.shape[1]
    count, mean, squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for part in _chunks(inputs, chosen):
        block = inputs[part].astype(np.float64).swapaxes(0, 1).reshape(channels, -1)
        finite = np.isfinite(block)
        here = finite.sum(axis=1)
        here_mean = np.where(finite, block, 0.0).sum(axis=1) / np.maximum(here, 1)
        here_squares = np.where(finite, (block - here_mean[:, None]) ** 2, 0.0).sum(axis=1)
        total = np.maximum(count + here, 1)
        delta = here_mean - mean
        mean = mean + delta * here / total
        squares = squares + here_squares + delta**2 * count * here / total
        count = count + here
    return mean, squares / np.maximum(count, 1)
