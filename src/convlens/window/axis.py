"""One axis of a sliding window: how many fit, where the padding goes, and what does not fit, by how much."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from convlens.errors import ShapeError

__all__ = ["Misfit", "Window", "layers_until"]

PaddingName = Literal["valid", "same", "same_lower", "full"]


@dataclass(frozen=True, slots=True)
class Misfit:
    """What the last window leaves over, or lacks (row B13)."""

    left_over: int
    """Places at the end that no window reaches."""
    missing: int
    """Places to pad so that one more window takes them in; 0 where nothing is left over."""

    @property
    def fits(self) -> bool:
        """Whether every place is covered by a window's start and end."""
        return self.left_over == 0


@dataclass(frozen=True, slots=True)
class Window:
    """A window on one axis; one of these per axis makes an n-dimensional one.

    ``ceil_mode`` counts a last window that only begins inside the input (pooling).
    """

    size: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "stride", "dilation"):
            if getattr(self, name) < 1:
                raise ShapeError(name, "1 or more", getattr(self, name))
        for name in ("before", "after"):
            if getattr(self, name) < 0:
                raise ShapeError(name, "0 or more", getattr(self, name))

    @property
    def reach(self) -> int:
        """Places from its first to its last element: ``dilation*(size-1) + 1`` (row B10)."""
        return self.dilation * (self.size - 1) + 1

    @property
    def padding(self) -> int:
        """Both sides together: the ``p`` of ``floor((n-k+p+s)/s)`` (row B6)."""
        return self.before + self.after

    def output_size(self, n: int) -> int:
        """Windows on ``n`` places: ``floor((n - reach + padding + stride) / stride)``.

        Raises:
            ShapeError: not even one fits; the text has the numbers and the padding that would do.
        """
        room = n + self.padding
        if room < self.reach:
            short = self.reach - room
            expected = f"at least {self.reach - self.padding} places (the window spans {self.reach})"
            received = f"{n} + {self.before} + {self.after} (padding) = {room}, {short} too few"
            raise ShapeError(
                "input", expected, received, fix=f"pad {-(-short // 2)} more on each side, or use 'same'"
            )
        steps, rest = divmod(room - self.reach, self.stride)
        # torch drops a last window that would start in the padding after the input
        if self.ceil_mode and rest and (steps + 1) * self.stride < n + self.before:
            steps += 1
        return steps + 1

    def input_size(self, m: int, output_padding: int = 0) -> int:
        """Result of the transposed window on ``m`` places: ``(m-1)*stride + reach - padding + output_padding``."""
        return (m - 1) * self.stride + self.reach - self.padding + output_padding

    def misfit(self, n: int) -> Misfit:
        """What is left over at the end of ``n`` places, and the padding that would take it in (row B13)."""
        left_over = (n + self.padding - self.reach) % self.stride
        return Misfit(left_over, self.stride - left_over if left_over else 0)

    def explain(self, n: int) -> str:
        """The count as a sentence, with its numbers and, where places are left over, the fix."""
        m, misfit = self.output_size(n), self.misfit(n)
        text = f"floor(({n} + {self.padding} - {self.reach}) / {self.stride}) + 1 = {m}"
        if misfit.fits or self.ceil_mode:
            return text
        return (
            f"{text}: window {self.size} with stride {self.stride} does not fit {n + self.padding} places, "
            f"it leaves {misfit.left_over}: pad {misfit.missing}, crop {misfit.left_over}, or use ceil_mode"
        )

    def padded(self, how: PaddingName, n: int) -> Window:
        """The same window with the padding of a name, on ``n`` places (row B5).

        ``valid``: none. ``same``: ``ceil(n / stride)`` outputs, an odd place after (torch, TensorFlow).
        ``same_lower``: the odd place before (the lectures' rule for even windows). ``full``: every overlap.

        Raises:
            ShapeError: another name.
        """
        if how == "valid":
            return replace(self, before=0, after=0)
        if how == "full":
            return replace(self, before=self.reach - 1, after=self.reach - 1)
        if how not in ("same", "same_lower"):
            raise ShapeError("padding", "'valid', 'same', 'same_lower' or 'full'", repr(how))
        total = max((-(-n // self.stride) - 1) * self.stride + self.reach - n, 0)
        small, large = total // 2, total - total // 2
        before, after = (large, small) if how == "same_lower" else (small, large)
        return replace(self, before=before, after=after)


def layers_until(n: int, window: Window, target: int) -> int:
    """How many such layers bring ``n`` places down to ``target`` or fewer (row B6).

    Raises:
        ShapeError: they never do, since each keeps the size.
    """
    layers = 0
    while n > target:
        smaller = window.output_size(n)
        if smaller >= n:
            raise ShapeError("window", "one that makes its input smaller", f"{n} places stay {smaller}")
        n, layers = smaller, layers + 1
    return layers
