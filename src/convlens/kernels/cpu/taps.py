"""Weights turned so that output channels are lanes: what transforms of windows begin with."""

from __future__ import annotations

from typing import Protocol

from convlens.kernels.cpu.codegen import Function, Pointer, Value

__all__ = ["load_taps"]


class Windows(Protocol):
    """Where the weights of a convolution, or of its input's gradient (``turned``), lie; strides in elements."""

    @property
    def taps(self) -> int: ...

    @property
    def turned(self) -> bool: ...

    @property
    def dest_channels(self) -> int: ...

    @property
    def weight_dest(self) -> int: ...

    @property
    def weight_source(self) -> int: ...


def load_taps(f: Function, shape: Windows, scratch: Pointer, first: Value, channel: Value) -> None:
    """``scratch[tap][lane]``: lanes beyond the last output channel repeat it."""
    lanes = f.target.lanes
    for start in range(0, shape.taps, lanes):
        count = min(lanes, shape.taps - start)
        mask = None if count == lanes else f.mask_below(count, lanes)
        rows = []
        for lane in range(lanes):
            dest = f.minimum(first + lane, shape.dest_channels - 1)
            row = f.weight + (dest * shape.weight_dest + channel * shape.weight_source + start)
            rows.append(row.load(0, lanes, mask=mask))
        for tap, values in enumerate(f.transpose(rows)[:count]):
            place = shape.taps - 1 - (start + tap) if shape.turned else start + tap
            scratch.store(values, place * lanes)
