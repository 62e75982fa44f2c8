"""A small constant matrix times vectors, as the shortest chain of additions and fused multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from convlens.kernels.cpu.codegen import Function, Value

__all__ = ["multiplied"]

Row = Sequence[Fraction]


def multiplied(f: Function, matrix: Sequence[Row], values: Sequence[Value]) -> list[Value]:
    """``matrix @ values``.

    Points come in pairs ±a, so rows (or columns) come in pairs that differ only in signs: such a pair shares
    the sums of its equal and of its opposite terms.
    """
    columns = list(zip(*matrix, strict=True))
    pairs = _pairs(columns)
    if pairs:
        return _folded(f, matrix, values, pairs)
    partners = dict(_pairs(list(matrix)))
    results: dict[int, Value] = {}
    for row, partner in partners.items():
        results[row], results[partner] = _both(f, matrix[row], matrix[partner], values)
    return [results[i] if i in results else _sum(f, row, values) for i, row in enumerate(matrix)]


def _folded(
    f: Function, matrix: Sequence[Row], values: Sequence[Value], pairs: list[tuple[int, int]]
) -> list[Value]:
    """Columns in pairs: each row takes either the sum or the difference of a pair's values."""
    sums = {i: values[i] + values[j] for i, j in pairs}
    differences = {i: values[i] - values[j] for i, j in pairs}
    second = {j for _, j in pairs}
    paired = dict(pairs)
    results = []
    for row in matrix:
        terms, coefficients = [], []
        for i, coefficient in enumerate(row):
            if i in second or not coefficient:
                continue
            if i in paired:
                terms.append(sums[i] if row[paired[i]] == coefficient else differences[i])
            else:
                terms.append(values[i])
            coefficients.append(coefficient)
        results.append(_sum(f, coefficients, terms))
    return results


def _pairs(lines: Sequence[Row]) -> list[tuple[int, int]]:
    """Lines equal but for signs, of which some are equal and some opposite."""
    found, taken = [], set()
    for i, line in enumerate(lines):
        for j in range(i + 1, len(lines)):
            other = lines[j]
            same = all(abs(a) == abs(b) for a, b in zip(line, other, strict=True))
            if i not in taken and j not in taken and same and any(line) and line != other:
                found.append((i, j))
                taken |= {i, j}
    return found


def _both(f: Function, row: Row, partner: Row, values: Sequence[Value]) -> tuple[Value, Value]:
    equal = [(c, v) for c, d, v in zip(row, partner, values, strict=True) if c and c == d]
    opposite = [(c, v) for c, d, v in zip(row, partner, values, strict=True) if c and c != d]
    plus = _sum(f, [c for c, _ in equal], [v for _, v in equal])
    scale = opposite[-1][0]
    minus = _sum(f, [c / scale for c, _ in opposite], [v for _, v in opposite])
    if abs(scale) == 1:
        low, high = plus - minus, plus + minus
        return (high, low) if scale == 1 else (low, high)
    factor = f.splat(float(scale), minus.lanes)
    return f.fma(factor, minus, plus), f.fma(f.splat(-float(scale), minus.lanes), minus, plus)


def _sum(f: Function, coefficients: Row, values: Sequence[Value]) -> Value:
    """``Σ coefficient · value``; a term of ±1 begins, so that most rows need no plain product."""
    terms = [(c, v) for c, v in zip(coefficients, values, strict=True) if c]
    terms.sort(key=lambda term: (term[0] != 1, abs(term[0]) != 1))
    coefficient, total = terms[0]
    if coefficient != 1:
        total = total * float(coefficient)
    for coefficient, value in terms[1:]:
        if abs(coefficient) == 1:
            total = total + value if coefficient == 1 else total - value
        else:
            total = f.fma(f.splat(float(coefficient), value.lanes), value, total)
    return total
