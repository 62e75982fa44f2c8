"""The weight gradient with channels as lanes: a block of taps in registers while a row of places goes by.

The rows of all images are cut into a fixed number of shares, each with sums of its own that are added in order
at the end: the result does not depend on the number of threads. Taps outside the input are left out, not
multiplied by zeros.
"""

from __future__ import annotations

from convlens.kernels.cpu.codegen import Function, Module, Pointer, Value
from convlens.kernels.cpu.depthwise.channels import origin
from convlens.kernels.cpu.depthwise.geometry import Shape

__all__ = ["SHARES", "build", "partial_size"]

SHARES = 16
_BLOCK = 24  # taps in registers where there are 32; half of that where there are 16


def partial_size(shape: Shape) -> int:
    """Elements of workspace."""
    return SHARES * shape.taps * shape.channels


def build(m: Module, shape: Shape) -> None:
    """``sums(g, x, gw, partial, batch)`` for the forward ``shape``; ``gw`` as ``(taps, channels)``."""
    depth, height, _ = shape.out_size
    size = shape.taps * shape.channels
    with m.body("shares", g="f32*", x="f32*", partial="f32*", batch="int") as f:
        with f.loop(f.begin, f.end) as share:
            sums = f.partial + share * size
            with f.loop(0, size) as i:
                sums.store(f.number(0.0), i)
            rows = f.batch * (depth * height)
            with f.loop(rows * share // SHARES, rows * (share + 1) // SHARES) as item:
                _Row(f, shape, sums, item).emit()
    shares = f
    with m.body("total", partial="f32*", gw="f32*") as f:
        with f.loop(f.begin, f.end) as i:
            total = f.variable(f.partial.load(i))
            with f.loop(1, SHARES) as share:
                total.set(total.get() + f.partial.load(share * size + i))
            f.gw.store(total.get(), i)
    total_ = f
    with m.function("sums", g="f32*", x="f32*", gw="f32*", partial="f32*", batch="int") as f:
        f.parallel(shares, SHARES, f.g, f.x, f.partial, f.batch)
        f.parallel(total_, size, f.partial, f.gw)


class _Row:
    """Emits what one row of the gradient adds."""

    def __init__(self, f: Function, shape: Shape, sums: Pointer, item: Value) -> None:
        self.f, self.shape, self.sums, self.item = f, shape, sums, item
        depth, height, width = shape.out_size
        plane = item // height
        self.image, self.depth, self.row = plane // depth, plane % depth, item % height
        self.lanes, self.channels = f.target.lanes, shape.channels
        self.g = f.g + item * (width * shape.channels)
        budget = _BLOCK if f.target.registers > 16 else _BLOCK // 2
        self.tall = max(1, min(shape.kernel[1], budget // shape.kernel[2]))

    def emit(self) -> None:
        f, shape = self.f, self.shape
        with f.loop(0, shape.kernel[0]) as tap_d:
            from_d, there = origin(f, shape, 0, self.depth, tap_d)
            with f.when(there):
                whole, rest = divmod(shape.kernel[1], self.tall)
                if whole:
                    with f.loop(0, whole * self.tall, self.tall) as tap_h:
                        self._channels(tap_d, from_d, tap_h, self.tall)
                if rest:
                    self._channels(tap_d, from_d, f.index(whole * self.tall), rest)

    def _channels(self, tap_d: Value, from_d: Value, tap_h: Value, tall: int) -> None:
        f, lanes = self.f, self.lanes
        found = [origin(f, self.shape, 1, self.row, tap_h + h) for h in range(tall)]
        every = found[0][1]
        for _, there in found[1:]:
            every = every & there
        whole = self.channels // lanes * lanes

        def emit(channel: Value, mask: Value | None) -> None:
            def block(heights: list[int]) -> None:
                lines = [self._line(from_d, found[h][0]) for h in heights]
                self._places(tap_d, tap_h, heights, lines, channel, mask)

            with f.when_else(every) as (together, apart):
                with together:
                    block(list(range(tall)))
                with apart:
                    for h in range(tall if tall > 1 else 0):
                        with f.when(found[h][1]):
                            block([h])

        if whole:
            with f.loop(0, whole, lanes) as channel:
                emit(channel, None)
        if whole < self.channels:
            emit(f.index(whole), f.mask_below(self.channels - whole, lanes))

    def _line(self, depth: Value, row: Value) -> Pointer:
        in_depth, height, width = self.shape.in_size
        x: Pointer = self.f.x
        return x.at(((self.image * in_depth + depth) * height + row) * (width * self.channels))

    def _places(
        self, tap_d: Value, tap_h: Value, heights: list[int], lines: list[Pointer], channel: Value,
        mask: Value | None,
    ) -> None:  # fmt: skip
        f, shape, lanes = self.f, self.shape, self.lanes
        width, size, wide = shape.out_size[2], shape.in_size[2], shape.kernel[2]
        step, pad, apart = shape.stride[2], shape.pad[2], shape.dilation[2]
        acc = {(h, w): f.variable(f.zeros(lanes)) for h in heights for w in range(wide)}

        def add(place: Value, taps: list[int]) -> None:
            gradient = self.g.load(place * self.channels + channel, lanes, mask=mask)
            for h, line in zip(heights, lines, strict=True):
                read = line + ((place * step - pad) * self.channels + channel)
                for w in taps:
                    value = read.load(w * apart * self.channels, lanes, mask=mask)
                    acc[h, w].set(f.fma(value, gradient, acc[h, w].get()))

        inside = [[w for w in range(wide) if 0 <= p * step - pad + w * apart < size] for p in range(width)]
        place = 0
        while place < width:
            run = place
            while run < width and inside[run] == inside[place]:
                run += 1
            if inside[place]:
                with f.loop(place, run) as looped:
                    add(looped, inside[place])
            place = run
        for (h, w), total in acc.items():
            tap = (tap_d * shape.kernel[1] + tap_h + h) * wide + w
            into = self.sums + (tap * self.channels + channel)
            into.store(into.load(0, lanes, mask=mask) + total.get(), 0, mask=mask)
