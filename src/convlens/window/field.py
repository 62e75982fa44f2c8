"""Receptive fields: which places of the input one output sees, through chains and branches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from convlens.errors import ShapeError
from convlens.window.axis import Window

__all__ = ["Field", "chain", "merge"]


@dataclass(frozen=True, slots=True)
class Field:
    """What output ``i`` sees on one axis: input places ``offset + i*stride`` to ``offset + i*stride + size - 1``.

    Places below zero or beyond the input are padding.
    """

    size: int = 1
    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def then(self, window: Window) -> Field:
        """The field after one more layer."""
        grown = (window.reach - 1) * self.stride
        return Field(
            int(self.size + grown), self.stride * window.stride, self.offset - window.before * self.stride
        )

    def then_transposed(self, window: Window) -> Field:
        """The field after a transposed window, whose outputs lie ``stride`` times denser."""
        finer = self.stride / window.stride
        # an output is reached from ceil(reach / stride) neighbours at most
        seen = -(-window.reach // window.stride)
        first = self.offset + (window.before - window.reach + 1) * finer
        return Field(int(self.size + (seen - 1) * self.stride), finer, first)

    def span(self, index: int = 0) -> tuple[Fraction, Fraction]:
        """First and last place that output ``index`` sees."""
        first = self.offset + index * self.stride
        return first, first + self.size - 1

    @property
    def centre(self) -> Fraction:
        """Middle of what output 0 sees."""
        return self.offset + Fraction(self.size - 1, 2)


def chain(windows: Iterable[Window], start: Field | None = None) -> Field:
    """The field at the end of a chain of layers."""
    field = start or Field()
    for window in windows:
        field = field.then(window)
    return field


def merge(*branches: Field) -> Field:
    """The field where branches meet (added or concatenated): the least interval that holds them all.

    Raises:
        ShapeError: no branch, or branches that step differently and so cannot meet element by element.
    """
    if not branches:
        raise ShapeError("branches", "at least one", 0)
    strides = {branch.stride for branch in branches}
    if len(strides) > 1:
        raise ShapeError("branches", "one stride", sorted(map(str, strides)), fix="stride the other branch alike")
    first = min(branch.offset for branch in branches)
    last = max(branch.offset + branch.size - 1 for branch in branches)
    return Field(int(last - first + 1), branches[0].stride, first)
