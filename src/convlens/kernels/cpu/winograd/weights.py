"""The weights' part: taps of 16 output channels at a time turned into lanes, transformed, laid out as panels."""

from __future__ import annotations

from convlens.kernels.cpu.codegen import F32, Function, Module, Pointer, Value
from convlens.kernels.cpu.taps import load_taps
from convlens.kernels.cpu.winograd.geometry import Cut, Shape
from convlens.kernels.cpu.winograd.transform import transform

__all__ = ["panel_at", "weights_body"]


def panel_at(
    f: Function, shape: Shape, cut: Cut, weights: Pointer, first: Value, vectors: int, point: Value
) -> Pointer:
    """Panel ``(source channel, vectors · lanes)`` of one point and the block from vector ``first`` on."""
    size = shape.source_channels * cut.lanes
    if cut.by_points:
        return weights + (point * cut.dest_vectors + first) * size
    return weights + (first * shape.points + point * vectors) * size


def weights_body(m: Module, shape: Shape, cut: Cut) -> Function:
    """Body over ``vectors of output channels × source channels`` items: the transformed weights of each."""
    lanes, taps = cut.lanes, shape.taps
    with m.body("weights", weight="f32*", panels="f32*") as f:
        scratch = f.scratch(F32, (taps + lanes) * lanes)
        middle = f.scratch(F32, shape.points * lanes)
        with f.loop(f.begin, f.end) as item:
            vector, channel = item // shape.source_channels, item % shape.source_channels
            load_taps(f, shape, scratch, vector * lanes, channel)
            _by_width(f, shape, cut, scratch, middle, vector, channel)
    f.ir.attributes.add("noinline")
    return f


def _by_width(
    f: Function, shape: Shape, cut: Cut, scratch: Pointer, middle: Pointer, vector: Value, channel: Value
) -> None:
    """Earlier vectors lie in blocks of one width, later ones in blocks of the other."""
    wide = cut.vectors[0] * cut.blocks[0]
    if not all(cut.blocks):
        width = cut.vectors[0] if cut.blocks[0] else cut.vectors[1]
        _store(f, shape, cut, scratch, middle, vector, channel, width, f.index(0))
        return
    with f.when_else(vector < wide) as (first, later):
        with first:
            _store(f, shape, cut, scratch, middle, vector, channel, cut.vectors[0], f.index(0))
        with later:
            _store(f, shape, cut, scratch, middle, vector, channel, cut.vectors[1], f.index(wide))


def _store(
    f: Function, shape: Shape, cut: Cut, scratch: Pointer, middle: Pointer, vector: Value, channel: Value,
    width: int, base: Value,
) -> None:  # fmt: skip
    lanes = cut.lanes
    first, column = vector - (vector - base) % width, (vector - base) % width
    if cut.by_points:
        step = cut.dest_vectors * shape.source_channels * lanes
    else:
        step = width * shape.source_channels * lanes
    to = panel_at(f, shape, cut, f.panels, first, width, f.index(0)) + (channel * width + column) * lanes
    columns = shape.columns

    def load(row: Value | int, place: Value | int) -> Value:
        value: Value = scratch.load((f.index(row) * columns.window + place) * lanes, lanes)
        return value

    def store(row: Value, place: int, value: Value) -> None:
        to.store(value, (row * columns.points + place) * step)

    transform(f, shape.rows.matrices.window, columns.matrices.window, middle, load, store)
