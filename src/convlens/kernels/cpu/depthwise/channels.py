"""Channels as lanes (the channels-last layout): a run of neighbouring places of some channels in registers.

Every tap is a whole vector of weights, every place a whole vector of the source, so strides and dilations cost
nothing extra, and a source vector is loaded once for all places that it feeds. Which taps fall outside a row is
known when the code is written: runs at the edges have code of their own, those between share a loop. The input
gradient is the same loop read backwards: place u takes tap k from ``(u + pad - k·dilation) / stride``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from convlens.kernels.cpu.codegen import Function, Module, Pointer, Target, Value, Variable
from convlens.kernels.cpu.depthwise.geometry import Shape, Triple
from convlens.kernels.cpu.epilogue import activated

__all__ = ["build", "origin"]

_LONGEST_RUN = 14
_BAND = 8  # rows that one run of places goes down before the next, where a source row feeds several
_AHEAD = 2  # rows between what is computed and what is fetched


@dataclass(frozen=True)
class _Run:
    """``places`` neighbouring out places: which source offsets feed which (place, tap), from ``first`` on."""

    first: int
    places: int
    users: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    """(source offset from that of the run, ((place, tap), …)), …"""


def build(m: Module, shape: Shape, backward: bool) -> None:
    """``places(x, w, bias, y, batch)`` with the weight as ``(taps, channels)``; ``backward``: the input gradient.

    ``shape`` is the forward one; backward, ``x`` is the gradient of its output. Work items are rows; a thread's
    rows are taken a band at a time, all rows of the band for one run and vector of channels before the next.
    """
    depth, height, _ = shape.in_size if backward else shape.out_size
    tall = _BAND if shape.stride[1] == 1 else 1
    with m.body("rows", x="f32*", w="f32*", bias="f32*", y="f32*") as f:
        with f.loop(f.begin // height, (f.end + (height - 1)) // height) as plane:
            first = plane * height
            begin, end = f.maximum(f.begin, first), f.minimum(f.end, first + height)
            with f.loop(begin, end, tall) as band:
                span = (band - first, f.minimum(band + tall, end) - first)
                _Band(f, shape, backward, plane // depth, plane % depth, span).emit()
    rows = f
    with m.function("places", x="f32*", w="f32*", bias="f32*", y="f32*", batch="int") as f:
        f.parallel(rows, f.batch * (depth * height), f.x, f.w, f.bias, f.y)


class _Band:
    """Emits some neighbouring out rows of one plane, all channels.

    A source row feeds as many out rows as the window is tall: while one run of places and one vector of channels
    goes down the band, it stays in the first-level cache.
    """

    def __init__(
        self, f: Function, shape: Shape, backward: bool, image: Value, depth: Value, rows: tuple[Value, Value]
    ) -> None:
        self.f, self.shape, self.backward, self.image, self.depth = f, shape, backward, image, depth
        self.rows = rows
        self.lanes, self.channels = f.target.lanes, shape.channels
        self.source: Triple = shape.out_size if backward else shape.in_size
        self.size: Triple = shape.in_size if backward else shape.out_size

    def emit(self) -> None:
        longest = _run_length(self.shape, self.backward, self.f.target)
        for runs in _grouped(_runs(self.shape, self.backward, longest)):
            first, step = runs[0].first, runs[0].places
            if len(runs) == 1:
                self._channels(runs[0], self.f.index(first))
                continue
            with self.f.loop(first, first + len(runs) * step, step) as start:
                self._channels(runs[0], start)

    def _channels(self, run: _Run, start: Value) -> None:
        whole = self.channels // self.lanes * self.lanes
        if whole:
            with self.f.loop(0, whole, self.lanes) as channel, self.f.loop(*self.rows) as row:
                self._sum(run, start, channel, row, None)
        if whole < self.channels:
            mask = self.f.mask_below(self.channels - whole, self.lanes)
            with self.f.loop(*self.rows) as row:
                self._sum(run, start, self.f.index(whole), row, mask)

    def _ask_for_next(self, run: _Run, start: Value, channel: Value, row: Value, into: Pointer) -> None:
        """Fetch the lines of the result, and of source rows that are needed a few rows on."""
        shape = self.shape
        for place in range(run.places):
            into.prefetch((start + place) * self.channels + channel, write=True, locality=2)
        if shape.stride[1] > 1:
            return  # read once, from end to end: the hardware sees it coming
        below = row + (_AHEAD + shape.pad[1])
        if not self.backward:
            below = row + (_AHEAD + (shape.kernel[1] - 1) * shape.dilation[1] - shape.pad[1])
        step = shape.stride[2]
        first, count = (
            (start // step, -(-run.places // step)) if self.backward else (start * step, run.places * step)
        )
        line = (self.image * self.source[0] + self.depth) * self.source[1] + below
        read = self.f.x + (line * self.source[2] + first) * self.channels + channel
        for place in range(count):
            read.prefetch(place * self.channels, locality=2)

    def _sum(self, run: _Run, start: Value, channel: Value, row: Value, mask: Value | None) -> None:
        f, shape, lanes = self.f, self.shape, self.lanes
        zero = f.bias.load(channel, lanes, mask=mask) if shape.bias and not self.backward else f.zeros(lanes)
        line = (self.image * self.size[0] + self.depth) * self.size[1] + row
        into = f.y + line * (self.size[2] * self.channels)
        self._ask_for_next(run, start, channel, row, into)
        acc = [f.variable(zero) for _ in range(run.places)]
        depth, height, width = self.source
        step = shape.stride[2]
        source = (start // step if self.backward else start * step) * self.channels + channel
        with f.loop(0, shape.kernel[0]) as tap_d:
            from_d, there = origin(f, shape, 0, self.depth, tap_d, self.backward)
            with f.when(there), f.loop(0, shape.kernel[1]) as tap_h:
                from_row, there = origin(f, shape, 1, row, tap_h, self.backward)
                with f.when(there):
                    line = ((self.image * depth + from_d) * height + from_row) * (width * self.channels)
                    taps = (tap_d * shape.kernel[1] + tap_h) * shape.kernel[2]
                    self._taps(acc, run, f.x + (line + source), f.w + (taps * self.channels + channel), mask)
        for place, total in enumerate(acc):
            value = activated(f, total.get(), "none" if self.backward else shape.activation)
            into.store(value, (start + place) * self.channels + channel, mask=mask)

    def _taps(self, acc: list[Variable], run: _Run, read: Pointer, w: Pointer, mask: Value | None) -> None:
        wanted = sorted({tap for _, users in run.users for _, tap in users})
        weights = {tap: w.load(tap * self.channels, self.lanes, mask=mask) for tap in wanted}
        for offset, users in run.users:
            value = read.load(offset * self.channels, self.lanes, mask=mask)
            for place, tap in users:
                acc[place].set(self.f.fma(value, weights[tap], acc[place].get()))


def origin(
    f: Function, shape: Shape, axis: int, place: Value, tap: Value | int, backward: bool = False
) -> tuple[Value, Value]:
    """Which source place a tap reads for an out place, and whether there is one."""
    step, pad, apart = shape.stride[axis], shape.pad[axis], shape.dilation[axis]
    if not backward:
        found = place * step - pad + f.index(tap) * apart
        return found, (found >= 0) & (found < shape.in_size[axis])
    reach = place + pad - f.index(tap) * apart
    found = reach // step
    there = (reach >= 0) & (found < shape.out_size[axis])
    return found, there & (reach % step).equals(0) if step > 1 else there


def _run_length(shape: Shape, backward: bool, target: Target) -> int:
    width = (shape.in_size if backward else shape.out_size)[2]
    free = target.registers - 2 - min(shape.kernel[2], target.registers // 2 - 2)
    longest = max(1, min(_LONGEST_RUN, free))
    step = shape.stride[2] if backward else 1
    # equal runs rather than a short last one; backward, runs start in one phase
    even = -(-width // -(-width // longest))
    return max(1, -(-even // step)) * step


def _runs(shape: Shape, backward: bool, length: int) -> Iterator[_Run]:
    width, size = (
        (shape.in_size if backward else shape.out_size)[2],
        (shape.out_size if backward else shape.in_size)[2],
    )
    step, pad, apart = shape.stride[2], shape.pad[2], shape.dilation[2]
    for first in range(0, width, length):
        places = min(length, width - first)
        base = first // step if backward else first * step
        feeds: dict[int, list[tuple[int, int]]] = {}
        for place in range(places):
            for tap in range(shape.kernel[2]):
                reach = place + pad - tap * apart
                if backward and reach % step:
                    continue
                offset = reach // step if backward else place * step - pad + tap * apart
                if 0 <= base + offset < size:
                    feeds.setdefault(offset, []).append((place, tap))
        yield _Run(first, places, tuple((offset, tuple(feeds[offset])) for offset in sorted(feeds)))


def _grouped(runs: Iterator[_Run]) -> list[list[_Run]]:
    """Neighbouring runs of one pattern together."""
    groups: list[list[_Run]] = []
    for run in runs:
        if groups and (groups[-1][0].places, groups[-1][0].users) == (run.places, run.users):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups
