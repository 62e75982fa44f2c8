"""Almost equal pictures: candidates by a perceptual hash, judged by the correlation of small copies."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from convlens.data.dataset import Indices
from convlens.data.preprocessing import Array

__all__ = ["difference_hashes", "near_pairs"]

_SIDE = 16
_SAME_BITS = 6
_BUCKET_LIMIT = 64
_CORRELATION = 0.995
_STEP = 4096


def difference_hashes(inputs: Array) -> tuple[Array, Array]:
    """64-bit difference hashes uint64 ``[N]`` and grey thumbnails float32 ``[N, 256]`` of mean 0 and length 1.

    A bit says whether a cell of a 8×9 reduction is brighter than its right neighbour (Krawetz 2013, "dHash").
    """
    hashes, small = [], []
    for start in range(0, len(inputs), _STEP):
        block = torch.from_numpy(inputs[start : start + _STEP].astype(np.float32)).mean(1, keepdim=True)
        cells = functional.adaptive_avg_pool2d(block, (8, 9))[:, 0].numpy()
        bits = (cells[:, :, :-1] > cells[:, :, 1:]).reshape(len(cells), 64)
        hashes.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
        thumbnails = functional.adaptive_avg_pool2d(block, _SIDE).flatten(1)
        thumbnails = thumbnails - thumbnails.mean(1, keepdim=True)
        small.append(functional.normalize(thumbnails, dim=1).numpy())
    return np.concatenate(hashes), np.concatenate(small)


def near_pairs(inputs: Array, sides: Indices) -> list[tuple[int, int]]:
    """Pairs ``(first, second)`` of almost equal pictures in different parts, first < second.

    Only samples that share two neighbouring bytes of their hashes are compared; hashes that differ in at most 3
    bits always do, up to 6 mostly. More than 64 samples with the same two bytes say nothing: left out.

    Args:
        inputs: pictures ``[N, C, H, W]``.
        sides: part of each, int64 ``[N]``.
    """
    hashes, small = difference_hashes(inputs)
    found: set[tuple[int, int]] = set()
    for place in range(8):
        keys = _rotated(hashes, 8 * place) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(members) <= _BUCKET_LIMIT and len(set(sides[members].tolist())) > 1:
                found.update(_judged(members, hashes, small, sides))
    return sorted(found)


def _rotated(values: Array, bits: int) -> Array:
    if not bits:
        return values
    turned: Array = (values >> np.uint64(bits)) | (values << np.uint64(64 - bits))
    return turned


def _bits_set(values: Array) -> Array:
    """Ones among the 64 bits of each value (``np.bitwise_count`` needs NumPy 2)."""
    counts: Array = np.unpackbits(values[..., None].view(np.uint8), axis=-1).sum(axis=-1)
    return counts


def _judged(members: Indices, hashes: Array, small: Array, sides: Indices) -> list[tuple[int, int]]:
    members = np.sort(members)
    differing = _bits_set(hashes[members][:, None] ^ hashes[members][None, :])
    alike = (differing <= _SAME_BITS) & (sides[members][:, None] != sides[members][None, :])
    alike &= small[members] @ small[members].T >= _CORRELATION
    first, second = np.nonzero(np.triu(alike, 1))
    return [(int(members[a]), int(members[b])) for a, b in zip(first, second, strict=True)]
