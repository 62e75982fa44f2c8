"""Weight gradient: at every tap, sums over places of packed inputs times upstream gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from convlens.kernels.cpu.codegen import INT, Function, Module, Pointer, Value
from convlens.kernels.cpu.direct.geometry import Shape, Source, choose_block
from convlens.kernels.cpu.direct.multiply import LONGEST_SUM
from convlens.kernels.cpu.direct.pack import pack_body, tap_list

__all__ = ["Sums", "build_weight_grad", "choose_sums"]

_BAND_BYTES = 384 << 10


@dataclass(frozen=True, slots=True)
class Sums:
    """Blocks of ``rows`` input channels × vectors of output channels; bands of ``height`` rows of places."""

    rows: int
    widths: tuple[int, int]
    counts: tuple[int, int]
    height: int
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors of output channels of a group."""
        return sum(w * c for w, c in zip(self.widths, self.counts, strict=True))

    def gradient_axes(self, shape: Shape) -> tuple[Source, Source, Source]:
        """The upstream gradient as a packed source without padding."""
        depth, rows, columns = (Source(n, 0, n) for n in shape.dest)
        return depth, rows, columns

    def packs_gradient(self, shape: Shape) -> bool:
        """Whether the upstream gradient must be packed."""
        return not shape.channels_last or shape.dest_channels % self.lanes != 0

    def sums_values(self, shape: Shape) -> int:
        """Values of all sums: ``[group][tap][input channel][output channel]``."""
        return shape.groups * shape.taps * shape.source_channels * self.vectors * self.lanes


@lru_cache(maxsize=1024)
def choose_sums(shape: Shape, lanes: int, registers: int) -> Sums:
    """The blocks of least cycles, and bands that stay in the second-level cache."""
    block = choose_block(shape.dest_channels, 1, shape.source_channels, lanes, registers)
    used = [size[1] for size, count in zip(block.places, block.counts, strict=True) if count]
    _, rows, columns = shape.passes[0]
    kept = shape.groups * block.vectors * lanes
    line = 4 * (
        rows.step * shape.source[2].packed * shape.pitch * len(shape.passes[0][0].taps) + columns.count * kept
    )
    height = min(rows.count, max(1, _BAND_BYTES // line))
    height = math.ceil(rows.count / math.ceil(rows.count / height))
    return Sums(min(used), block.widths, block.counts, height, lanes)


def build_weight_grad(m: Module, shape: Shape, cut: Sums) -> None:
    """Export ``run(error, source, weight, packed, packed_error, sums, batch, threads)``."""
    lanes = cut.lanes
    pack = pack_body(
        m, "pack", shape.source, shape.groups, shape.source_channels, shape.source_channels, shape.channels_last
    )
    error = pack_body(
        m, "pack_error", cut.gradient_axes(shape), shape.groups, shape.dest_channels, cut.vectors * lanes,
        shape.channels_last,
    )  # fmt: skip
    products = _products_body(m, shape, cut)
    results = _results_body(m, shape, cut)
    with m.function(
        "run", error="f32*", source="f32*", weight="f32*", packed="f32*", packed_error="f32*", sums="f32*",
        batch="int",
    ) as f:  # fmt: skip
        if shape.packs:
            f.parallel(pack, f.batch * (shape.source[0].packed * shape.source[1].packed), f.source, f.packed)
        if cut.packs_gradient(shape):
            f.parallel(error, f.batch * (shape.dest[0] * shape.dest[1]), f.error, f.packed_error)
        f.parallel(products, _items(shape, cut), f.packed, f.packed_error, f.sums, f.batch)
        f.parallel(results, shape.groups * cut.vectors * shape.source_channels, f.sums, f.weight)


def _items(shape: Shape, cut: Sums) -> int:
    return shape.groups * shape.taps * -(-shape.source_channels // cut.rows)


def _products_body(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over groups × taps × blocks of input channels: all their sums, band by band of places."""
    lanes, axes = cut.lanes, shape.passes[0]
    depth, rows, columns = axes
    blocks = -(-shape.source_channels // cut.rows)
    rest = shape.source_channels % cut.rows
    taps = tap_list(shape, axes)
    with m.body("products", packed="f32*", error="f32*", sums="f32*", batch="int") as f:
        offsets = Pointer(f, m.constant("tap_offsets", INT, [offset for _, offset in taps]), INT)
        bands = -(-rows.count // cut.height)
        with f.loop(0, f.batch * (depth.count * bands)) as number, f.loop(f.begin, f.end) as item:
            first, plane = number % bands * cut.height, number // bands
            image, z = plane // depth.count, plane % depth.count
            count = f.minimum(cut.height, f.index(rows.count) - first)
            block, other = item % blocks, item // blocks
            tap, group = other % shape.taps, other // shape.taps
            place = (z * depth.step * shape.source[1].packed + first * rows.step) * shape.source[2].packed
            source = f.packed + (
                (image * shape.packed_places + place) * shape.pitch + offsets.load(tap)
                + group * shape.source_channels + block * cut.rows
            )  # fmt: skip
            pitch = shape.groups * cut.vectors * lanes
            error = f.error + (
                (plane * rows.count + first) * (columns.count * pitch) + group * (cut.vectors * lanes)
            )
            sums = f.sums + ((group * shape.taps + tap) * shape.source_channels + block * cut.rows) * (
                cut.vectors * lanes
            )
            work = _Products(f, shape, cut, source, error, sums, count, number)
            if not rest:
                work.emit(cut.rows)
            else:
                with f.when_else(block < blocks - 1) as (whole, last):
                    with whole:
                        work.emit(cut.rows)
                    with last:
                        work.emit(rest)
    return f


class _Products:
    """Emits the sums of a block of input channels with every vector of output channels over one band."""

    def __init__(
        self, f: Function, shape: Shape, cut: Sums, source: Pointer, error: Pointer, sums: Pointer, count: Value,
        number: Value,
    ) -> None:  # fmt: skip
        self.f, self.shape, self.cut = f, shape, cut
        self.source, self.error, self.sums, self.count, self.number = source, error, sums, count, number

    def emit(self, channels: int) -> None:
        """See the class."""
        f, cut = self.f, self.cut
        for first, width, count in _blocks(cut):
            with f.loop(0, count) as block:
                self._block(channels, (block * width + first) * cut.lanes, width)

    def _block(self, channels: int, at: Value, width: int) -> None:
        f, shape, lanes = self.f, self.shape, self.cut.lanes
        _, rows, columns = shape.passes[0]
        pitch = shape.groups * self.cut.vectors * lanes
        held = [f.variable(f.zeros(lanes)) for _ in range(channels * width)]
        run = max(1, LONGEST_SUM // columns.count)
        with f.loop(0, self.count, run) as begin:
            for value in held:
                value.set(f.zeros(lanes))
            with f.loop(begin, f.minimum(begin + run, self.count)) as row:
                source = self.source + row * (rows.step * shape.source[2].packed * shape.pitch)
                error = self.error + (row * (columns.count * pitch) + at)
                with f.loop(0, columns.count) as column:
                    here, there = source + column * (columns.step * shape.pitch), error + column * pitch
                    values = [there.load(v * lanes, lanes) for v in range(width)]
                    for c in range(channels):
                        factor = here.broadcast(c, lanes)
                        for v in range(width):
                            total = held[c * width + v]
                            total.set(f.fma(factor, values[v], total.get()))
            line = self.cut.vectors * lanes
            places = [(c, v, at + (c * line + v * lanes)) for c in range(channels) for v in range(width)]
            with f.when(self.number + begin > 0):
                for c, v, place in places:
                    kept = held[c * width + v]
                    kept.set(kept.get() + self.sums.load(place, lanes))
            for c, v, place in places:
                self.sums.store(held[c * width + v].get(), place)


def _blocks(cut: Sums) -> Iterator[tuple[int, int, int]]:
    """First vector, width and number of the blocks of either width."""
    first = 0
    for width, count in zip(cut.widths, cut.counts, strict=True):
        if count:
            yield first, width, count
        first += width * count


def _results_body(m: Module, shape: Shape, cut: Sums) -> Function:
    """Body over groups × vectors of output channels × input channels: sums to ``weight[out][in][tap]``."""
    lanes, taps = cut.lanes, shape.taps
    with m.body("results", sums="f32*", weight="f32*") as f:
        with f.loop(f.begin, f.end) as item:
            channel, rest = item % shape.source_channels, item // shape.source_channels
            vector, group = rest % cut.vectors, rest // cut.vectors
            line = shape.source_channels * cut.vectors * lanes
            at = f.sums + (group * (taps * line) + channel * (cut.vectors * lanes) + vector * lanes)
            first = group * shape.weight_group + vector * lanes * shape.weight_dest + channel * shape.weight_source
            left = f.index(shape.dest_channels) - vector * lanes
            for start in range(0, taps, lanes):
                count = min(lanes, taps - start)
                values = [at.load((start + i) * line, lanes) for i in range(count)]
                mask = None if count == lanes else f.mask_below(count, lanes)
                for lane, row in enumerate(f.transpose(values + [values[-1]] * (lanes - count))):
                    with f.when(left > lane):
                        (f.weight + (first + (lane * shape.weight_dest + start))).store(row, mask=mask)
    f.ir.attributes.add("noinline")
    return f
