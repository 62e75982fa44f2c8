"""Geometry of the weight gradient on tiles: how places are cut into slabs, and sums into independent items.

``grad_weight[oc, ic, tap] = Σ_image Σ_p grad_output[oc, p] · input[ic, p*step + first + tap*spacing]``. tile's
rows are 16 input channels seen through one tap (a *unit*), its columns 16 output channels, and the summed index
runs over places, numbered ``p = y*row_places + x`` with a few junk places, whose grad_output is written as zero.
Inputs are kept channel by channel, so a tap is a constant distance; a strided axis is kept residue by residue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

from convlens.kernels.cpu.amx.geometry import Pass, pieces_of_row, weight_parts

__all__ = ["Sums", "choose_sums"]


@dataclass(frozen=True)
class Sums:
    """One way to cut the weight gradient.

    Attributes:
        of: the forward convolution.
        rows: output rows of a slab.
        columns: output columns of a slab; fewer than all only where there is one row.
        splits: parts into which slabs are dealt, each with sums of its own that are added at the end.
        shares: parts into which the input channels' tiles are dealt.
        parts: bfloat16 parts of the input.
        products: how many products of parts.
        images: images of which a slab takes the same rows: small images one by one would read and write all
            sums too often.
        copied: keep the inputs once per width tap, shifted, so that short rows need no junk places.
    """

    of: Pass
    rows: int
    columns: int
    splits: int
    shares: int
    parts: int
    products: int
    images: int = 1
    copied: bool = False

    @cached_property
    def grad_parts(self) -> int:
        """bfloat16 parts of grad_output."""
        return weight_parts(self.products)

    @cached_property
    def row_places(self) -> int:
        """Places of a row, junk included; even, so that pairs of places don't straddle rows."""
        width = self.of.axes[2]
        if self.copied:
            return math.ceil(self.columns / 2) * 2
        return math.ceil(math.ceil(width.buffer_length(self.columns) / width.buffer_step) / 2) * 2

    @cached_property
    def steps(self) -> int:
        """Products of 32 places in one image's part of a slab."""
        return math.ceil(self.rows * self.row_places / 32)

    @cached_property
    def taps(self) -> int:
        """Taps of the whole window."""
        return math.prod(axis.taps for axis in self.of.axes)

    @cached_property
    def channel_tiles(self) -> int:
        """Tiles of 16 input channels in one share of a group."""
        return math.ceil(math.ceil(self.of.source_channels / 16) / self.shares)

    @cached_property
    def units(self) -> int:
        """Tiles of input channels times taps, in one share."""
        return self.channel_tiles * self.taps

    @cached_property
    def unit_blocks(self) -> int:
        """Pairs of units."""
        return math.ceil(self.units / 2)

    @cached_property
    def phase_rows(self) -> int:
        """Rows kept of each residue of the row step."""
        height = self.of.axes[1]
        return math.ceil(height.buffer_length(self.rows) / height.buffer_step)

    @cached_property
    def versions(self) -> list[tuple[int, int]]:
        """Kept versions of a row: source place of its first element, and the distance between elements."""
        width = self.of.axes[2]
        if self.copied:
            return [(width.first + kw * width.spacing, width.step) for kw in range(width.taps)]
        between = width.source_step()
        return [(width.first + r * between, between * width.buffer_step) for r in range(width.buffer_step)]

    @cached_property
    def phase_elements(self) -> int:
        """Elements of one residue of rows and columns of one slice of a channel."""
        return self.phase_rows * self.row_places

    @cached_property
    def slices(self) -> int:
        """Depth slices in the buffer: those under one output slice."""
        return self.of.axes[0].buffer_length(1)

    @cached_property
    def slice_elements(self) -> int:
        """Elements of one slice of a channel."""
        return self.of.axes[1].buffer_step * len(self.versions) * self.phase_elements

    @cached_property
    def image_elements(self) -> int:
        """Elements of one image of a channel."""
        return self.slices * self.slice_elements

    @cached_property
    def plane_elements(self) -> int:
        """Elements from channel to channel: an odd number of cache lines, so that 16 rows meet 16 cache sets."""
        return math.ceil(max(self.images * self.image_elements - 32, 0) / 64) * 64 + 32

    @cached_property
    def input_part(self) -> int:
        """Elements of one part of the kept inputs."""
        slack = 64 + 32 * math.ceil(self.row_places / 32)
        return math.ceil((self.channel_tiles * 16 * self.plane_elements + slack) / 64) * 64

    @cached_property
    def grad_tiles(self) -> int:
        """Tiles of output channels in a block: two, or one where there is only one."""
        return min(2, self.of.dest_tiles)

    @cached_property
    def grad_block(self) -> int:
        """Elements of one block of output channels, all parts."""
        return self.images * self.steps * self.grad_parts * self.grad_tiles * 512

    @cached_property
    def buffer_elements(self) -> int:
        """bfloat16 elements that one thread needs: inputs, then grad_outputs."""
        return self.parts * self.input_part + self.of.dest_pairs * self.grad_block

    @cached_property
    def sum_elements(self) -> int:
        """float32 elements of one item's sums."""
        return self.unit_blocks * self.of.dest_pairs * 1024

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """Slabs of one image along depth, height and width."""
        depth, height, width = self.of.axes
        return depth.grid, math.ceil(height.grid / self.rows), math.ceil(width.grid / self.columns)

    @cached_property
    def slabs_per_image(self) -> int:
        """Slabs of one image."""
        return math.prod(self.counts)

    def unit_offset(self, unit: int) -> int:
        """Element of the kept inputs where a unit's first row begins, for place 0."""
        channels, tap = divmod(unit, self.taps)
        depth, height, width = self.of.axes
        rest, kw = divmod(tap, width.taps)
        kd, kh = divmod(rest, height.taps)
        row, column = kh * height.spacing, kw * width.spacing
        version, shift = (kw, 0) if self.copied else (column % width.buffer_step, column // width.buffer_step)
        residue = row % height.buffer_step * len(self.versions) + version
        offset = channels * 16 * self.plane_elements + kd * depth.spacing * self.slice_elements
        offset += residue * self.phase_elements
        return offset + row // height.buffer_step * self.row_places + shift

    def cost(self, batch: int, threads: int) -> float:
        """Rough cycles, for comparing cuts."""
        p = self.of
        dots = min(2, self.units) * self.grad_tiles
        block = self.images * self.steps * self.products * 4.5 * dots + 500
        kept = self.channel_tiles * 16 * self.images * self.image_elements
        grads = p.dest_pairs * self.grad_tiles * 16 * self.images * self.steps * 32
        slab = self.unit_blocks * p.dest_pairs * block + (kept + grads) * 0.6 * self.parts
        sums = self.sum_elements * 4
        # the inner loop runs over all kept inputs for one pair of grad_output tiles
        inner = 2 * self.parts * kept + 2 * self.grad_block
        if inner > 1_200_000:
            slab *= 1.5
        if sums + inner > 1_600_000:
            slab += sums / 4
        slabs = math.ceil(math.ceil(batch / self.images) * self.slabs_per_image / self.splits)
        items = p.groups * self.splits * self.shares
        return (
            math.ceil(items / threads) * slabs * slab
            + p.groups * self.shares * self.sum_elements * (1.5 + 0.3 * self.splits) / threads
        )


@lru_cache(maxsize=1024)
def choose_sums(of: Pass, parts: int, products: int, batch: int, threads: int) -> Sums:
    """The cheapest cut by `Sums.cost`."""
    _, height, width = of.axes
    rows = sorted({math.ceil(height.grid / n) for n in range(1, min(height.grid, 64) + 1)})
    columns = [width.grid] if height.grid > 1 else pieces_of_row(width.grid)
    tiles = math.ceil(of.source_channels / 16)
    shares = sorted({min(n, tiles) for n in (1, 2, 4, 8, threads, 2 * threads)})
    copying = (False, True) if 1 < width.taps <= 7 and width.grid < 64 else (False,)
    several = [n for n in (1, 2, 4, 8, 16) if n == 1 or n <= batch]
    best: tuple[float, Sums] | None = None
    for r, c, share, split in product(rows, columns, shares, sorted({1, threads, 2 * threads})):
        for images, copied in product(several if r == height.grid else (1,), copying):
            sums = Sums(of, r, c, split, share, parts, products, images, copied)
            if split > max(1, math.ceil(batch / images) * sums.slabs_per_image):
                continue
            if best is not None and sums.buffer_elements > 6 << 20:
                continue
            cost = sums.cost(batch, threads)
            if best is None or cost < best[0]:
                best = (cost, sums)
    if best is None:
        raise ValueError(f"no cut for {of}")
    return best[1]
