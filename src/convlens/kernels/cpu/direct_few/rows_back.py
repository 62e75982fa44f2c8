"""Input gradient of small planes with images as lanes: a whole row of it held in registers.

Each value of the upstream gradient is added to all the places it came from: nothing is multiplied by the zeros
around it, which in a plane of 10 columns and a window of 5 are 2 of 7 products.
"""

from __future__ import annotations

from typing import Any

from convlens.kernels.cpu.codegen.values import F32
from convlens.kernels.cpu.direct_few.geometry import Shape

__all__ = ["emit_rows_back", "fits_rows"]

_TERMS = 128  # products added up in a row: sums of sums keep rounding errors those of a blocked product


def fits_rows(shape: Shape, registers: int) -> bool:
    """Whether a row of the input and one of the output fit the registers together; only at stride 1."""
    plain = shape.stride_y == shape.stride_x == shape.dilation_y == 1
    return plain and shape.width + shape.out_width + 2 <= registers


def emit_rows_back(f: Any, shape: Shape, gradient: Any, steps: tuple[int, int], weight: Any, result: Any) -> None:
    """``result[channel][row][column][image]`` of one group of images.

    Args:
        f: the function being emitted.
        shape: the convolution, as `fits_rows` accepts it.
        gradient: the upstream gradient, ``[channel][row][column][image]``.
        steps: values between its channels, and between its rows.
        weight: the weights.
        result: where the input's gradient goes.
    """
    lanes, window = f.target.lanes, shape.kernel_height * shape.kernel_width
    block = max(1, _TERMS // window)
    totals = f.scratch(F32, shape.width * lanes)
    with f.loop(0, shape.in_channels) as c, f.loop(0, shape.height) as y:
        below = y + shape.pad_top
        bounds = f.maximum(below - (shape.out_height - 1), 0), f.minimum(below + 1, shape.kernel_height)
        for x in range(shape.width):
            totals.store(f.zeros(lanes), x * lanes)
        sums = [f.variable(f.zeros(lanes)) for _ in range(shape.width)]
        with f.loop(0, shape.out_channels, block) as first:
            for sum_ in sums:
                sum_.set(f.zeros(lanes))
            last = f.minimum(first + block, shape.out_channels)
            with f.loop(first, last) as o, f.loop(*bounds) as i:
                line = gradient + o * steps[0] + (below - i) * steps[1]
                _emit_line(f, shape, line, weight + (o * shape.taps + c * window + i * shape.kernel_width), sums)
            for x, sum_ in enumerate(sums):
                totals.store(totals.load(x * lanes, lanes) + sum_.get(), x * lanes)
        row = result + (c * shape.height + y) * (shape.width * lanes)
        for x in range(shape.width):
            row.store(totals.load(x * lanes, lanes), x * lanes)


def _emit_line(f: Any, shape: Shape, line: Any, taps: Any, sums: list[Any]) -> None:
    """One row of upstream gradient through one row of the window."""
    lanes = f.target.lanes
    now = [sum_.get() for sum_ in sums]
    values = [line.load(x * lanes, lanes) for x in range(shape.out_width)]
    for b in range(shape.kernel_width):
        factor = taps.broadcast(b, lanes)
        for x, value in enumerate(values):
            place = x + b * shape.dilation_x - shape.pad_left
            if 0 <= place < shape.width:
                now[place] = f.fma(value, factor, now[place])
    for sum_, value in zip(sums, now, strict=True):
        sum_.set(value)
