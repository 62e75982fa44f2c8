"""Which samples train, which choose, which judge (row I3): by content, so that the answer survives added files.

Every sample has a number in [0, 1) from the hash of its content (or of its group). Below the test fraction it is
test; from 0.5 on, as wide as the dev fraction, it is dev; else train. So a sample stays where it is when others
come or go, and when the fractions shrink because the data grew, samples only leave dev and test, never enter
them. Equal contents and equal groups get one number and so fall on one side. A class whose share of a part misses
its quota by more than a quarter (likely only below about 150 samples) is mended by moving the samples nearest to
the limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from convlens.data.dataset import SPLITS, Indices
from convlens.data.preprocessing import Array
from convlens.errors import DataError

__all__ = [
    "FREE",
    "content_digests",
    "content_numbers",
    "default_fractions",
    "joined_units",
    "numbered",
    "split_samples",
]

FREE = -1
_TRAIN, _DEV, _TEST = 0, 1, 2
_DEV_START = 0.5


def default_fractions(samples: int) -> tuple[float, float, float]:
    """Fractions of train, dev and test by the size of the data: row I3's two ends and two steps between."""
    if samples < 10_000:
        return 0.6, 0.2, 0.2
    if samples < 100_000:
        return 0.8, 0.1, 0.1
    if samples < 1_000_000:
        return 0.9, 0.05, 0.05
    return 0.98, 0.01, 0.01


def content_digests(inputs: Array) -> Array:
    """16 bytes of BLAKE2b over each sample of an array, uint8 ``[N, 16]``."""
    rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1).view(np.uint8)
    joined = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(len(inputs), 16)


def content_numbers(digests: Array) -> Indices:
    """Number of the content of each sample, the same for equal contents, int64 ``[N]``."""
    rows: Array = np.ascontiguousarray(digests).view("V16").ravel()
    inverse: Array = np.unique(rows, return_inverse=True)[1]
    return inverse.astype(np.int64)


def joined_units(digests: Array, groups: Indices | None) -> Indices:
    """Number of the unit that stays together: samples joined by equal content or equal group, int64 ``[N]``."""
    same_content = content_numbers(digests)
    if groups is None:
        return same_content
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    contents, group_count = int(same_content.max(initial=-1)) + 1, int(groups.max(initial=-1)) + 1
    size = contents + group_count
    edges = coo_matrix((np.ones(len(groups)), (same_content, contents + groups)), shape=(size, size))
    labels: Indices = connected_components(edges, directed=False)[1].astype(np.int64)
    return labels[same_content]


def split_samples(
    labels: Array,
    digests: Array,
    *,
    group_names: Sequence[str] | None = None,
    given: Array | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
    fold: tuple[int, int] | None = None,
) -> tuple[dict[str, Indices], str]:
    """Sample numbers of ``train``, ``dev`` and ``test``, and the rule in words.

    Args:
        labels: int64 ``[N]`` or multi-label ``[N, classes]``.
        digests: uint8 ``[N, 16]`` content hashes.
        group_names: name of the group of each sample, or None.
        given: int8 ``[N]`` of 0 train, 1 dev, 2 test, `FREE`: what the layout of the source says.
        fractions: wanted shares; None takes `default_fractions`.
        seed: another split by chance.
        fold: ``(k, n)``: the test part is the k-th of n parts, which together are all samples; ``fractions`` then
            say how much of the whole is dev, and the rest trains.

    Raises:
        DataError: folds of a source that says itself which samples are for testing.
    """
    if fold is not None:
        return _folded(
            labels, digests, group_names, given, fractions or default_fractions(len(labels)), seed, fold
        )
    side = np.full(len(labels), FREE, np.int8) if given is None else given.astype(np.int8)
    fractions = fractions or default_fractions(len(labels))
    free, wanted, rule = _what_is_open(side, fractions)
    if free.any():
        where = np.flatnonzero(free)
        free_groups = None if group_names is None else [group_names[i] for i in where.tolist()]
        units = joined_units(digests[where], None if free_groups is None else numbered(free_groups))
        numbers = _unit_numbers(units, digests[where], free_groups, seed)
        strata = labels[where] if labels.ndim == 1 else labels[where].argmax(axis=1)
        side[where] = _assign(units, numbers, strata, wanted)
    return {name: np.flatnonzero(side == number).astype(np.int64) for number, name in enumerate(SPLITS)}, rule


def _folded(
    labels: Array,
    digests: Array,
    group_names: Sequence[str] | None,
    given: Array | None,
    fractions: tuple[float, float, float],
    seed: int,
    fold: tuple[int, int],
) -> tuple[dict[str, Indices], str]:
    """Cross-validation: class by class, units in the order of their numbers are dealt out to the parts."""
    if given is not None and (given != FREE).any():
        raise DataError("fold: the source itself says which samples are for testing. Fix: leave --fold out.")
    units = joined_units(digests, None if group_names is None else numbered(group_names))
    numbers = _unit_numbers(units, digests, None if group_names is None else list(group_names), seed)
    strata = labels if labels.ndim == 1 else labels.argmax(axis=1)
    part = _dealt(units, numbers, strata, fold[1])
    rest = np.flatnonzero(part != fold[0] - 1)
    side = np.full(len(labels), _TEST, np.int8)
    rest_units = np.unique(units[rest], return_inverse=True)[1].ravel()
    rest_numbers = np.zeros(int(rest_units.max(initial=-1)) + 1)
    rest_numbers[rest_units] = numbers[units[rest]]
    dev = min(0.9, fractions[1] * len(labels) / max(1, len(rest)))
    side[rest] = _assign(rest_units, rest_numbers, strata[rest], (dev, 0.0))
    rule = f"fold {fold[0]} of {fold[1]} is the test part, {100 * fractions[1]:g} % dev, by content, stratified"
    return {name: np.flatnonzero(side == number).astype(np.int64) for number, name in enumerate(SPLITS)}, rule


def _dealt(units: Indices, numbers: Array, strata: Array, folds: int) -> Indices:
    """Part 0 … folds - 1 of each sample; the deal goes on from class to class, so parts are of one size."""
    first = np.zeros(len(numbers), np.int64)
    first[units[::-1]] = np.arange(len(units))[::-1]
    order = np.lexsort((numbers, strata[first]))
    part = np.empty(len(numbers), np.int64)
    part[order] = np.arange(len(numbers)) % folds
    return part[units]


def numbered(names: Sequence[str]) -> Indices:
    """Number of each name in sorted order, int64 ``[N]``."""
    inverse: Array = np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)[1]
    return inverse.astype(np.int64)


def _what_is_open(side: Array, fractions: tuple[float, float, float]) -> tuple[Array, tuple[float, float], str]:
    """Which samples are still to be placed, with which (dev, test) shares; says so in words."""
    has = [bool((side == number).any()) for number in (_TRAIN, _DEV, _TEST)]
    _, dev, test = fractions
    percent = "/".join(f"{100 * part:g}" for part in fractions)
    if not any(has):
        return side == FREE, (dev, test), f"{percent} by content, stratified"
    if not has[_TRAIN] or (has[_DEV] and has[_TEST]):
        return side == FREE, (dev if not has[_DEV] else 0.0, test if not has[_TEST] else 0.0), "as the source says"
    wanted = (0.0 if has[_DEV] else dev, 0.0 if has[_TEST] else test)
    carved = [f"{100 * share:g} % {name}" for name, share in zip(("dev", "test"), wanted, strict=True) if share]
    kept = " and ".join(name for name, present in zip(SPLITS, has, strict=True) if present)
    return (
        (side == FREE) | (side == _TRAIN),
        wanted,
        f"{kept} as the source says, {' and '.join(carved)} out of train",
    )


def _unit_numbers(units: Indices, digests: Array, group_names: list[str] | None, seed: int) -> Array:
    """One number in [0, 1) per unit: the smallest over its members, each from its group's name or its content."""
    key = seed.to_bytes(8, "little")
    if group_names is None:
        raw = [row.tobytes() for row in np.ascontiguousarray(digests)]
    else:
        raw = [name.encode() for name in group_names]
    hashed = b"".join(hashlib.blake2b(item, digest_size=8, key=key).digest() for item in raw)
    numbers = np.frombuffer(hashed, np.uint64) / 2.0**64
    smallest = np.ones(int(units.max()) + 1)
    np.minimum.at(smallest, units, numbers)
    return smallest


def _assign(units: Indices, numbers: Array, strata: Array, wanted: tuple[float, float]) -> Array:
    """Side of every sample: by limits on its unit's number, then quotas mended class by class."""
    dev, test = wanted
    side = np.zeros(len(numbers), np.int8)
    side[(numbers >= _DEV_START) & (numbers < _DEV_START + dev)] = _DEV
    side[numbers < test] = _TEST
    if dev + test > _DEV_START:  # unusual shares: no room for two separate bands
        side = np.where(numbers < test, _TEST, np.where(numbers < test + dev, _DEV, _TRAIN)).astype(np.int8)
    sizes = np.bincount(units, minlength=len(numbers))
    first = np.zeros(len(numbers), np.int64)
    first[units[::-1]] = np.arange(len(units))[::-1]
    unit_class = strata[first]
    for label in np.unique(unit_class):
        members = np.flatnonzero(unit_class == label)
        for part, share in ((_TEST, test), (_DEV, dev)):
            if share:
                _mend_quota(side, members[np.argsort(numbers[members], kind="stable")], sizes, part, share)
    return side[units]


def _mend_quota(side: Array, members: Indices, sizes: Array, part: int, share: float) -> None:
    """Move units of one class between `part` and train until its share is within a quarter of the quota.

    Units come in the order of their numbers, so those just past a part's upper limit are moved first.
    """
    total = int(sizes[members].sum())
    quota = share * total
    slack = max(0.5, 0.25 * quota)
    least, most = max(quota - slack, min(1.0, total / 3)), quota + slack
    inside = members[side[members] == part].tolist()
    have = int(sizes[inside].sum())
    while have > most and inside:
        unit = inside.pop()
        side[unit] = _TRAIN
        have -= int(sizes[unit])
    last = members.tolist().index(inside[-1]) if inside else 0
    training = int(sizes[members[side[members] == _TRAIN]].sum())
    for unit in [*members[last:], *members[:last]]:
        if have >= least:
            break
        fits = have + sizes[unit] <= max(most, 1) and training > sizes[unit]
        if side[unit] == _TRAIN and fits:
            side[unit] = part
            have += int(sizes[unit])
            training -= int(sizes[unit])
