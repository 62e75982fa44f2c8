"""Geometry of the tile convolution: what one pass sums, how its source is laid out in cache, where results go.

A pass computes, for every output place o of a grid,
``dest[n, oc, o*dest_step + dest_first] = Σ_taps Σ_c source[n, c, o*step + first + tap*spacing] · weight[...]``.
The forward convolution is one pass; the gradient of the input is one pass per residue of the stride.

The source of one work item is copied into a buffer of rows of pixels of channels, padding written out, split
into bfloat16 parts. Places are numbered along the buffer's rows, ``p = y*row_places + x``: the source of a tap
then lies at a constant distance for all p, so 16 consecutive places are the 16 rows of a tile, without any im2col
copy. A few places at each row's end are junk; they are computed and never stored.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from convlens.window import ConvProblem

__all__ = ["Axis", "Pass", "Slab", "choose_slab", "forward_pass", "input_grad_passes", "weight_parts"]

_BLOCK = 64  # channels per buffer block where there are many: a tap's rows then stay in first-level cache


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a pass; see the module."""

    source: int
    grid: int
    step: int
    first: int
    spacing: int
    weight_taps: tuple[int, ...]
    dest: int
    dest_step: int = 1
    dest_first: int = 0

    @property
    def taps(self) -> int:
        """Number of taps."""
        return len(self.weight_taps)

    @property
    def buffer_step(self) -> int:
        """Step inside the buffer: an axis of one tap is copied already strided."""
        return 1 if self.taps == 1 else self.step

    def buffer_length(self, count: int) -> int:
        """Source places that ``count`` outputs need in the buffer."""
        return (count - 1) * self.buffer_step + (self.taps - 1) * self.spacing + 1

    def source_step(self) -> int:
        """Source distance of two neighbours in the buffer."""
        return self.step if self.taps == 1 else 1


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: its axes (depth, height, width), channels per group, and the weight's strides in elements."""

    axes: tuple[Axis, Axis, Axis]
    groups: int
    source_channels: int
    dest_channels: int
    weight_source_stride: int
    weight_dest_stride: int
    weight_group_stride: int
    weight_sizes: tuple[int, int, int]
    channels_last: bool
    bias: bool = False
    activation: str = "none"
    residual: bool = False

    @property
    def pixels(self) -> bool:
        """Whether the channels of a source pixel lie together, as that of a single one does in any order."""
        return self.channels_last or self.groups * self.source_channels == 1

    @property
    def block(self) -> int:
        """Channels per buffer block."""
        return _BLOCK if self.source_channels > 2 * _BLOCK else self.source_channels

    @property
    def blocks(self) -> int:
        """Buffer blocks per group; the last may be partly padding."""
        return math.ceil(self.source_channels / self.block)

    def k_steps(self) -> list[tuple[int, int, int, int, list[int]]]:
        """The sum, 32 terms at a time: ``(block, depth tap, height tap, element of the row, weight offsets)``.

        Terms run over neighbouring pixels and their channels at once, as they lie in the buffer, where the
        width taps are neighbours; offsets are into one output channel's weights, -1 for padding.
        """
        depth, height, width = self.axes
        steps = []
        joined = width.spacing == 1 or width.taps == 1
        for block in range(self.blocks):
            for kd in range(depth.taps):
                for kh in range(height.taps):
                    for kw in (0,) if joined else range(width.taps):
                        run = self._run(block, kd, kh, range(width.taps) if joined else (kw,))
                        for start in range(0, len(run), 32):
                            piece = run[start : start + 32]
                            steps.append((block, kd, kh, kw * width.spacing * self.block + start, piece))
        return steps

    def _run(self, block: int, kd: int, kh: int, kws: range | tuple[int, ...]) -> list[int]:
        depth, height, width = self.axes
        _, size_h, size_w = self.weight_sizes
        offsets = []
        for kw in kws:
            tap = (depth.weight_taps[kd] * size_h + height.weight_taps[kh]) * size_w + width.weight_taps[kw]
            for c in range(block * self.block, (block + 1) * self.block):
                offsets.append(c * self.weight_source_stride + tap if c < self.source_channels else -1)
        return offsets

    @property
    def dest_tiles(self) -> int:
        """Tiles of 16 output channels per group."""
        return math.ceil(self.dest_channels / 16)

    @property
    def dest_pairs(self) -> int:
        """Blocks of one or two such tiles per group."""
        return math.ceil(self.dest_tiles / 2)


@dataclass(frozen=True)
class Slab:
    """What one work item computes: ``depths × rows × columns`` output places of ``pairs`` output blocks.

    ``parts`` is how many bfloat16 parts the source is kept in, ``products`` how many are multiplied. Several
    ``images`` at once read the packed weights once, which counts where images are small and weights many.
    """

    of: Pass
    depths: int
    rows: int
    columns: int
    pairs: int
    parts: int
    products: int
    images: int = 1

    @cached_property
    def row_places(self) -> int:
        """Places per buffer row, junk included."""
        width = self.of.axes[2]
        return math.ceil(width.buffer_length(self.columns) / width.buffer_step)

    @cached_property
    def row_pixels(self) -> int:
        """Pixels per buffer row."""
        return self.row_places * self.of.axes[2].buffer_step

    @cached_property
    def phase_rows(self) -> int:
        """Buffer rows of each residue of the row step."""
        height = self.of.axes[1]
        return math.ceil(height.buffer_length(self.rows) / height.buffer_step)

    @cached_property
    def plane_rows(self) -> int:
        """Buffer rows of one depth slice."""
        return self.phase_rows * self.of.axes[1].buffer_step

    @cached_property
    def slices(self) -> int:
        """Depth slices in the buffer."""
        return self.of.axes[0].buffer_length(self.depths)

    @cached_property
    def slice_elements(self) -> int:
        """Elements of one slice of one block of one part."""
        return self.plane_rows * self.row_pixels * self.of.block

    @cached_property
    def block_elements(self) -> int:
        """Elements of one channel block of one part."""
        return self.slices * self.slice_elements

    @cached_property
    def groups_held(self) -> int:
        """Channel groups in the buffer: more than one only where an item covers several whole groups."""
        return max(1, math.ceil(self.pairs / self.of.dest_pairs))

    @cached_property
    def image_elements(self) -> int:
        """Elements of one image of one part."""
        return self.groups_held * self.of.blocks * self.block_elements

    @cached_property
    def part_elements(self) -> int:
        """Elements of one part; rows beyond the end (junk, and the last run's padding) stay inside the slack."""
        slack = 33 * self.of.axes[2].buffer_step * self.of.block + 64
        whole = self.images * self.image_elements + slack
        return math.ceil(whole / 64) * 64 + 32

    @cached_property
    def buffer_bytes(self) -> int:
        """The whole buffer of one thread."""
        return 2 * self.parts * self.part_elements

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """Slabs along depth, height and width, and chunks of output blocks."""
        depth, height, width = self.of.axes
        total = self.of.groups * self.of.dest_pairs
        return (
            math.ceil(depth.grid / self.depths),
            math.ceil(height.grid / self.rows),
            math.ceil(width.grid / self.columns),
            math.ceil(total / self.pairs),
        )

    @cached_property
    def items_per_image(self) -> int:
        """Work items of one image."""
        return math.prod(self.counts)

    def source_offset(self, block: int, kd: int, kh: int, run_element: int) -> int:
        """Buffer element where a tap's run begins, for place 0 of depth 0."""
        depth, height, _ = self.of.axes
        row = kh * height.spacing
        physical = row % height.buffer_step * self.phase_rows + row // height.buffer_step
        offset = block * self.block_elements + kd * depth.spacing * self.slice_elements
        return offset + physical * self.row_pixels * self.of.block + run_element

    @cached_property
    def place_count(self) -> int:
        """Places of a full slab of one depth."""
        return self.rows * self.row_places

    def cost(self, batch: int, threads: int) -> float:
        """Rough cycles of all work on ``threads`` threads, for comparing slabs."""
        p = self.of
        steps = len(p.k_steps())
        tiles = math.ceil(self.place_count / 16)
        multiply = self.depths * self.pairs * min(2, p.dest_tiles) * tiles * (steps * self.products * 17 + 150)
        packed = self.groups_held * p.blocks * p.block * self.slices * self.plane_rows * self.row_pixels
        item = multiply + packed * (0.4 if p.pixels else 0.8) * self.parts + 2000
        weights = steps * min(2, p.dest_tiles) * 1024 * weight_parts(self.products)
        # each item reads its weights from memory, unless all weights stay in the second-level cache
        resident = weights * p.groups * p.dest_pairs + self.buffer_bytes < 1_600_000
        item = self.images * item + (0 if resident else 0.12 * weights * self.pairs)
        spill = 1.0 if self.buffer_bytes + weights < 1_800_000 else 1.15 if self.buffer_bytes < 1_800_000 else 1.5
        items = math.ceil(max(1, batch) / self.images) * self.items_per_image
        return math.ceil(items / threads) * item * spill


@lru_cache(maxsize=1024)
def choose_slab(of: Pass, parts: int, products: int, batch: int, threads: int) -> Slab:
    """The cheapest slab by `Slab.cost`."""
    depth, height, width = of.axes
    total = of.groups * of.dest_pairs

    def pieces(size: int) -> list[int]:
        return sorted({math.ceil(size / n) for n in range(1, min(size, 64) + 1)})

    columns = [width.grid] if height.grid > 1 else pieces_of_row(width.grid)
    chunks = [n for n in {total, *(math.ceil(total / k) for k in (2, 4, 8, 16))} if n > 0]
    if of.groups > 1:  # an item holds whole groups, or a part of one
        chunks = [g * of.dest_pairs for g in pieces(of.groups) if of.groups % g == 0] + (
            [of.dest_pairs // k for k in (2, 4) if of.dest_pairs % k == 0]
        )
    best: tuple[float, Slab] | None = None
    several = [n for n in (1, 2, 4, 8) if n <= max(1, batch)]
    for d, r, c, chunk in itertools.product(pieces(depth.grid)[:12], pieces(height.grid), columns, chunks):
        for images in several if r == height.grid else (1,):
            slab = Slab(of, d, r, c, chunk, parts, products, images)
            if slab.buffer_bytes > 8 << 20 and best is not None:
                continue
            cost = slab.cost(batch, threads)
            if best is None or cost < best[0]:
                best = (cost, slab)
    if best is None:
        raise ValueError(f"no slab for {of}")
    return best[1]


def weight_parts(products: int) -> int:
    """bfloat16 parts of the second operand (weights, or grad_output) for so many products."""
    return 2 if products < 5 else 3


def pieces_of_row(size: int) -> list[int]:
    """Lengths into which one long row may be cut: multiples of 32, or all of it."""
    return [size] if size <= 64 else [n for n in (64, 128, 256, 512, 1024, 2048) if n < size] + [size]


def forward_pass(problem: ConvProblem) -> Pass:
    """The forward convolution as one pass."""
    axes = [
        Axis(n, o, s, -p[0], d, tuple(range(k)), o)
        for n, o, k, s, p, d in zip(
            problem.input_size, problem.output_size, problem.kernel_size, problem.stride, problem.padding,
            problem.dilation, strict=True,
        )
    ]  # fmt: skip
    per_group = problem.in_channels // problem.groups
    taps = math.prod(problem.kernel_size)
    out_per_group = problem.out_channels // problem.groups
    return Pass(
        axes=_three(axes),
        groups=problem.groups,
        source_channels=per_group,
        dest_channels=out_per_group,
        weight_source_stride=taps,
        weight_dest_stride=per_group * taps,
        weight_group_stride=out_per_group * per_group * taps,
        weight_sizes=_three_sizes(problem.kernel_size),
        channels_last=problem.layout == "channels_last" and problem.ndim > 1,
        bias=problem.epilogue.bias,
        activation=problem.epilogue.activation,
        residual=problem.epilogue.residual,
    )


def input_grad_passes(problem: ConvProblem) -> tuple[list[Pass], bool]:
    """The input gradient as one pass per residue of the stride; True if some places get no pass (zeros)."""
    per_axis = []
    for n, o, k, s, p, d in zip(
        problem.input_size, problem.output_size, problem.kernel_size, problem.stride, problem.padding,
        problem.dilation, strict=True,
    ):  # fmt: skip
        per_axis.append([axis for residue in range(min(s, n)) if (axis := _residue(n, o, k, s, p[0], d, residue))])
    per_group = problem.out_channels // problem.groups
    in_per_group = problem.in_channels // problem.groups
    taps = math.prod(problem.kernel_size)
    while len(per_axis) < 3:
        per_axis.insert(0, [_UNIT])
    passes = [
        Pass(
            axes=(depth, height, width),
            groups=problem.groups,
            source_channels=per_group,
            dest_channels=in_per_group,
            weight_source_stride=in_per_group * taps,
            weight_dest_stride=taps,
            weight_group_stride=per_group * in_per_group * taps,
            weight_sizes=_three_sizes(problem.kernel_size),
            channels_last=problem.layout == "channels_last" and problem.ndim > 1,
        )
        for depth in per_axis[0]
        for height in per_axis[1]
        for width in per_axis[2]
    ]
    covered = sum(math.prod(axis.grid for axis in p.axes) for p in passes)
    return passes, covered < math.prod(problem.input_size)


def _residue(n: int, o: int, k: int, s: int, pad: int, d: int, residue: int) -> Axis | None:
    """The pass of input places ``g*s + residue``: which taps reach them, from which outputs; None if none does."""
    reaching = [t for t in range(k) if (residue + pad - t * d) % s == 0]
    if not reaching:
        return None
    taps = tuple(reversed(reaching))  # so that output places ascend with the tap
    grid = (n - residue + s - 1) // s
    first = (residue + pad - taps[0] * d) // s
    spacing = (taps[0] - taps[1]) * d // s if len(taps) > 1 else 1
    return Axis(o, grid, 1, first, spacing, taps, n, s, residue)


_UNIT = Axis(1, 1, 1, 0, 1, (0,), 1)


def _three(axes: list[Axis]) -> tuple[Axis, Axis, Axis]:
    whole = [_UNIT] * (3 - len(axes)) + axes
    return (whole[0], whole[1], whole[2])


def _three_sizes(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    whole = (1,) * (3 - len(sizes)) + sizes
    return (whole[0], whole[1], whole[2])
