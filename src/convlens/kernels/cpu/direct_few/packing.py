"""Copying a band of an image into padded planes of column phases, with zeros where the padding is."""

from __future__ import annotations

from typing import Any

from convlens.kernels.cpu.direct_few.geometry import Band

__all__ = ["emit_pack", "lane_mask"]

_AHEAD = 512  # values: rows lie one behind the other, so this is what comes next, too far for the hardware to see


def lane_mask(f: Any, first: int, last: int, lanes: int) -> Any | None:
    """Lanes ``first … last-1`` on; None when that is every lane."""
    first, last = max(first, 0), min(last, lanes)
    if first == 0 and last == lanes:
        return None
    if first == 0:
        return f.mask_below(last, lanes)
    return (f.iota(lanes) >= first) & f.mask_below(last, lanes)


def emit_pack(
    f: Any,
    image: Any,
    packed: Any,
    band: Band,
    first_row: Any,
    *,
    height: int,
    width: int,
    pad_top: int,
    pad_left: int,
    channels_last: bool,
) -> None:
    """Fill ``packed`` with padded rows ``first_row …`` of one image.

    Args:
        f: the function being emitted.
        image: pointer to ``(channels, height, width)`` or, channels last, ``(height, width, channels)``.
        packed: pointer to the band.
        band: its sizes.
        first_row: padded row that becomes row 0.
        height: rows of the image.
        width: columns of the image.
        pad_top: zero rows above the image.
        pad_left: zero columns before it.
        channels_last: memory order of the image.
    """
    merged = band.channels if channels_last else 1
    streams = 1 if channels_last else band.channels
    with f.loop(0, streams) as channel, f.loop(0, band.rows) as row:
        row_at = packed + channel * band.channel_values + row * band.row_values
        planes = [
            row_at + (part % merged * band.channel_values + part // merged * band.pitch)
            for part in range(merged * band.phases)
        ]
        source_row = first_row + row - pad_top
        inside = (source_row >= 0) & (source_row < height)
        with f.when_else(inside) as (copy, blank):
            with copy:
                source = image + (channel * height + source_row) * (width * merged)
                _emit_row(f, source, planes, band.pitch, width * merged, pad_left * merged)
            with blank:
                zeros = f.zeros(f.target.lanes)
                with f.loop(0, band.pitch, f.target.lanes) as q:
                    for plane in planes:
                        plane.store(zeros, q)


def _emit_row(f: Any, source: Any, planes: list[Any], pitch: int, length: int, lead: int) -> None:
    """Deal ``lead`` zeros, ``length`` values and zeros again to the planes in turn."""
    lanes, count = f.target.lanes, len(planes)
    group = lanes * count
    groups = pitch // lanes
    first_whole = max(0, min(groups, -(-lead // group)))
    after_whole = max(first_whole, min(groups, (length + lead) // group))
    for g in (*range(first_whole), *range(after_whole, groups)):
        vectors = [_edge(f, source, g * group + k * lanes - lead, length, lanes) for k in range(count)]
        if -lead <= g * group - lead < length:
            source.prefetch(g * group - lead + _AHEAD)
        for plane, dealt in zip(planes, _deal(f, vectors), strict=True):
            plane.store(dealt, g * lanes)
    if after_whole > first_whole:
        with f.loop(first_whole, after_whole) as g:
            vectors = [source.load(g * group + (k * lanes - lead), lanes) for k in range(count)]
            for k in range(count):
                source.prefetch(g * group + (k * lanes - lead + _AHEAD))
            for plane, dealt in zip(planes, _deal(f, vectors), strict=True):
                plane.store(dealt, g * lanes)


def _edge(f: Any, source: Any, start: int, length: int, lanes: int) -> Any:
    """Values ``start …`` of a row of ``length``, zero outside it, touching nothing there."""
    if start >= length or start + lanes <= 0:
        return f.zeros(lanes)
    mask = lane_mask(f, -start, length - start, lanes)
    return source.load(start, lanes) if mask is None else source.load(start, lanes, mask=mask)


def _deal(f: Any, vectors: list[Any]) -> list[Any]:
    """Vector ``p`` of the result holds every ``len(vectors)``-th value from the p-th on."""
    count = len(vectors)
    if count == 1:
        return vectors
    lanes = vectors[0].lanes
    dealt = []
    for phase in range(count):
        places = [lane * count + phase for lane in range(lanes)]
        picks = [place if place < 2 * lanes else 0 for place in places]
        chosen = f.shuffle(vectors[0], vectors[1], picks)
        for k in range(2, count):
            picks = [lanes + p % lanes if p // lanes == k else lane for lane, p in enumerate(places)]
            if picks != list(range(lanes)):
                chosen = f.shuffle(chosen, vectors[k], picks)
        dealt.append(chosen)
    return dealt
