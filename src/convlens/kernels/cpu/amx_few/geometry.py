"""How few channels fill tiles: pairs of taps as the rows of a tile, neighbouring places as its columns.

A source row becomes *pair rows*, one for every two taps (a channel and a horizontal tap each) that meet it: at
place p the two values that output p multiplies. Pair rows of neighbouring source rows lie behind each other,
so the sum over all taps runs through them 16 at a time, a tile each, whatever rows and channels they belong to:
7 × 7 windows of three channels take 5 tiles, 5 × 20 windows of one take 4.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

from convlens.kernels.cpu.direct_few.geometry import Band, Shape, ceil_div, choose_bands, round_up

__all__ = ["LANES", "Cut", "Tap", "choose_cut", "pairs_of", "tile_products"]

LANES = 16
Tap = tuple[int, int]
"""Channel and horizontal tap."""


@lru_cache(maxsize=1024)
def pairs_of(channels: int, kernel_width: int) -> tuple[tuple[Tap, Tap | None], ...]:
    """The taps that meet one source row, two and two: neighbours of one channel first, then what is left."""
    pairs: list[tuple[Tap, Tap | None]] = [
        ((c, b), (c, b + 1)) for c in range(channels) for b in range(0, kernel_width - 1, 2)
    ]
    if kernel_width % 2:
        left = [(c, kernel_width - 1) for c in range(channels)]
        pairs += itertools.zip_longest(left[::2], left[1::2])
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Cut:
    """Bands of result rows, and what a thread keeps for one.

    Attributes:
        shape: the forward convolution.
        bands: of an image.
        parts: bfloat16 parts of the source.
        products: products of parts.
    """

    shape: Shape
    bands: int
    parts: int
    products: int

    @property
    def pairs(self) -> tuple[tuple[Tap, Tap | None], ...]:
        """Pair rows of one source row."""
        return pairs_of(self.shape.in_channels, self.shape.kernel_width)

    @property
    def steps(self) -> int:
        """Tiles that the sum runs through."""
        return ceil_div(self.shape.kernel_height * len(self.pairs), LANES)

    @property
    def rows(self) -> int:
        """Most source rows of a band."""
        return _source_rows(self.shape, ceil_div(self.shape.out_height, self.bands))

    @property
    def pitch(self) -> int:
        """bfloat16 elements of a pair row: an odd number of cache lines."""
        lines = ceil_div(self.shape.out_width, LANES)
        return 2 * LANES * (lines + 1 - lines % 2)

    @property
    def part_elements(self) -> int:
        """Elements of one part of a band; the last tile may look past its last row."""
        return (self.rows * len(self.pairs) + LANES) * self.pitch

    @property
    def natural(self) -> bool:
        """Whether pairs of neighbouring taps are pairs of neighbouring values, as they are at stride 2."""
        return self.shape.stride_x == 2

    @property
    def line(self) -> Band:
        """One padded source row in float32: as it lies, or dealt into the phases of the stride."""
        shape = self.shape
        step = 1 if self.natural else shape.stride_x
        reach = shape.kernel_width + (self.pitch if self.natural else step * self.pitch // 2)
        return Band(shape.in_channels, 1, step, round_up(reach // step + 2, 2 * LANES))

    @property
    def thread_bytes(self) -> int:
        """The band, the row in float32 and its parts in bfloat16."""
        return 2 * self.parts * self.part_elements + (4 + 2 * self.parts) * self.line.values

    @property
    def dest_tiles(self) -> int:
        """Tiles of 16 output channels, in pairs."""
        return 2 * ceil_div(self.shape.out_channels, 2 * LANES)

    def weight_elements(self, weight_parts: int) -> int:
        """bfloat16 elements of the packed weights."""
        return self.dest_tiles * self.steps * weight_parts * 512

    def offsets(self) -> list[int]:
        """Of each term of the sum, as tiles take them, its place in an output channel's weights; -1 for none."""
        shape, found = self.shape, []
        for kh in range(shape.kernel_height):
            for tap in itertools.chain(*self.pairs):
                place = (tap[0] * shape.kernel_height + kh) * shape.kernel_width + tap[1] if tap else -1
                found.append(place)
        return found + [-1] * (2 * LANES * self.steps - len(found))


def _source_rows(shape: Shape, rows: int) -> int:
    return (rows - 1) * shape.stride_y + shape.kernel_height


@lru_cache(maxsize=1024)
def choose_cut(shape: Shape, parts: int, products: int, batch: int, threads: int, l2_bytes: int) -> Cut:
    """Bands that stay in half of the second-level cache, and enough of them for every thread."""
    one = Cut(shape, shape.out_height, parts, products)
    row_bytes = 2 * parts * len(one.pairs) * one.pitch
    most = (l2_bytes // 2 // row_bytes - shape.kernel_height) // shape.stride_y + 1
    bands = choose_bands(shape.out_height, max(batch, 1), max(1, most), min(4, shape.out_height), threads)
    return Cut(shape, bands, parts, products)


def tile_products(cut: Cut) -> float:
    """Products of tiles for one image."""
    shape = cut.shape
    places = shape.out_height * math.ceil(shape.out_width / LANES)
    return float(places * cut.dest_tiles * cut.steps * cut.products)
