"""Rows of a cache that is larger than memory, fetched ahead of their use.

Indexing a memory map waits for the disk with Python's lock held, one page fault after the other. Here threads read
whole rows with ``preadv``, which lets the training step run meanwhile, in the order in which they lie on disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from convlens.data.dataset import Indices
from convlens.data.preprocessing import Array
from convlens.errors import StorageError

__all__ = ["RowFile", "fits_in_memory", "read_ahead"]

_THREADS = 2


def fits_in_memory(nbytes: int, share: float = 0.5) -> bool:
    """True where so many bytes are at most that share of the memory that is free now (or that is not known)."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with Path(
            "/proc/meminfo"
        ).open() as file:  # free pages alone leave out what the page cache would give back
            available = next((line for line in file if line.startswith("MemAvailable:")), None)
        if available is not None:
            free = int(available.split()[1]) * 1024
    except (AttributeError, OSError, ValueError):
        return True
    return nbytes <= share * free


class RowFile:
    """Rows of an array; of a memory-mapped one straight from its file.

    Args:
        inputs: ``[N, *shape]``, resident or ``numpy.memmap``.
    """

    def __init__(self, inputs: Array) -> None:
        self._inputs = inputs
        self._row_bytes = int(np.prod(inputs.shape[1:])) * inputs.itemsize
        self._start = 0
        self._handle: int | None = None
        if isinstance(inputs, np.memmap) and inputs.filename is not None and hasattr(os, "preadv"):
            self._start = int(inputs.offset)
            self._handle = os.open(inputs.filename, os.O_RDONLY)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def rows(self, numbers: Indices) -> Array:
        """``inputs[numbers]`` as a new array; neighbouring rows are read in one go.

        Raises:
            StorageError: the file was cut short meanwhile.
        """
        if self._handle is None:
            taken: Array = self._inputs[numbers]
            return taken
        out = np.empty((len(numbers), *self._inputs.shape[1:]), self._inputs.dtype)
        if not out.size:
            return out
        flat = memoryview(out.reshape(-1).view(np.uint8).data)
        size = self._row_bytes
        order = np.argsort(numbers, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(numbers[order]) != 1) + 1)
        for run in runs:
            self._read([flat[place * size : (place + 1) * size] for place in run.tolist()], int(numbers[run[0]]))
        return out

    def _read(self, views: list[memoryview], first: int) -> None:
        limit = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16
        for start in range(0, len(views), limit):
            part = views[start : start + limit]
            wanted = len(part) * self._row_bytes
            at = self._start + (first + start) * self._row_bytes
            got = os.preadv(self._handle or 0, part, at)
            while got < wanted:  # a signal or a network disk may give less at a time
                row, inside = divmod(got, self._row_bytes)
                more = os.preadv(self._handle or 0, [part[row][inside:], *part[row + 1 :]], at + got)
                if not more:
                    raise StorageError(f"{getattr(self._inputs, 'filename', 'cache')}: is shorter than it was.")
                got += more


def read_ahead(inputs: Array, order: Indices, step: int, depth: int = 4) -> Iterator[tuple[Indices, Array]]:
    """Rows in the order asked, `step` at a time, with up to `depth` pieces read before they are wanted.

    Args:
        inputs: ``[N, *shape]``, resident or memory-mapped.
        order: int64 row numbers, in any order.
        step: rows per piece.
        depth: pieces under way.

    Yields:
        ``(numbers, rows)``.
    """
    waiting: deque[tuple[Indices, Future[Array]]] = deque()
    with RowFile(inputs) as file, ThreadPoolExecutor(_THREADS) as pool:
        try:
            for start in range(0, len(order), step):
                numbers = order[start : start + step]
                waiting.append((numbers, pool.submit(file.rows, numbers)))
                if len(waiting) >= depth:
                    numbers, future = waiting.popleft()
                    yield numbers, future.result()
            while waiting:
                numbers, future = waiting.popleft()
                yield numbers, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
