"""Winograd's matrices from interpolation points, in exact fractions.

``F(m, r)`` gives ``m`` outputs of a window of ``r`` with ``n = m + r - 1`` products instead of ``m * r``:
``y = A ((G g) * (B d))``, evaluation of two polynomials at ``n - 1`` points and at infinity, and interpolation
(Toom and Cook; Lavin and Gray 2016; points after Barabasz et al. 2020). In two dimensions each matrix is
applied along both axes. Rounding errors depend on the points: near 1 in size, and in pairs ±a, which
also halves the work of the transforms.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import NamedTuple

__all__ = ["POINTS", "Matrices", "Rows", "matrices"]

Rows = tuple[tuple[Fraction, ...], ...]

POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
    8: (Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2)),
}
"""Finite points by the number of products; infinity is always one more."""


class Matrices(NamedTuple):
    """Rows of the three matrices of ``F(m, r)``."""

    data: Rows
    """``n × n``: of a piece of the input."""
    window: Rows
    """``n × r``: of the weights."""
    result: Rows
    """``m × n``: back from the products."""


@cache
def matrices(outputs: int, window: int, points: tuple[Fraction, ...] | None = None) -> Matrices:
    """The matrices of ``F(outputs, window)``.

    Args:
        outputs: outputs of one tile.
        window: weights along the axis.
        points: finite points; those of `POINTS` by default.
    """
    count = outputs + window - 1
    finite = POINTS[count] if points is None else points
    data, weights = [], []
    for j, point in enumerate(finite):
        others = [a for i, a in enumerate(finite) if i != j]
        scale = Fraction(1)
        for a in others:
            scale *= point - a
        data.append((*_polynomial(others), Fraction(0)))
        weights.append(tuple(point**power / scale for power in range(window)))
    data.append(_polynomial(finite))
    weights.append(_unit(window))
    result = tuple(
        (*(point**power for point in finite), Fraction(int(power == outputs - 1))) for power in range(outputs)
    )
    return Matrices(tuple(data), tuple(weights), result)


def _polynomial(roots: list[Fraction] | tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """Coefficients of the product of ``x - root``, constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return tuple(coefficients)


def _unit(length: int) -> tuple[Fraction, ...]:
    return tuple(Fraction(int(i == length - 1)) for i in range(length))
