"""Convolution + bias + ReLU + 2×2 max pooling in one pass; backward from one byte per pooled value.

Forward pools the accumulators before anything is stored: a quarter of the writes, and no pre-activation in
memory. Backward puts each upstream value back where its window's largest value was, image by image inside
the cache, and takes both gradients from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from convlens.kernels.cpu.codegen.values import F64, I8, I32, Value
from convlens.kernels.cpu.direct_few.forward import ForwardPlan, forward_taps, initial_sums, plan_forward
from convlens.kernels.cpu.direct_few.geometry import Shape, best_tile, ceil_div, round_up
from convlens.kernels.cpu.direct_few.input_grad import InputGradPlan, emit_kind, plan_input_grad
from convlens.kernels.cpu.direct_few.packing import emit_pack, lane_mask
from convlens.kernels.cpu.direct_few.tiles import emit_sums, starts
from convlens.kernels.cpu.direct_few.weight_grad import (
    WeightGradPlan,
    add_bias,
    emit_finish,
    emit_products,
    plan_weight_grad,
)

__all__ = [
    "BackwardPlan",
    "build_block_backward",
    "build_block_forward",
    "choice_pitch",
    "plan_backward",
    "plan_block",
]

_STEPS = 64  # vectors of pixels that one block of weight sums should see between its loads and stores


def choice_pitch(shape: Shape) -> int:
    """Bytes of a row of choices: whole vectors, so that no masks are needed."""
    return round_up(shape.out_width // 2, 16)


def plan_block(shape: Shape, threads: int, lanes: int, registers: int) -> ForwardPlan:
    """Tile of the forward pass; a band is a whole image."""
    plan = plan_forward(shape, 1 << 20, threads, lanes, registers, 1 << 40)
    tile = best_tile(
        shape.out_channels, shape.out_height // 2 * 2, shape.out_width // 2 * 2, lanes, registers,
        shape.kernel_height, lambda r, a: r * shape.stride_y + a * shape.dilation_y,
        rounds=shape.in_channels * shape.kernel_width, row_unit=2,
    )  # fmt: skip
    reach = (shape.reach_x - 1) // shape.stride_x + max(shape.out_width, tile.vectors * lanes) + 1
    band = replace(plan.band, pitch=round_up(reach, lanes))
    return ForwardPlan(tile, 1, band, tile.rows)


def build_block_forward(m: Any, shape: Shape, plan: ForwardPlan, bias: bool, keep: bool) -> None:
    """``block_forward(x, w, bias, out, choice, space, batch)``; ``choice`` is written where ``keep``."""
    tile, band, lanes = plan.tile, plan.band, m.target.lanes
    height, width = shape.out_height // 2, shape.out_width // 2
    taps = forward_taps(shape, plan)
    with m.body("block_items", x="f32*", w="f32*", bias="f32*", out="f32*", choice="i8*", space="f32*") as f:
        packed = f.space + f.thread * band.values
        with f.loop(f.begin, f.end) as image:
            emit_pack(
                f, f.x + image * (shape.in_channels * shape.height * shape.width), packed, band, f.index(0),
                height=shape.height, width=shape.width, pad_top=shape.pad_top, pad_left=shape.pad_left,
                channels_last=False,
            )  # fmt: skip
            with (
                starts(f, shape.out_channels, tile.outs) as o,
                starts(f, 2 * height, tile.rows) as r,
                starts(f, 2 * width, tile.vectors * lanes) as c,
            ):
                at = packed + f.index(r) * (shape.stride_y * band.row_values) + c
                initial = initial_sums(f, tile, f.bias + o if bias else None)
                sums = emit_sums(f, tile, taps, 1, at, f.w + f.index(o) * shape.taps, initial)
                row = (image * shape.out_channels + o) * height + f.index(r) // 2
                column = f.index(c) // 2
                _store_pooled(f, shape, plan, sums, f.out, f.choice if keep else None, row, column)
    items = f
    with m.function(
        "block_forward", x="f32*", w="f32*", bias="f32*", out="f32*", choice="i8*", space="f32*", batch="int"
    ) as f:
        f.parallel(items, f.batch, f.x, f.w, f.bias, f.out, f.choice, f.space, grain=1)


def _store_pooled(
    f: Any, shape: Shape, plan: ForwardPlan, sums: list[Any], out: Any, choice: Any, row: Any, column: Any
) -> None:
    """Largest of each 2×2 of the tile and which it was, at pooled ``row`` (of all channels) and ``column``."""
    tile, lanes = plan.tile, f.target.lanes
    height, width = shape.out_height // 2, shape.out_width // 2
    for o in range(tile.outs):
        for r in range(0, tile.rows, 2):
            k = (o * tile.rows + r) * tile.vectors
            upper, lower = sums[k : k + tile.vectors], sums[k + tile.vectors : k + 2 * tile.vectors]
            for v in range(0, tile.vectors, 2):
                corners = [
                    f.shuffle(line[v], line[min(v + 1, tile.vectors - 1)], range(side, 2 * lanes, 2))
                    for line in (upper, lower)
                    for side in (0, 1)
                ]
                value, which = _largest(f, corners)
                valid = min(lanes if v + 1 < tile.vectors else lanes // 2, width - v // 2 * lanes)
                here, mask = row + (o * height + r // 2), lane_mask(f, 0, valid, lanes)
                (out + here * width + column).store(f.max(value, 0.0), v // 2 * lanes, mask=mask)
                if choice is not None:
                    (choice + here * choice_pitch(shape) + column).store(which, v // 2 * lanes, mask=mask)


def _largest(f: Any, corners: list[Any]) -> tuple[Any, Any]:
    """The first largest value, or a NaN, and its place 0–3 as bytes."""
    lanes = corners[0].lanes
    value, which = corners[0], f.splat(0, lanes, I32)
    for place, corner in enumerate(corners[1:], 1):
        better = (corner > value) | corner.differs(corner)
        value = f.select(better, corner, value)
        which = f.select(better, f.splat(place, lanes, I32), which)
    from llvmlite import ir

    return value, Value(f, f.irb.trunc(which.ir, ir.VectorType(I8, lanes)))


# --- backward --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BackwardPlan:
    """Both gradients of a block.

    Attributes:
        weights: blocks of weight sums, and the packed input.
        inputs: tile of the input gradient; None where it is not wanted.
        images: images that share one pass over the weight sums.
        top: rows of zeros above the upstream gradient.
        left: columns of zeros before it.
        rows: rows of its buffer.
        pitch: values between them.
    """

    weights: WeightGradPlan
    inputs: InputGradPlan | None
    images: int
    top: int
    left: int
    rows: int
    pitch: int

    def grad_values(self, shape: Shape) -> int:
        """Values of one image's upstream gradient with its margins."""
        return shape.out_channels * self.rows * self.pitch

    def space_values(self, shape: Shape) -> int:
        """Values of one thread's workspace besides the partial sums."""
        return self.images * (self.grad_values(shape) + self.weights.band.values)


def plan_backward(
    shape: Shape, batch: int, need_input: bool, threads: int, lanes: int, registers: int
) -> BackwardPlan:
    """Blocks, tile and margins for a problem."""
    weights = plan_weight_grad(shape, 1 << 20, threads, lanes, registers, 1 << 40)
    vectors = ceil_div(shape.out_width, lanes)
    images = max(1, min(_STEPS // (shape.out_height * vectors), batch // (4 * threads)))
    if not need_input:
        pitch = vectors * lanes
        return BackwardPlan(weights, None, images, 0, 0, shape.out_height, pitch)
    inputs = plan_input_grad(shape, 1 << 20, threads, lanes, registers, 1 << 40)
    left, top = inputs.back_x - inputs.first_column, inputs.back_y - inputs.first_row
    pitch = max(inputs.band.pitch, round_up(left + shape.out_width, lanes))
    rows = max(inputs.band.rows, top + shape.out_height)
    inputs = replace(inputs, band=replace(inputs.band, rows=rows, pitch=pitch))
    return BackwardPlan(weights, inputs, images, top, left, rows, pitch)


def build_block_backward(m: Any, shape: Shape, plan: BackwardPlan, bias: bool) -> None:
    """``block_backward(g, y, choice, x, w, gx, gw, gb, partial, space, batch)``: all gradients of a block.

    ``g`` and ``y`` are the gradient of the pooled output and the pooled output itself.
    """
    lanes = m.target.lanes
    values = plan.weights.partial_values(shape, lanes)
    grads, band = plan.grad_values(shape), plan.weights.band
    arrays = {"g": "f32*", "y": "f32*", "choice": "i8*", "x": "f32*", "w": "f32*", "gx": "f32*"}
    with m.body("block_back_items", **arrays, partial="f32*", space="f32*", batch="int") as f:
        partial = f.partial + f.thread * values
        gradient = f.space + f.thread * plan.space_values(shape)
        packed = gradient + plan.images * grads
        with f.loop(0, values, lanes) as i:
            partial.store(f.zeros(lanes), i)
        with f.loop(0, plan.images * grads, lanes) as i:
            gradient.store(f.zeros(lanes), i)
        with f.loop(f.begin, f.end) as group:
            first = group * plan.images
            count = f.minimum(f.batch - first, plan.images)
            with f.loop(0, count) as i:
                _emit_image(
                    f, shape, plan, first + i, gradient + i * grads, packed + i * band.values, partial, bias
                )
            emit_products(
                f, shape, plan.weights, gradient + (plan.top * plan.pitch + plan.left), plan.rows * plan.pitch,
                plan.pitch, packed, partial, shape.out_height, count, grads,
            )  # fmt: skip
    items = f
    with m.body("block_back_finish", partial="f32*", gw="f32*", gb="f32*", team="int") as f:
        emit_finish(f, shape, values, bias)
    finish = f
    with m.function(
        "block_backward", **arrays, gw="f32*", gb="f32*", partial="f32*", space="f32*", batch="int"
    ) as f:
        groups = (f.batch + (plan.images - 1)) // plan.images
        f.parallel(items, groups, f.g, f.y, f.choice, f.x, f.w, f.gx, f.partial, f.space, f.batch)
        f.parallel(finish, shape.out_channels, f.partial, f.gw, f.gb, f.minimum(f.threads, groups))


def _emit_image(
    f: Any, shape: Shape, plan: BackwardPlan, image: Any, gradient: Any, packed: Any, partial: Any, bias: bool
) -> None:
    """Unpool one image's gradient, pack its input and, where wanted, write its input gradient."""
    _emit_unpool(f, shape, plan, image, gradient, partial, bias)
    size = shape.in_channels * shape.height * shape.width
    emit_pack(
        f, f.x + image * size, packed, plan.weights.band, f.index(0), height=shape.height, width=shape.width,
        pad_top=shape.pad_top, pad_left=shape.pad_left, channels_last=False,
    )  # fmt: skip
    if plan.inputs is not None:
        for kind in range(shape.stride_y):
            emit_kind(f, shape, plan.inputs, kind, gradient, f.gx + image * size, f.index(0), plan.inputs.groups_y)


def _emit_unpool(
    f: Any, shape: Shape, plan: BackwardPlan, image: Any, gradient: Any, partial: Any, bias: bool
) -> None:
    """Each upstream value to the place of its window's largest, zero to the others; bias sums on the way."""
    lanes, row_taps = f.target.lanes, shape.taps + 1
    height, width = shape.out_height // 2, shape.out_width // 2
    with f.loop(0, shape.out_channels) as o:
        total = f.variable(f.zeros(lanes, F64))
        with f.loop(0, height) as r:
            row = (image * shape.out_channels + o) * height + r
            line = gradient + ((o * plan.rows + r * 2 + plan.top) * plan.pitch + plan.left)
            for start in range(0, width, lanes):
                mask = lane_mask(f, 0, width - start, lanes)
                upstream = (f.g + row * width).load(start, lanes, mask=mask)
                value = (f.y + row * width).load(start, lanes, mask=mask)
                upstream = f.select(value <= 0.0, f.zeros(lanes), upstream)
                total.set(total.get() + f.to_f64(upstream))
                which = _widened(f, (f.choice + row * choice_pitch(shape)).load(start, lanes))
                corners = [f.select(which.equals(place), upstream, f.zeros(lanes)) for place in range(4)]
                for y in range(2):
                    pair = f.interleave(corners[2 * y], corners[2 * y + 1])
                    for half in range(2):
                        valid = 2 * (width - start) - half * lanes
                        if valid > 0:
                            piece = f.shuffle(pair, pair, range(half * lanes, (half + 1) * lanes))
                            place = y * plan.pitch + 2 * start + half * lanes
                            line.store(piece, place, mask=lane_mask(f, 0, valid, lanes))
        if bias:
            place = (o * row_taps + shape.taps) * lanes
            add_bias(f, partial, place, total.get())


def _widened(f: Any, value: Any) -> Any:
    from llvmlite import ir

    return Value(f, f.irb.zext(value.ir, ir.VectorType(I32, value.lanes)))
