"""A small net's blocks and dense layers in one pass, images as lanes from its input to its scores.

Between the layers nothing is transposed, no call returns to Python and no thread waits for another: each takes its
groups of images through the whole net, and back. Only the weights' gradients are joined at the end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from convlens.kernels.cpu.direct_few.dense import (
    emit_dense,
    emit_dense_back,
    emit_dense_grad,
    grad_items,
)
from convlens.kernels.cpu.direct_few.geometry import Dense, Shape
from convlens.kernels.cpu.direct_few.images import (
    ImagesPlan,
    clear,
    emit_pooled,
    image_rows,
    lanes_of,
    pack_images,
    plan_images,
    unpack_images,
    unpool,
)
from convlens.kernels.cpu.direct_few.input_grad import emit_kind
from convlens.kernels.cpu.direct_few.rows_back import emit_rows_back, fits_rows
from convlens.kernels.cpu.direct_few.weight_grad import emit_finish, emit_products

__all__ = ["ChainPlan", "build_chain_backward", "build_chain_forward", "plan_chain"]

_STEPS = 48  # vectors of pixels that a block of weight sums should see between its loads and stores


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """Layers, tiles and where each keeps its values.

    Attributes:
        shapes: blocks of convolution, ReLU and 2×2 max pooling.
        biases: whether each has a bias.
        plans: their tiles; each band holds the whole of its input.
        dense: dense layers after them.
        lanes: images side by side.
        registers: vector registers of the processor.
    """

    shapes: tuple[Shape, ...]
    biases: tuple[bool, ...]
    plans: tuple[ImagesPlan, ...]
    dense: tuple[Dense, ...]
    lanes: int
    registers: int

    def pooled(self, block: int) -> int:
        """Values of one image's result of a block."""
        shape = self.shapes[block]
        return shape.out_channels * (shape.out_height // 2) * (shape.out_width // 2)

    def band_at(self, block: int) -> int:
        """Where a block's packed input lies among the values kept of a group."""
        return sum(plan.forward.band.values for plan in self.plans[:block])

    def input_at(self, layer: int) -> int:
        """Where a dense layer's input lies among them, ``[value][image]``."""
        before = sum(dense.inputs for dense in self.dense[:layer])
        return self.band_at(len(self.plans)) + before * self.lanes

    @property
    def scores_at(self) -> int:
        """Where the scores lie among them."""
        return self.input_at(len(self.dense))

    @property
    def group_values(self) -> int:
        """Values kept of a group."""
        return self.scores_at + self.dense[-1].outputs * self.lanes

    def choice_at(self, block: int) -> int:
        """Where a block's choices lie among the bytes kept of a group."""
        return sum(self.pooled(i) for i in range(block)) * self.lanes

    @property
    def group_choices(self) -> int:
        """Bytes kept of a group."""
        return self.choice_at(len(self.shapes))

    @property
    def row_values(self) -> int:
        """Inputs of all dense layers for one image: kept a second time, image by image."""
        return sum(dense.inputs for dense in self.dense)

    @property
    def hidden(self) -> int:
        """Results of all dense layers but the last for one image."""
        return sum(dense.outputs for dense in self.dense[:-1])

    def partial_values(self, block: int) -> int:
        """One thread's sums of a block's weight gradient."""
        return self.plans[block].weights.partial_values(self.plans[block].wide, self.lanes)

    def strip(self, block: int) -> int:
        """Pooled rows whose gradient is unpooled at a time: few for the first block, to stay in the cache."""
        height, width = self.shapes[block].out_height // 2, self.shapes[block].out_width
        if block:
            return height
        least = min(height, -(-_STEPS // (2 * width)))
        return next(n for n in range(least, height + 1) if height % n == 0)

    def grad_steps(self, block: int) -> tuple[int, int]:
        """Values between channels, and between rows, of a block's unpooled gradient."""
        shape, grads = self.shapes[block], self.plans[block].inputs.band
        if self.by_rows(block):
            return shape.out_height * shape.out_width * self.lanes, shape.out_width * self.lanes
        if block:
            return grads.channel_values, grads.pitch
        return 2 * self.strip(block) * shape.out_width * self.lanes, shape.out_width * self.lanes

    def by_rows(self, block: int) -> bool:
        """Whether a block's input gradient is that of `emit_rows_back`, which needs no margins."""
        return block > 0 and fits_rows(self.shapes[block], self.registers)

    def grad_values(self, block: int) -> int:
        """Values of a block's unpooled gradient."""
        return self.grad_steps(block)[0] * self.shapes[block].out_channels

    def gradient_places(self) -> tuple[list[int], list[int], list[int], int]:
        """In a thread's workspace: unpooled gradients, pooled ones, dense layers' ones; its size."""
        sizes = [self.grad_values(i) for i in range(len(self.shapes))]
        sizes += [self.pooled(i) * self.lanes for i in range(len(self.shapes))]
        sizes += [dense.outputs * self.lanes for dense in self.dense]
        places = [0, *itertools.accumulate(sizes)]
        blocks = len(self.shapes)
        return places[:blocks], places[blocks : 2 * blocks], places[2 * blocks : -1], places[-1]


def plan_chain(
    shapes: tuple[Shape, ...], biases: tuple[bool, ...], dense: tuple[Dense, ...], lanes: int, registers: int
) -> ChainPlan:
    """Tiles for blocks and the dense layers after them."""
    plans = []
    for shape in shapes:
        plan = plan_images(shape, lanes, registers)
        band = plan.forward.band
        rows = max(band.rows, shape.pad_top + shape.height)
        band = replace(band, rows=rows, pitch=max(band.pitch, (shape.pad_left + shape.width) * lanes))
        plans.append(
            replace(plan, forward=replace(plan.forward, band=band), weights=replace(plan.weights, band=band))
        )
    return ChainPlan(shapes, biases, tuple(plans), dense, lanes, registers)


def _weights(chain: ChainPlan) -> dict[str, str]:
    """Arguments for weights and biases: of blocks ``w0``, ``b0``, …, of dense layers ``v0``, ``c0``, …."""
    blocks = [name for i in range(len(chain.shapes)) for name in (f"w{i}", f"b{i}")]
    dense = [name for j in range(len(chain.dense)) for name in (f"v{j}", f"c{j}")]
    return dict.fromkeys([*blocks, *dense], "f32*")


def build_chain_forward(m: Any, chain: ChainPlan) -> None:
    """``chain_forward(x, out, held, choice, weights …, batch)``: scores, and what the way back needs.

    ``held`` has the groups' values and then the dense layers' inputs, ``[layer][image][value]``.
    """
    lanes, last = chain.lanes, len(chain.dense) - 1
    arrays = {"x": "f32*", "out": "f32*", "held": "f32*", "choice": "i8*", **_weights(chain)}
    with m.body("chain_items", **arrays, batch="int", groups="int") as f:
        with f.loop(f.begin, f.end) as group:
            first = group * lanes
            count = f.minimum(f.batch - first, lanes)
            held = f.held + group * chain.group_values
            for i, plan in enumerate(chain.plans):
                clear(f, held + chain.band_at(i), plan.forward.band.values)
            pack_images(f, chain.shapes[0], f.x, held, chain.plans[0].forward.band, first, count)
            for i, shape in enumerate(chain.shapes):
                target, steps = _pooled_to(chain, held, i)
                choice = f.choice + (group * chain.group_choices + chain.choice_at(i))
                weight, bias = f.arguments[f"w{i}"], f.arguments[f"b{i}"] if chain.biases[i] else None
                emit_pooled(f, shape, chain.plans[i], held + chain.band_at(i), weight, bias, target, steps, choice)
            rows = f.held + f.groups * chain.group_values
            for j, dense in enumerate(chain.dense):
                source = held + chain.input_at(j)
                unpack_images(f, source, rows, dense.inputs, first, count)
                rows = rows + f.groups * (dense.inputs * lanes)
                result = held + (chain.scores_at if j == last else chain.input_at(j + 1))
                emit_dense(f, dense, source, f.arguments[f"v{j}"], f.arguments[f"c{j}"], result)
                if j == last:
                    unpack_images(f, result, f.out, dense.outputs, first, count)
    items = f
    with m.function("chain_forward", **arrays, batch="int") as f:
        groups = (f.batch + (lanes - 1)) // lanes
        f.parallel(items, groups, *(f.arguments[name] for name in arrays), f.batch, groups)


def _pooled_to(chain: ChainPlan, held: Any, block: int) -> tuple[Any, tuple[int, int]]:
    """Where a block's result goes, and the values between its channels and rows: where the next layer reads."""
    lanes, shape = chain.lanes, chain.shapes[block]
    if block + 1 < len(chain.shapes):
        after, band = chain.shapes[block + 1], chain.plans[block + 1].forward.band
        start = chain.band_at(block + 1) + after.pad_top * band.row_values + after.pad_left * lanes
        return held + start, (band.channel_values, band.row_values)
    width = shape.out_width // 2 * lanes
    return held + chain.input_at(0), (shape.out_height // 2 * width, width)


def build_chain_backward(m: Any, chain: ChainPlan) -> None:
    """``chain_backward(g, held, choice, rows, partial, space, weights …, gradients …, batch)``.

    ``g`` is the gradient of the scores; ``rows`` a workspace for those of the hidden dense layers, image by image.
    """
    lanes = chain.lanes
    arrays = {
        "g": "f32*", "held": "f32*", "choice": "i8*", "rows": "f32*", "partial": "f32*", "space": "f32*",
        **_weights(chain),
    }  # fmt: skip
    with m.body("chain_back_items", **arrays, batch="int", groups="int", team="int") as f:
        _emit_back(f, chain)
    items = f
    gradients = {"g" + name: "f32*" for name in _weights(chain)}
    finish_arrays = {"g": "f32*", "held": "f32*", "rows": "f32*", "partial": "f32*", **gradients}
    joins = _bodies_of_joins(m, chain)
    with m.body("chain_finish", **finish_arrays, batch="int", groups="int", team="int", parts="int") as f:
        _emit_joins(f, chain, joins)
    finish = f
    with m.function("chain_backward", **arrays, **gradients, batch="int") as f:
        groups = (f.batch + (lanes - 1)) // lanes
        f.parallel(items, groups, *(f.arguments[name] for name in arrays), f.batch, groups, f.threads)
        parts = f.minimum(f.threads, groups)
        count = sum(grad_items(dense) for dense in chain.dense) + sum(s.out_channels for s in chain.shapes)
        values = [f.arguments[name] for name in finish_arrays]
        f.parallel(finish, f.index(count), *values, f.batch, groups, f.threads, parts, grain=1)


def _emit_back(f: Any, chain: ChainPlan) -> None:
    """All layers backwards for this thread's groups."""
    lanes, last = chain.lanes, len(chain.dense) - 1
    unpooled, pooled, results, size = chain.gradient_places()
    space = f.space + f.thread * size
    partials, before = [], 0
    for i in range(len(chain.shapes)):
        values = chain.partial_values(i)
        partials.append(f.partial + (f.team * before + f.thread * values))
        clear(f, partials[-1], values)
        clear(f, space + unpooled[i], chain.grad_values(i))
        before += values
    with f.loop(f.begin, f.end) as group:
        first = group * lanes
        count = f.minimum(f.batch - first, lanes)
        held = f.held + group * chain.group_values
        outputs = chain.dense[last].outputs
        images, on = image_rows(f, f.g, outputs, first, count), f.mask_below(count, lanes)
        for start in range(0, outputs, lanes):
            for k, column in enumerate(lanes_of(f, images, f.index(start), min(lanes, outputs - start), on)):
                (space + results[last]).store(column, (start + k) * lanes)
        for j in range(last, -1, -1):
            dense, result = chain.dense[j], space + results[j]
            if j < last:
                before = sum(earlier.outputs for earlier in chain.dense[:j])
                unpack_images(f, result, f.rows + f.groups * (before * lanes), dense.outputs, first, count)
            masked = held + chain.input_at(j) if j and chain.dense[j - 1].relu else None
            target = space + (results[j - 1] if j else pooled[-1])
            emit_dense_back(f, dense, result, f.arguments[f"v{j}"], masked, target)
        for i in range(len(chain.shapes) - 1, -1, -1):
            choices = f.choice + (group * chain.group_choices + chain.choice_at(i))
            below = space + pooled[i - 1] if i else None
            _emit_block_back(
                f, chain, i, held + chain.band_at(i), choices, space + pooled[i], space + unpooled[i], partials[i],
                below,
            )  # fmt: skip


def _emit_block_back(
    f: Any,
    chain: ChainPlan,
    i: int,
    packed: Any,
    choices: Any,
    pooled: Any,
    unpooled: Any,
    partial: Any,
    below: Any | None,
) -> None:
    """One block of one group: unpool, add to the weight sums and, into ``below``, write the input's gradient."""
    shape, plan, lanes, rows = chain.shapes[i], chain.plans[i], chain.lanes, chain.strip(i)
    steps, width = chain.grad_steps(i), shape.out_width // 2
    inner = unpooled + (plan.top * steps[1] + plan.left) if i and not chain.by_rows(i) else unpooled

    def upstream(row: Any, start: int, count: int) -> list[Any]:
        line = pooled + (row * width + start) * lanes
        return [line.load(k * lanes, lanes) for k in range(count)]

    sums = partial if chain.biases[i] else None
    with f.loop(0, shape.out_height // 2, rows) as row:
        unpool(f, shape, upstream, choices, inner, steps, sums, (row, row + rows))
        source = packed + row * (2 * shape.stride_y * plan.weights.band.row_values)
        counted = shape.out_height if rows == shape.out_height // 2 and i else 2 * rows
        emit_products(f, plan.wide, plan.weights, inner, steps[0], steps[1], source, partial, counted)
    weight = f.arguments[f"w{i}"]
    if below is not None and chain.by_rows(i):
        emit_rows_back(f, shape, unpooled, steps, weight, below)
    elif below is not None:
        first, groups = f.index(0), plan.inputs.groups_y
        for kind in range(shape.stride_y):
            emit_kind(f, plan.wide, plan.inputs, kind, unpooled, below, first, groups, weight)


def _bodies_of_joins(m: Any, chain: ChainPlan) -> list[Any]:
    """One body for each block that adds up the threads' sums of its output channels ``begin … end``."""
    bodies = []
    for i, plan in enumerate(chain.plans):
        with m.body(f"chain_join{i}", partial="f32*", gw="f32*", gb="f32*", team="int") as f:
            emit_finish(f, plan.wide, chain.partial_values(i), chain.biases[i])
        bodies.append(f)
    return bodies


def _emit_joins(f: Any, chain: ChainPlan, joins: list[Any]) -> None:
    """Items: pieces of the dense layers' weight gradients, layer by layer, then blocks' output channels."""
    lanes, last = chain.lanes, len(chain.dense) - 1
    with f.loop(f.begin, f.end) as item:
        begin = 0
        x, rows = f.held + f.groups * chain.group_values, f.rows
        for j, dense in enumerate(chain.dense):
            number = grad_items(dense)
            with f.when((item >= begin) & (item < begin + number)):
                emit_dense_grad(
                    f, dense, f.g if j == last else rows, x, f.arguments[f"gv{j}"], f.arguments[f"gc{j}"],
                    item - begin, f.batch,
                )  # fmt: skip
            x = x + f.groups * (dense.inputs * lanes)
            rows = rows + f.groups * (dense.outputs * lanes)
            begin += number
        before = 0
        for i, shape in enumerate(chain.shapes):
            with f.when((item >= begin) & (item < begin + shape.out_channels)):
                gradient, bias = f.arguments[f"gw{i}"], f.arguments[f"gb{i}"]
                place = item - begin
                f.call(joins[i], f.partial + f.team * before, gradient, bias, f.parts, place, place + 1, f.thread)
            begin += shape.out_channels
            before += chain.partial_values(i)
