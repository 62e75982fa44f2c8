"""The fused block with images as lanes: small planes in large batches, such as LeNet's.

Sixteen images lie side by side, ``[channel][row][column][image]``: no lane is ever wasted on a row's end, every
load is aligned, pooling is a plain maximum of four vectors. To the tiles of this package that is a row
``lanes`` times as long whose window is dilated by ``lanes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from convlens.kernels.cpu.codegen.values import F64, I8, I32, Value
from convlens.kernels.cpu.direct_few.forward import ForwardPlan, forward_taps, initial_sums
from convlens.kernels.cpu.direct_few.geometry import Band, Shape, Tile, best_tile
from convlens.kernels.cpu.direct_few.input_grad import InputGradPlan, emit_kind
from convlens.kernels.cpu.direct_few.packing import lane_mask
from convlens.kernels.cpu.direct_few.tiles import emit_sums, starts
from convlens.kernels.cpu.direct_few.weight_grad import (
    WeightGradPlan,
    add_bias,
    emit_finish,
    emit_products,
    plan_weight_grad,
)

__all__ = [
    "ImagesPlan",
    "build_images_backward",
    "build_images_forward",
    "clear",
    "emit_pooled",
    "image_rows",
    "lanes_of",
    "pack_images",
    "plan_images",
    "unpack_images",
    "unpool",
]

_DEAD = 4  # choice of a window whose largest value the ReLU cut off


@dataclass(frozen=True, slots=True)
class ImagesPlan:
    """Tiles and buffers of one block, in the widened shape.

    Attributes:
        wide: the problem as the tiles see it, ``lanes`` times as wide.
        forward: tile of the forward pass, and the packed input.
        weights: blocks of weight sums over the same packed input.
        inputs: tile of the input gradient, and the upstream gradient with its margins.
    """

    wide: Shape
    forward: ForwardPlan
    weights: WeightGradPlan
    inputs: InputGradPlan

    @property
    def top(self) -> int:
        """Rows of zeros above the upstream gradient."""
        return self.inputs.back_y - self.inputs.first_row

    @property
    def left(self) -> int:
        """Values of zero before it."""
        return self.inputs.back_x - self.inputs.first_column


def plan_images(shape: Shape, lanes: int, registers: int) -> ImagesPlan:
    """Tiles for a block of horizontal stride 1."""
    wide = replace(
        shape, width=shape.width * lanes, out_width=shape.out_width * lanes, dilation_x=shape.dilation_x * lanes,
        pad_left=shape.pad_left * lanes,
    )  # fmt: skip
    rows = (shape.out_height - 1) * shape.stride_y + shape.reach_y
    band = Band(shape.in_channels, rows, 1, (shape.out_width - 1 + shape.reach_x) * lanes)
    tile = best_tile(
        shape.out_channels, shape.out_height // 2 * 2, shape.out_width // 2 * 2 * lanes, lanes, registers,
        shape.kernel_height, lambda r, a: r * shape.stride_y + a * shape.dilation_y,
        rounds=shape.in_channels * shape.kernel_width, row_unit=2, vector_unit=2, load_cost=1.0,
    )  # fmt: skip
    weights = replace(plan_weight_grad(wide, 1 << 20, 1, lanes, registers, 1 << 40), bands=1, band=band)
    return ImagesPlan(wide, ForwardPlan(tile, 1, band, tile.rows), weights, _plan_inputs(shape, lanes, registers))


def _plan_inputs(shape: Shape, lanes: int, registers: int) -> InputGradPlan:
    first_row = shape.pad_top // shape.stride_y
    groups_y = (shape.pad_top + shape.height - 1) // shape.stride_y - first_row + 1
    back_y, back_x = (shape.reach_y - 1) // shape.stride_y, (shape.reach_x - 1) * lanes
    tile = best_tile(
        shape.in_channels, groups_y, shape.width * lanes, lanes, registers, shape.kernel_height,
        lambda r, a: r - a, rounds=shape.out_channels * shape.kernel_width, most_rows=1, load_cost=1.0,
    )  # fmt: skip
    tile = Tile(tile.outs, 1, tile.vectors, False)
    pad = shape.pad_left * lanes
    rows = max(groups_y + back_y, back_y - first_row + shape.out_height)
    pitch = max(shape.width * lanes + back_x, back_x - pad + shape.out_width * lanes)
    band = Band(shape.out_channels, rows, 1, pitch)
    return InputGradPlan(tile, 1, band, first_row, groups_y, pad, shape.width * lanes, back_y, back_x)


def build_images_forward(m: Any, shape: Shape, plan: ImagesPlan, bias: bool, keep: bool) -> None:
    """``block_forward(x, w, bias, out, choice, space, batch)``; choices as ``[group][out][row][column][lane]``."""
    lanes, band = m.target.lanes, plan.forward.band
    height, width = shape.out_height // 2, shape.out_width // 2
    pooled = shape.out_channels * height * width
    with m.body(
        "images_items", x="f32*", w="f32*", bias="f32*", out="f32*", choice="i8*", space="f32*", batch="int"
    ) as f:
        packed = f.space + f.thread * (band.values + pooled * lanes)
        result = packed + band.values
        clear(f, packed, band.values)
        with f.loop(f.begin, f.end) as group:
            first = group * lanes
            count = f.minimum(f.batch - first, lanes)
            pack_images(f, shape, f.x, packed, band, first, count)
            choice = f.choice + group * (pooled * lanes) if keep else None
            steps = (height * width * lanes, width * lanes)
            emit_pooled(f, shape, plan, packed, f.w, f.bias if bias else None, result, steps, choice)
            unpack_images(f, result, f.out, pooled, first, count)
    items = f
    with m.function(
        "block_forward", x="f32*", w="f32*", bias="f32*", out="f32*", choice="i8*", space="f32*", batch="int"
    ) as f:
        groups = (f.batch + (lanes - 1)) // lanes
        f.parallel(items, groups, f.x, f.w, f.bias, f.out, f.choice, f.space, f.batch)


def build_images_backward(m: Any, shape: Shape, plan: ImagesPlan, bias: bool, need_input: bool) -> None:
    """``block_backward(g, choice, x, w, gx, gw, gb, partial, space, batch)``: all gradients of a block."""
    lanes, band, grads = m.target.lanes, plan.weights.band, plan.inputs.band
    values = plan.weights.partial_values(plan.wide, lanes)
    size = shape.in_channels * shape.height * shape.width
    space = band.values + grads.values + (size * lanes if need_input else 0)
    arrays = {"g": "f32*", "choice": "i8*", "x": "f32*", "w": "f32*", "gx": "f32*"}
    with m.body("images_back_items", **arrays, partial="f32*", space="f32*", batch="int") as f:
        partial = f.partial + f.thread * values
        packed = f.space + f.thread * space
        gradient = packed + band.values
        result = gradient + grads.values
        clear(f, partial, values)
        clear(f, packed, band.values + grads.values)
        with f.loop(f.begin, f.end) as group:
            first = group * lanes
            count = f.minimum(f.batch - first, lanes)
            pooled = shape.out_channels * (shape.out_height // 2) * (shape.out_width // 2)
            images = image_rows(f, f.g, pooled, first, count)
            on = f.mask_below(count, lanes)

            def upstream(row: Any, start: int, valid: int, images: Any = images, on: Any = on) -> list[Any]:
                return lanes_of(f, images, row * (shape.out_width // 2) + start, valid, on)

            inner = gradient + (plan.top * grads.pitch + plan.left)
            unpool(
                f, shape, upstream, f.choice + group * (pooled * lanes), inner,
                (grads.channel_values, grads.pitch), partial if bias else None, (0, shape.out_height // 2),
            )  # fmt: skip
            pack_images(f, shape, f.x, packed, band, first, count)
            emit_products(
                f, plan.wide, plan.weights, inner, grads.channel_values, grads.pitch, packed, partial,
                shape.out_height,
            )  # fmt: skip
            if need_input:
                for kind in range(shape.stride_y):
                    emit_kind(f, plan.wide, plan.inputs, kind, gradient, result, f.index(0), plan.inputs.groups_y)
                unpack_images(f, result, f.gx, size, first, count)
    items = f
    with m.body("images_back_finish", partial="f32*", gw="f32*", gb="f32*", team="int") as f:
        emit_finish(f, plan.wide, values, bias)
    finish = f
    with m.function(
        "block_backward", **arrays, gw="f32*", gb="f32*", partial="f32*", space="f32*", batch="int"
    ) as f:
        groups = (f.batch + (lanes - 1)) // lanes
        f.parallel(items, groups, f.g, f.choice, f.x, f.w, f.gx, f.partial, f.space, f.batch)
        f.parallel(finish, shape.out_channels, f.partial, f.gw, f.gb, f.minimum(f.threads, groups))


def emit_pooled(
    f: Any,
    shape: Shape,
    plan: ImagesPlan,
    packed: Any,
    weight: Any,
    bias: Any | None,
    result: Any,
    steps: tuple[int, int],
    choice: Any | None,
) -> None:
    """Convolution, ReLU and pooling of one packed group of images.

    Args:
        f: the function being emitted.
        shape: the block.
        plan: its tiles.
        packed: the group's input.
        weight: the weights.
        bias: or None.
        result: the pooled values' place.
        steps: values between its channels, and between its rows.
        choice: where which of four values it was goes, or None.
    """
    tile, lanes = plan.forward.tile, f.target.lanes
    height, width = shape.out_height // 2, shape.out_width // 2
    taps = forward_taps(plan.wide, plan.forward)
    with (
        starts(f, 2 * height, tile.rows) as r,
        starts(f, 2 * width * lanes, tile.vectors * lanes) as c,
        starts(f, shape.out_channels, tile.outs) as o,
    ):
        at = packed + f.index(r) * (shape.stride_y * plan.forward.band.row_values) + c
        initial = initial_sums(f, tile, bias + o if bias is not None else None)
        sums = emit_sums(f, tile, taps, 1, at, weight + f.index(o) * shape.taps, initial)
        column = f.index(c) // 2
        place = result + f.index(o) * steps[0] + f.index(r) // 2 * steps[1] + column
        chosen = None
        if choice is not None:
            chosen = choice + (f.index(o) * height + f.index(r) // 2) * (width * lanes) + column
        _store_pooled(f, tile, sums, height, width, place, steps, chosen)


def clear(f: Any, start: Any, values: int) -> None:
    """Zeros in whole vectors."""
    with f.loop(0, values, f.target.lanes) as i:
        start.store(f.zeros(f.target.lanes), i)


def image_rows(f: Any, array: Any, size: int, first: Any, count: Any) -> list[Any]:
    """Where each lane's image begins; lanes beyond the batch look at its last image."""
    return [array + (first + f.minimum(i, count - 1)) * size for i in range(f.target.lanes)]


def lanes_of(f: Any, images: list[Any], place: Any, valid: int, on: Any) -> list[Any]:
    """``valid`` values from ``place`` on of every image, one vector of images each; zero beyond the batch."""
    lanes = f.target.lanes
    mask = lane_mask(f, 0, valid, lanes)
    columns = f.transpose([image.load(place, lanes, mask=mask) for image in images])
    return [f.select(on, column, f.zeros(lanes)) for column in columns[:valid]]


def pack_images(f: Any, shape: Shape, x: Any, packed: Any, band: Band, first: Any, count: Any) -> None:
    """One group of images into the middle of their packed band, whose margins stay zero."""
    lanes = f.target.lanes
    on = f.mask_below(count, lanes)
    images = image_rows(f, x, shape.in_channels * shape.height * shape.width, first, count)
    rows, columns = min(shape.height, band.rows - shape.pad_top), band.pitch // lanes - shape.pad_left
    with f.loop(0, shape.in_channels) as c, f.loop(0, rows) as r:
        source = (c * shape.height + r) * shape.width
        target = packed + c * band.channel_values + (r + shape.pad_top) * band.row_values + shape.pad_left * lanes
        for start in range(0, min(shape.width, columns), lanes):
            valid = min(lanes, min(shape.width, columns) - start)
            for k, column in enumerate(lanes_of(f, images, source + start, valid, on)):
                target.store(column, (start + k) * lanes, align=4 * lanes)


def unpack_images(f: Any, source: Any, array: Any, size: int, first: Any, count: Any) -> None:
    """``source[position][image]`` back to ``array[image][position]``, images of the batch only."""
    lanes = f.target.lanes

    def block(place: Any, valid: int) -> None:
        vectors = [source.load((place + k) * lanes, lanes, align=4 * lanes) for k in range(valid)]
        rows = f.transpose(vectors + [f.zeros(lanes)] * (lanes - valid))
        for i, row in enumerate(rows):
            with f.when(count > i):
                (array + (first + i) * size + place).store(row, mask=lane_mask(f, 0, valid, lanes))

    whole = size // lanes * lanes
    if whole:
        with f.loop(0, whole, lanes) as place:
            block(place, lanes)
    if size % lanes:
        block(f.index(whole), size % lanes)


def _store_pooled(
    f: Any, tile: Tile, sums: list[Any], height: int, width: int, result: Any, steps: tuple[int, int], choice: Any
) -> None:
    from llvmlite import ir

    lanes = f.target.lanes
    for o in range(tile.outs):
        for r in range(0, tile.rows, 2):
            for v in range(0, tile.vectors, 2):
                k = (o * tile.rows + r) * tile.vectors + v
                value, which = sums[k], f.splat(0, lanes, I32)
                for number, corner in enumerate((k + 1, k + tile.vectors, k + tile.vectors + 1), 1):
                    better = (sums[corner] > value) | sums[corner].differs(sums[corner])
                    value = f.select(better, sums[corner], value)
                    which = f.select(better, f.splat(number, lanes, I32), which)
                (result + (o * steps[0] + r // 2 * steps[1] + v // 2 * lanes)).store(f.max(value, 0.0))
                if choice is not None:
                    which = f.select(value <= 0.0, f.splat(_DEAD, lanes, I32), which)
                    at = choice + ((o * height + r // 2) * width + v // 2) * lanes
                    at.store(Value(f, f.irb.trunc(which.ir, ir.VectorType(I8, lanes))))


def unpool(
    f: Any,
    shape: Shape,
    upstream: Callable[[Any, int, int], list[Any]],
    choices: Any,
    gradient: Any,
    steps: tuple[int, int],
    partial: Any | None,
    rows: tuple[Any, Any],
) -> None:
    """Upstream values to the places of their windows' largest, zero to the others; bias sums on the way.

    Args:
        f: the function being emitted.
        shape: the block.
        upstream: ``upstream(row, start, count)``: vectors of ``count`` pooled columns from ``start`` on, in a row
            counted over all channels.
        choices: of this group of images.
        gradient: where the first of ``rows`` goes.
        steps: values between its channels, and between its rows.
        partial: sums of which the bias's are a part, or None.
        rows: first pooled row, and the one after the last.
    """
    from llvmlite import ir

    lanes, row_taps = f.target.lanes, shape.taps + 1
    height, width = shape.out_height // 2, shape.out_width // 2
    with f.loop(0, shape.out_channels) as o:
        total = f.variable(f.zeros(lanes, F64))
        with f.loop(*rows) as r:
            row = o * height + r
            line = gradient + o * steps[0] + (r - rows[0]) * (2 * steps[1])
            for start in range(0, width, lanes):
                for k, value in enumerate(upstream(row, start, min(lanes, width - start))):
                    narrow = choices.load((row * width + (start + k)) * lanes, lanes)
                    which = Value(f, f.irb.zext(narrow.ir, ir.VectorType(I32, lanes)))
                    total.set(total.get() + f.to_f64(f.select(which < _DEAD, value, f.zeros(lanes))))
                    for corner in range(4):
                        chosen = f.select(which.equals(corner), value, f.zeros(lanes))
                        place = corner // 2 * steps[1] + (2 * (start + k) + corner % 2) * lanes
                        line.store(chosen, place, align=4 * lanes)
        if partial is not None:
            place = (o * row_taps + shape.taps) * lanes
            add_bias(f, partial, place, total.get())
