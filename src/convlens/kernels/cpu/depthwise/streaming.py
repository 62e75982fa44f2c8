"""Large results written past the caches: a plane is finished in the near cache, then leaves in whole vectors.

An ordinary store first reads the line that it overwrites; of a memory-bound convolution's traffic that is a
third. The items of a thread follow each other in the result, so what is left of one plane after whole vectors
leaves with the next; only the first and the last vector of a thread are stored in part.
"""

from __future__ import annotations

from convlens.kernels.cpu.codegen import Function, Pointer, Value

__all__ = ["ResultStream", "buffer_size"]

_LONGEST = 1 << 16  # elements of a plane that still stays in the near cache until it leaves


def buffer_size(count: int) -> int:
    """Elements of buffer for items of ``count`` elements each; 0 if they are too long to wait in a cache."""
    return -(-count // 16) * 16 + 48 if count <= _LONGEST else 0


class ResultStream:
    """The part of a result that one thread writes, item after item."""

    def __init__(self, f: Function, buffer: Pointer, result: Pointer, count: int, begin: Value) -> None:
        self.f, self.buffer, self.result, self.count, self.lanes = f, buffer, result, count, f.target.lanes
        before = begin * count % self.lanes
        self.waiting = f.variable(before)  # elements in the buffer, those of the thread before included
        self.foreign = f.variable(before)  # … of which so many are the thread before's
        self.place = f.variable(begin * count - before)

    def into(self) -> Pointer:
        """Where the next item is to be written."""
        return self.buffer.at(self.waiting.get())

    def leave(self) -> None:
        """The item is complete: write what fills whole vectors."""
        f, lanes, place = self.f, self.lanes, self.place.get()
        total = self.waiting.get() + self.count
        whole = total - total % lanes
        shared = f.select((self.foreign.get() > 0) & (whole > 0), f.index(lanes), f.index(0))
        with f.when(shared > 0):
            self.result.store(self.buffer.load(0, lanes), place, mask=self._own(f.index(lanes)))
            self.foreign.set(f.index(0))
        with f.loop(shared, whole, lanes) as i:
            self.result.stream(self.buffer.load(i, lanes), place + i)
        self.buffer.store(self.buffer.load(whole, lanes), 0)
        self.waiting.set(total - whole)
        self.place.set(place + whole)

    def end(self) -> None:
        """Write what is left."""
        self.result.store(self.buffer.load(0, self.lanes), self.place.get(), mask=self._own(self.waiting.get()))

    def _own(self, end: Value) -> Value:
        f = self.f
        return f.mask_below(end, self.lanes) ^ f.mask_below(self.foreign.get(), self.lanes)
