"""Complex transforms of lines in memory, a vector of channels at a time, in two steps that registers hold.

``n = b·i + j`` and ``k = c + a·d`` (i, c < a; j, d < b): first the transforms over i for every j, turned by
``exp(-2πi jc/n)``, then those over j for every c. Backward the same steps in reverse, so the order in which a
spectrum comes out of the first is the one in which it goes into the second, and a product fits in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convlens.kernels.cpu.codegen import F32, Function, Module, Pointer, Value
from convlens.kernels.cpu.depthwise_fourier.geometry import factors
from convlens.kernels.cpu.fourier.butterflies import Complex, dft, inverse_dft

__all__ = ["Line", "load_pair", "store_pair"]

Load = Callable[[Value], Complex]
Store = Callable[[Value, Complex], None]


def load_pair(f: Function, at: Pointer, place: Value | int) -> Complex:
    """The complex vector number ``place``: its real part, then its imaginary one."""
    lanes = f.target.lanes
    first = f.index(place) * (2 * lanes)
    return Complex(at.load(first, lanes, align=4 * lanes), at.load(first + lanes, lanes, align=4 * lanes))


def store_pair(f: Function, at: Pointer, place: Value | int, value: Complex) -> None:
    """See `load_pair`."""
    lanes = f.target.lanes
    first = f.index(place) * (2 * lanes)
    for part, offset in ((value.re, 0), (value.im, lanes)):
        at.store(f.zeros(lanes) if part is None else part, first + offset, align=4 * lanes)


@dataclass(frozen=True)
class Line:
    """Transforms of one length.

    Attributes:
        length: a product of two short lengths, see `factors`.
        turns: table of the turns between the two steps, ``[j][c]`` pairs of cosine and sine.
    """

    length: int
    turns: str

    @classmethod
    def of(cls, m: Module, length: int) -> Line:
        """With its table in ``m``."""
        name = f"turns{length}"
        if m.ir.globals.get(name) is None:
            a, b = factors(length)
            angles = [2 * math.pi * j * c / length for j in range(b) for c in range(a)]
            m.constant(name, F32, [part(angle) for angle in angles for part in (math.cos, math.sin)])
        return cls(length, name)

    def forward(
        self, f: Function, load: Load, between: Pointer, take: Callable[[Value, list[Complex]], None]
    ) -> None:
        """Transform; ``take(c, values)`` gets the spectrum at ``c + a·d`` for every d, for each c in turn.

        Args:
            f: function that is emitted.
            load: a place of the line (at run time).
            between: scratch of ``length`` complex vectors.
            take: see above.
        """
        a, b = factors(self.length)
        with f.loop(0, b) as j:
            spectrum = dft(f, [load(j + b * i) for i in range(a)])
            for k, value in enumerate(spectrum):
                store_pair(f, between, j * a + k, self._turned(f, value, j * a + k, 1.0) if k else value)
        with f.loop(0, a) as c:
            take(c, dft(f, [load_pair(f, between, c + a * j) for j in range(b)]))

    def put_back(self, f: Function, between: Pointer, c: Value, values: list[Complex]) -> None:
        """First step backward, of the spectrum at ``c + a·d`` for every d."""
        a, b = factors(self.length)
        for j, value in enumerate(inverse_dft(f, values)):
            store_pair(f, between, c + a * j, self._turned(f, value, c + a * j, -1.0) if j else value)

    def backward(self, f: Function, between: Pointer, store: Store) -> None:
        """Second step backward, when `put_back` has had every c; not divided by the length."""
        a, b = factors(self.length)
        with f.loop(0, b) as j:
            for i, value in enumerate(inverse_dft(f, [load_pair(f, between, j * a + c) for c in range(a)])):
                store(j + b * i, value)

    def strided(self, f: Function, c: Value, load: Load) -> list[Complex]:
        """What `put_back` takes for ``c``, out of a spectrum in its natural order."""
        a, b = factors(self.length)
        return [load(c + a * d) for d in range(b)]

    @property
    def first(self) -> int:
        """How many c there are."""
        return factors(self.length)[0]

    @property
    def second(self) -> int:
        """How many d there are."""
        return factors(self.length)[1]

    def _turned(self, f: Function, value: Complex, place: Value, sign: float) -> Complex:
        """Times ``exp(-i·angle)``, or its conjugate where ``sign`` is -1."""
        lanes = f.target.lanes
        table = Pointer(f, f.module.ir.globals[self.turns], F32)
        cosine, sine = table.broadcast(place * 2, lanes), table.broadcast(place * 2 + 1, lanes)
        re, im = value.re, value.im
        if re is None or im is None:
            raise AssertionError("a full transform has no zeros")
        crossed_re, crossed_im = im * sine, re * sine
        if sign > 0:
            return Complex(f.fma(re, cosine, crossed_re), f.fma(im, cosine, -crossed_im))
        return Complex(f.fma(re, cosine, -crossed_re), f.fma(im, cosine, crossed_im))
