"""Real two-dimensional transforms of tiles, as numbers to multiply: three products for every complex one.

The spectrum of a real tile of ``T0 × T1`` is four real numbers and ``T0·T1/2 - 2`` complex ones (the others are
conjugates). A complex product ``a · conj(b)`` takes the products of three numbers of either side::

    p = (ar + ai) · br      q = ar · -(br + bi)      r = ai · (br - bi)      re = p - r      im = p + q

so that every number here is a *point*: what is multiplied, and summed over channels, by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convlens.kernels.cpu.codegen import Function, Pointer, Value
from convlens.kernels.cpu.fourier.butterflies import (
    Complex,
    dft,
    difference,
    inverse_dft,
    inverse_real,
    negative,
    total,
)

__all__ = ["LENGTHS", "Transform"]

LENGTHS = (8, 10, 12, 16, 18, 20, 24, 30, 32, 40, 48, 64, 96, 128)
"""Lengths that are transformed; even, with factors 2, 3 and 5."""

Load = Callable[[Value | int, int], Value]
Store = Callable[[Value | int, Value], None]
Side = Literal["data", "window"]


@dataclass(frozen=True, slots=True)
class Transform:
    """The transform of tiles of ``rows × columns`` (each 1, or one of `LENGTHS`)."""

    rows: int
    columns: int

    @property
    def points(self) -> int:
        """Products for each tile and pair of channels."""
        return self._pairs_from + 3 * _pairs(self.columns) * self.rows

    @property
    def _own_from(self) -> int:
        """First point of the columns that are real after the rows' transform, past their real points."""
        return _alone(self.rows) * _alone(self.columns)

    @property
    def _pairs_from(self) -> int:
        """First point of the complex columns."""
        return self._own_from + 3 * _pairs(self.rows) * _alone(self.columns)

    @property
    def middle(self) -> int:
        """Vectors of scratch."""
        return self.rows * self.columns

    def forward(
        self, f: Function, side: Side, size: tuple[int, int], load: Load, middle: Pointer, store: Store,
        scale: float = 1.0, spacing: tuple[int, int] = (1, 1),
    ) -> None:  # fmt: skip
        """Points of a tile of which the first ``size`` rows and columns are given, the others zero.

        Args:
            f: function that is emitted.
            side: ``"data"``, or ``"window"`` for the conjugated factor.
            size: rows and columns given.
            load: value at a row (at run time) and column.
            middle: scratch of `middle` vectors.
            store: takes a point and its value.
            scale: factor of every value.
            spacing: places from one given row or column to the next; zeros lie between.
        """
        lanes, pitch = f.target.lanes, self.columns
        with f.loop(0, size[0]) as row:
            values = [Complex(None)] * self.columns
            for place in range(size[1]):
                values[place * spacing[1]] = Complex(load(row, place))
            spectrum = dft(f, values, real=True)
            for slot, part in enumerate(_packed(f, spectrum)):
                middle.store(part, (row * pitch + slot) * lanes, align=4 * lanes)

        def column(slot: Value | int, row: int) -> Value | None:
            given, between = divmod(row, spacing[0])
            if between or given >= size[0]:
                return None
            value: Value = middle.load((f.index(slot) + given * pitch) * lanes, lanes, align=4 * lanes)
            return value

        def put(point: Value | int, value: Value | None) -> None:
            value = f.zeros(lanes) if value is None else value
            store(point, value * scale if scale != 1.0 else value)

        with f.loop(0, _alone(self.columns)) as which:
            spectrum = dft(f, [Complex(column(which, row)) for row in range(self.rows)], real=True)
            for i, k in enumerate((0, self.rows // 2)[: _alone(self.rows)]):
                put(which * _alone(self.rows) + i, spectrum[k].re)
            for k in range(_pairs(self.rows)):
                at = which * (3 * _pairs(self.rows)) + (self._own_from + 3 * k)
                for i, factor in enumerate(_three_of(side, spectrum[k + 1])):
                    put(at + i, factor)
        with f.loop(0, _pairs(self.columns)) as pair:
            first = pair * 2 + _alone(self.columns)
            spectrum = dft(f, [Complex(column(first, row), column(first + 1, row)) for row in range(self.rows)])
            for k, number in enumerate(spectrum):
                at = pair * (3 * self.rows) + (self._pairs_from + 3 * k)
                for i, factor in enumerate(_three_of(side, number)):
                    put(at + i, factor)

    def backward(
        self, f: Function, size: tuple[int, int], load: Callable[[Value | int], Value], middle: Pointer,
        store: Callable[[Value, int, Value], None], rows: Value | None = None,
        spacing: tuple[int, int] = (1, 1),
    ) -> None:  # fmt: skip
        """``size`` rows and columns of a tile from its first on, times ``T0·T1``, from its summed products.

        Args:
            f: function that is emitted.
            size: rows and columns wanted.
            load: summed products of a point.
            middle: scratch of `middle` vectors.
            store: takes row (at run time), column and value.
            rows: how many rows are stored; ``size[0]`` by default.
            spacing: places of the tile from one wanted row or column to the next.
        """
        lanes, pitch = f.target.lanes, self.columns

        def put(row: int, slot: Value, value: Value | None) -> None:
            value = f.zeros(lanes) if value is None else value
            middle.store(value, (slot + row * pitch) * lanes, align=4 * lanes)

        def number(at: Value) -> Complex:
            p, q, r = (load(at + i) for i in range(3))
            return Complex(p - r, p + q)

        with f.loop(0, _alone(self.columns)) as which:
            ends = [Complex(load(which * _alone(self.rows) + i)) for i in range(_alone(self.rows))]
            at = which * (3 * _pairs(self.rows)) + self._own_from
            inner = [number(at + 3 * k) for k in range(_pairs(self.rows))]
            signal = [ends[0].re] if self.rows == 1 else inverse_real(f, [ends[0], *inner, ends[1]])
            for row, value in enumerate(signal[:: spacing[0]][: size[0]]):
                put(row, which, value)
        with f.loop(0, _pairs(self.columns)) as pair:
            at = pair * (3 * self.rows) + self._pairs_from
            slot = pair * 2 + _alone(self.columns)
            signals = inverse_dft(f, [number(at + 3 * k) for k in range(self.rows)])
            for row, both in enumerate(signals[:: spacing[0]][: size[0]]):
                put(row, slot, both.re)
                put(row, slot + 1, both.im)
        with f.loop(0, size[0] if rows is None else rows) as line:
            slots = [
                middle.load((line * pitch + slot) * lanes, lanes, align=4 * lanes) for slot in range(self.columns)
            ]
            signal = [slots[0]]
            if self.columns > 1:
                pairs = [Complex(*slots[2 * k : 2 * k + 2]) for k in range(1, self.columns // 2)]
                signal = inverse_real(f, [Complex(slots[0]), *pairs, Complex(slots[1])])
            for i, value in enumerate(signal[:: spacing[1]][: size[1]]):
                if value is not None:
                    store(line, i, value)


def _alone(length: int) -> int:
    """Frequencies that are their own conjugates."""
    return 1 if length == 1 else 2


def _pairs(length: int) -> int:
    """Frequencies with a conjugate partner, one of each pair."""
    return 0 if length == 1 else length // 2 - 1


def _packed(f: Function, spectrum: list[Complex]) -> list[Value]:
    """Half of a real signal's spectrum as real vectors: first, middle, then real and imaginary parts."""
    length = len(spectrum)
    parts = [spectrum[0].re] if length == 1 else [spectrum[0].re, spectrum[length // 2].re]
    for value in spectrum[1 : 1 + _pairs(length)]:
        parts += [value.re, value.im]
    return [f.zeros(f.target.lanes) if part is None else part for part in parts]


def _three_of(side: Side, value: Complex) -> list[Value | None]:
    """The three factors of a complex number on either side of a product."""
    both = total(value.re, value.im)
    if side == "data":
        return [both, value.re, value.im]
    return [value.re, negative(both), difference(value.re, value.im)]
