"""Weight gradient for few input channels: every tap a sum over pixels, pixels along a row as lanes.

Each thread adds up its own images in ``partial[out][tap][lane]`` (the last tap is the bias), then lanes and
threads are added in a fixed order: the same bits in every run with the same number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from convlens.kernels.cpu.codegen.values import F64
from convlens.kernels.cpu.direct_few.geometry import Band, Shape, ceil_div, choose_bands, round_up
from convlens.kernels.cpu.direct_few.packing import emit_pack, lane_mask

__all__ = [
    "WeightGradPlan",
    "add_bias",
    "blocks",
    "build_weight_grad",
    "emit_bias",
    "emit_finish",
    "emit_products",
    "plan_weight_grad",
]

_FLAT_LIMIT = 480  # multiply-adds unrolled when all taps of a channel are written out
_BIAS_BLOCK = 4
_RUN_PER_LANE = 4  # vectors added up in a row, per lane


@dataclass(frozen=True, slots=True)
class WeightGradPlan:
    """Everything that the code depends on besides the problem: blocks of ``outs`` × ``taps`` sums."""

    outs: int
    taps: int
    flat: bool
    bands: int
    band: Band

    def partial_values(self, shape: Shape, lanes: int) -> int:
        """Values of one thread's sums."""
        return shape.out_channels * (shape.taps + 1) * lanes


def plan_weight_grad(
    shape: Shape, batch: int, threads: int, lanes: int, registers: int, l2_bytes: int
) -> WeightGradPlan:
    """Block sizes and bands for a problem."""
    vectors = ceil_div(shape.out_width, lanes)
    window = shape.kernel_height * shape.kernel_width
    best: tuple[float, int, int, bool] | None = None
    for o, t in itertools.product(range(1, min(shape.out_channels, 16) + 1), range(1, min(window, 28) + 1)):
        if o * t + o + 1 > registers:
            continue
        flat = window * o * min(vectors, 3) <= _FLAT_LIMIT
        if not flat and t > shape.kernel_width:
            continue
        blocks = ceil_div(window, t) if flat else shape.kernel_height * ceil_div(shape.kernel_width, t)
        cycles = max(4.0, o * t / 2, (o * 2.5 + t * 1.9) / 2) + 0.6
        cost = ceil_div(shape.out_channels, o) * blocks * cycles
        if best is None or cost < best[0]:
            best = (cost, o, t, flat)
    outs, taps, flat = best[1:] if best else (1, 1, False)
    pitch = round_up((shape.reach_x - 1) // shape.stride_x + vectors * lanes + 1, lanes)
    row_bytes = 4 * (shape.in_channels * pitch * shape.stride_x * shape.stride_y + outs * shape.out_width)
    most = max(1, (l2_bytes // 4 - 4 * shape.in_channels * pitch * shape.stride_x * shape.reach_y) // row_bytes)
    bands = choose_bands(shape.out_height, max(batch, 1), most, 1, threads)
    rows = (ceil_div(shape.out_height, bands) - 1) * shape.stride_y + shape.reach_y
    return WeightGradPlan(outs, taps, flat, bands, Band(shape.in_channels, rows, shape.stride_x, pitch))


def build_weight_grad(m: Any, shape: Shape, plan: WeightGradPlan, bias: bool) -> None:
    """``weight_grad(g, x, grad_weight, grad_bias, partial, space, batch)``: partials and bands of every thread."""
    band, lanes = plan.band, m.target.lanes
    values = plan.partial_values(shape, lanes)
    with m.body("weight_grad_clear", partial="f32*") as f:
        with f.loop(f.begin * values, f.end * values, lanes) as i:
            f.partial.store(f.zeros(lanes), i)
    clear = f
    with m.body("weight_grad_items", g="f32*", x="f32*", partial="f32*", space="f32*") as f:
        packed, partial = f.space + f.thread * band.values, f.partial + f.thread * values
        with f.loop(f.begin, f.end) as item:
            image, part = item // plan.bands, item % plan.bands
            first = part * shape.out_height // plan.bands
            rows = (part + 1) * shape.out_height // plan.bands - first
            emit_pack(
                f, f.x + image * (shape.in_channels * shape.height * shape.width), packed, band,
                first * shape.stride_y, height=shape.height, width=shape.width, pad_top=shape.pad_top,
                pad_left=shape.pad_left, channels_last=shape.channels_last,
            )  # fmt: skip
            plane = shape.out_height * shape.out_width
            grad = f.g + image * (shape.out_channels * plane) + first * shape.out_width
            counted = shape.out_height if plan.bands == 1 else rows
            emit_products(f, shape, plan, grad, plane, shape.out_width, packed, partial, counted)
            if bias:
                emit_bias(f, shape, grad, plane, shape.out_width, partial, counted, shape.out_width)
    items = f
    with m.body("weight_grad_finish", partial="f32*", gw="f32*", gb="f32*", team="int") as f:
        emit_finish(f, shape, values, bias)
    finish = f
    with m.function(
        "weight_grad", g="f32*", x="f32*", gw="f32*", gb="f32*", partial="f32*", space="f32*", batch="int"
    ) as f:
        f.parallel(clear, f.threads, f.partial)
        f.parallel(items, f.batch * plan.bands, f.g, f.x, f.partial, f.space)
        f.parallel(finish, shape.out_channels, f.partial, f.gw, f.gb, f.threads)


def blocks(f: Any, total: int, size: int) -> Iterator[tuple[Any, int]]:
    """Starts and sizes of blocks that cover ``total`` without overlap: a loop, then the rest."""
    whole = total // size
    if whole == 1:
        yield 0, size
    elif whole:
        with f.loop(0, whole) as i:
            yield i * size, size
    if total % size:
        yield whole * size, total % size


def emit_products(
    f: Any,
    shape: Shape,
    plan: WeightGradPlan,
    grad: Any,
    plane: int,
    grad_pitch: int,
    packed: Any,
    partial: Any,
    rows: Any,
    images: Any = 1,
    grad_image: int = 0,
) -> None:
    """Add the products of ``rows`` rows of upstream gradient and packed input to the thread's partial sums.

    Args:
        f: the function being emitted.
        shape: the problem.
        plan: its blocks and band.
        grad: pointer to the upstream gradient, ``[out][row][column]``.
        plane: values between its channels.
        grad_pitch: values between its rows.
        packed: pointer to the packed input.
        partial: pointer to the thread's sums.
        rows: result rows.
        images: how many images lie one behind the other.
        grad_image: values between their upstream gradients.
    """
    band, lanes, row_taps = plan.band, f.target.lanes, shape.taps + 1
    pixels = _Pixels(plane, grad_pitch, rows, images, grad_image)
    window = shape.kernel_height * shape.kernel_width
    for o, outs in blocks(f, shape.out_channels, plan.outs):
        g = grad + f.index(o) * plane
        with f.loop(0, shape.in_channels) as c:
            source = packed + c * band.channel_values
            sums = partial + (f.index(o) * row_taps + c * window) * lanes
            if plan.flat:
                for t in range(0, window, plan.taps):
                    chosen = range(t, min(t + plan.taps, window))
                    places = [
                        tap // shape.kernel_width * shape.dilation_y * band.row_values
                        + band.column(tap % shape.kernel_width * shape.dilation_x)
                        for tap in chosen
                    ]
                    _emit_block(f, shape, band, pixels, g, source, places, sums + t * lanes, outs)
                continue
            with f.loop(0, shape.kernel_height) as a:
                line = source + a * (shape.dilation_y * band.row_values)
                for t in range(0, shape.kernel_width, plan.taps):
                    chosen = range(t, min(t + plan.taps, shape.kernel_width))
                    places = [band.column(b * shape.dilation_x) for b in chosen]
                    target = sums + (a * shape.kernel_width + t) * lanes
                    _emit_block(f, shape, band, pixels, g, line, places, target, outs)


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Where upstream gradients lie and how many there are; see `emit_products`."""

    plane: int
    pitch: int
    rows: Any
    images: Any
    image: int


def _emit_block(
    f: Any,
    shape: Shape,
    band: Band,
    pixels: _Pixels,
    grad: Any,
    source: Any,
    places: list[int],
    sums: Any,
    outs: int,
) -> None:
    """``outs`` × ``len(places)`` sums over all pixels of the band."""
    lanes, row_taps = f.target.lanes, shape.taps + 1
    held = [f.variable(f.zeros(lanes)) for _ in range(outs * len(places))]

    def step(g: Any, x: Any, mask: Any | None) -> None:
        now = [variable.get() for variable in held]
        values = [g.load(o * pixels.plane, lanes, mask=mask) for o in range(outs)]
        for o in range(outs, 2 * outs):  # what the next block of channels reads
            g.prefetch(o * pixels.plane, locality=2)
        for t, place in enumerate(places):
            tap = x.load(place, lanes)
            for o in range(outs):
                k = o * len(places) + t
                added = f.fma(tap, values[o], now[k])
                # a masked-off lane must not see 0 × inf of a value beyond the row
                now[k] = added if mask is None else f.select(mask, added, now[k])
        for variable, value in zip(held, now, strict=True):
            variable.set(value)

    def flush() -> None:
        for o in range(outs):
            for t in range(len(places)):
                place = (o * row_taps + t) * lanes
                sums.store(sums.load(place, lanes) + held[o * len(places) + t].get(), place)

    def steps_of(image: Any, r: Any) -> None:
        g = grad + (f.index(image) * pixels.image + r * pixels.pitch)
        x = source + (f.index(image) * band.values + r * (shape.stride_y * band.row_values))
        _emit_row_steps(f, shape.out_width, g, x, step)

    run = _run_rows(shape, lanes)
    if isinstance(pixels.rows, int) and pixels.rows <= run:
        with f.loop(0, pixels.images) as image, f.loop(0, pixels.rows) as r:
            steps_of(image, r)
        flush()
        return
    with f.loop(0, pixels.images) as image, f.loop(0, pixels.rows, run) as begin:
        for variable in held:
            variable.set(f.zeros(lanes))
        with f.loop(begin, f.minimum(begin + run, pixels.rows)) as r:
            steps_of(image, r)
        flush()


def _emit_row_steps(f: Any, width: int, g: Any, x: Any, step: Callable[[Any, Any, Any | None], None]) -> None:
    """Whole vectors of a row, in a loop where there are many, then the rest under a mask."""
    lanes = f.target.lanes
    whole = width // lanes
    if whole <= 2:
        for v in range(whole):
            step(g + v * lanes, x + v * lanes, None)
    else:
        with f.loop(0, whole * lanes, lanes) as i:
            step(g + i, x + i, None)
    if width % lanes:
        step(g + whole * lanes, x + whole * lanes, lane_mask(f, 0, width % lanes, lanes))


def emit_bias(
    f: Any, shape: Shape, grad: Any, plane: int, pitch: int, partial: Any, rows: Any, width: int
) -> None:
    """Sums of the upstream gradient in float64, into the place after the last tap."""
    lanes, row_taps = f.target.lanes, shape.taps + 1
    for o, outs in blocks(f, shape.out_channels, min(_BIAS_BLOCK, shape.out_channels)):
        held = [f.variable(f.zeros(lanes, F64)) for _ in range(outs)]
        first = grad + f.index(o) * plane

        def step(g: Any, _: Any, mask: Any | None, held: list[Any] = held) -> None:
            for k, variable in enumerate(held):
                variable.set(variable.get() + f.to_f64(g.load(k * plane, lanes, mask=mask)))

        with f.loop(0, rows) as r:
            row = first + r * pitch
            _emit_row_steps(f, width, row, row, step)
        for k, variable in enumerate(held):
            add_bias(f, partial, ((f.index(o) + k) * row_taps + shape.taps) * lanes, variable.get())


def add_bias(f: Any, partial: Any, place: Any, total: Any) -> None:
    """Add the lanes of a float64 vector to the bias sum at ``place``: one float64 in the room of its lanes.

    Torch's own sum of so many numbers is nearly exact, and the last tap's neighbours are of few terms.
    """
    sum_ = (partial + place).cast(F64)
    sum_.store(sum_.load() + f.sum(total))


def _run_rows(shape: Shape, lanes: int) -> int:
    """Rows added up before their sums join the partial ones, so that rounding errors are a blocked sum's."""
    return max(1, _RUN_PER_LANE * lanes // ceil_div(shape.out_width, lanes))


def emit_finish(f: Any, shape: Shape, values: int, bias: bool) -> None:
    """Add lanes and threads of the output channels ``begin … end``."""
    lanes, row_taps = f.target.lanes, shape.taps + 1

    def total(place: Any) -> Any:
        held = f.variable(f.partial.load(place, lanes))
        with f.loop(1, f.team) as thread:
            held.set(held.get() + f.partial.load(place + thread * values, lanes))
        return f.sum(held.get())

    with f.loop(f.begin, f.end) as o:
        with f.loop(0, shape.taps) as t:
            f.gw.store(total((o * row_taps + t) * lanes), o * shape.taps + t)
        if bias:
            place = (o * row_taps + shape.taps) * lanes
            held = f.variable((f.partial + place).cast(F64).load())
            with f.loop(1, f.team) as thread:
                held.set(held.get() + (f.partial + (place + thread * values)).cast(F64).load())
            f.gb.store(f.to_f32(held.get()), o)
