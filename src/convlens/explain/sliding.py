"""One small kernel over one large picture: sums of shifted rows, block by block so that they stay in the cache.

A network's convolution kernels want many channels; a picture has three, interleaved, and one kernel for all.
Shifting a row by one pixel is then shifting its numbers by the count of channels, so that each tap of the kernel
is one multiply-and-add over long contiguous rows, and the picture is never copied as a whole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convlens.kernels.cpu.memory import empty
from convlens.kernels.cpu.picture import correlate_apart, correlate_inside
from convlens.kernels.cpu.sliding import sum_shifted

__all__ = ["MOST_TAPS", "slide"]

MOST_TAPS = 128
"""Beyond so many numbers other than 0 a convolution's own algorithms are faster."""

_BLOCK_BYTES = 512 << 10  # of one buffer; two of them fit into a core's second-level cache


def slide(picture: Tensor, column: Tensor, rows: Tensor, border: str) -> Tensor:
    """Cross-correlate with the outer product of ``column`` and ``rows``, or with ``rows`` alone.

    Args:
        picture: ``(height, width, channels)``, any real type.
        column: ``(kernel_height,)``, or empty for a kernel that is no outer product.
        rows: ``(kernel_width,)``, or then ``(kernel_height, kernel_width)``.
        border: one of `explain.BORDERS`.

    Returns:
        float32 ``(height, width, channels)``; an even kernel is centred as scipy.ndimage centres it.
    """
    height, width, channels = picture.shape
    tall, wide = (len(column), len(rows)) if len(column) else tuple(rows.shape)
    top, left = tall // 2, wide // 2
    down = _sources(height, top, tall - 1 - top, border)
    across = _sources(width, left, wide - 1 - left, border)
    source = picture.reshape(height, width * channels)
    out = empty((height, width * channels))
    if len(column) and correlate_apart(source, out, column.tolist(), rows.tolist(), down, across, channels):
        return out.view(height, width, channels)
    done = None if len(column) else correlate_inside(source, out, rows, down, channels)
    for first, last in ((0, width),) if done is None else ((0, done[0]), (done[1], width)):
        _columns(out, source, column, rows, (down, across), channels, first, last)
    return out.view(height, width, channels)


def _columns(
    out: Tensor, source: Tensor, column: Tensor, rows: Tensor, padded: tuple[list[int], list[int]], channels: int,
    first: int, last: int,
) -> None:  # fmt: skip
    """The pixels ``first`` to ``last`` of every row, in strips."""
    height, wide, (down, across) = len(out), rows.shape[-1], padded
    tall = len(column) or len(rows)
    # strips as wide as leaves a block several times as many rows as the kernel has
    strip = max(16, _BLOCK_BYTES // (4 * channels * max(32, 4 * tall)) // 16 * 16)
    block_bytes = _BLOCK_BYTES * torch.get_num_threads()  # each thread works on its share of the rows
    for begin in range(first, last, strip):
        end = min(last, begin + strip)
        inner = out[:, begin * channels : end * channels]
        count = max(1, min(height, block_bytes // (4 * inner.shape[1])))
        _strip(inner, source, column, rows, down, across[begin : end + wide - 1], count)


def _strip(
    out: Tensor, source: Tensor, column: Tensor, rows: Tensor, down: list[int], across: list[int], count: int
) -> None:
    """Some columns of the picture, ``count`` rows at a time."""
    height, length = out.shape
    tall, wide = (len(column), len(rows)) if len(column) else tuple(rows.shape)
    channels = length // (len(across) - wide + 1)
    padded = torch.empty(count + tall - 1, len(across) * channels)
    between = torch.empty(count + tall - 1, length)
    for start in range(0, height, count):
        stop = min(height, start + count)
        # rows that the block before has prepared already
        kept = tall - 1 if start and len(column) else 0
        block = padded[: stop - start + tall - 1 - kept]
        _fill(block, source, down[start + kept : stop + tall - 1], across, channels)
        if len(column):
            between[:kept] = between[count : count + kept].clone()
            taps = [(0, j * channels) for j in range(wide)]
            _weighted(block, between[kept : kept + len(block)], taps, rows.tolist(), once=False)
            _weighted(between, out[start:stop], [(i, 0) for i in range(tall)], column.tolist(), once=True)
        else:
            taps = [(i, j * channels) for i in range(tall) for j in range(wide)]
            _weighted(block, out[start:stop], taps, rows.flatten().tolist(), once=True)


def _sources(size: int, before: int, after: int, border: str) -> list[int]:
    """For every place of the padded axis the place it is taken from; −1 for zero."""
    places = np.arange(-before, size + after)
    if border == "zeros":
        places[(places < 0) | (places >= size)] = -1
    elif border == "replicate":
        places = places.clip(0, size - 1)
    elif border == "circular":
        places %= size
    else:
        # mirrored as often as it takes, with or without repeating the edge
        period = 2 * size if border == "symmetric" else max(1, 2 * size - 2)
        places %= period
        places = np.minimum(places, period - (border == "symmetric") - places)
    return [int(place) for place in places]


def _fill(block: Tensor, source: Tensor, down: list[int], across: list[int], channels: int) -> None:
    """Copy the block's rows and columns from where they come from."""
    for row, from_row, high in _runs(down):
        for place, from_place, length in _runs(across):
            target = block[row : row + high, place * channels : (place + length) * channels]
            if from_row < 0 or from_place < 0:
                target.zero_()
            else:
                left = from_place * channels
                target.copy_(source[from_row : from_row + high, left : left + length * channels])


def _runs(sources: list[int]) -> list[tuple[int, int, int]]:
    """``(place, source, length)`` of the longest pieces that can be copied at once."""
    found = []
    place = 0
    while place < len(sources):
        first, length = sources[place], 1
        while place + length < len(sources) and sources[place + length] == (first + length if first >= 0 else -1):
            length += 1
        found.append((place, first, length))
        place += length
    return found


def _weighted(x: Tensor, y: Tensor, taps: list[tuple[int, int]], weights: list[float], *, once: bool) -> None:
    """``y = Σ weight · x`` shifted by the tap; a weight of 0 counts only where nothing else does."""
    used = [k for k, weight in enumerate(weights) if weight != 0] or [0]
    sum_shifted(x, y, [taps[k] for k in used], torch.tensor([weights[k] for k in used]), once=once)
