"""Two-dimensional transforms: one small matrix along the rows of a tile, one along its columns."""

from __future__ import annotations

from collections.abc import Callable

from convlens.kernels.cpu.codegen import Function, Pointer, Value
from convlens.kernels.cpu.winograd.chains import multiplied
from convlens.kernels.cpu.winograd.points import Rows

__all__ = ["transform"]


def transform(
    f: Function,
    down: Rows,
    across: Rows,
    middle: Pointer,
    load: Callable[[Value | int, Value | int], Value],
    store: Callable[[Value, int, Value], None],
    rows: Value | None = None,
) -> None:
    """``down @ tile @ across.T`` for a vector of tiles.

    Args:
        f: function that is emitted.
        down: matrix applied to each column.
        across: matrix applied to each row.
        middle: scratch of ``len(down) × tile columns`` vectors.
        load: the value at a row and a column of the tile.
        store: takes row (at run time), column and value of the result.
        rows: how many rows of the result are wanted; all by default.
    """
    lanes = f.target.lanes
    height, width = len(down[0]), len(across[0])
    with f.loop(0, width) as at:
        values = multiplied(f, down, [load(row, at) for row in range(height)])
        for row, value in enumerate(values):
            middle.store(value, (at + row * width) * lanes, align=4 * lanes)
    with f.loop(0, len(down) if rows is None else rows) as line:
        values = [middle.load((line * width + column) * lanes, lanes, align=4 * lanes) for column in range(width)]
        for column, value in enumerate(multiplied(f, across, values)):
            store(line, column, value)
