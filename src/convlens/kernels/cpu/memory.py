"""Memory for large results: pages are kept and used again instead of being asked of the system each time.

A fresh array of 100 MB costs 25 ms of page faults (4 KiB each, zeroed by the kernel) where writing it takes
2 ms; the C library gives such arrays back to the system as soon as they are freed. Blocks kept here have
2 MiB pages where the system offers them, and return to the pool when the last tensor on them dies.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

import torch

__all__ = ["Pool", "empty", "pool", "sharing_workspaces", "workspace"]

_SMALLEST = 1 << 20  # below, the C library keeps the memory itself
_PAGE = 2 << 20


class Pool:
    """Blocks of memory that outlive their tensors, most recently used first.

    Attributes:
        limit_bytes: most memory that is kept while nobody uses it; the longest unused goes first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._free: deque[mmap.mmap] = deque()  # its operations are atomic: a finaliser may run anywhere
        self._held: dict[int, tuple[weakref.ref[memoryview], mmap.mmap]] = {}

    @property
    def kept_bytes(self) -> int:
        """Memory kept now that no tensor uses."""
        return sum(len(block) for block in list(self._free))

    def clear(self) -> None:
        """Give everything unused back to the system."""
        self._free.clear()

    def take(self, size: int) -> memoryview:
        """At least ``size`` bytes, not initialised; they return when the view is gone."""
        wanted = _rounded(size)
        block = self._reused(wanted) or _mapped(wanted)
        view = memoryview(block)
        held = weakref.ref(view, self._returned)
        self._held[id(held)] = (held, block)
        return view

    def _reused(self, wanted: int) -> mmap.mmap | None:
        for _ in range(len(self._free)):
            try:
                block = self._free.pop()
            except IndexError:
                return None
            if len(block) == wanted:
                return block
            self._free.appendleft(block)
        return None

    def _returned(self, held: weakref.ref[memoryview]) -> None:
        _, block = self._held.pop(id(held))
        self._free.append(block)
        while self.kept_bytes > self.limit_bytes:
            with contextlib.suppress(IndexError):
                self._free.popleft()


def _rounded(size: int) -> int:
    """``size`` up to one of eight steps between powers of two, so that near sizes share blocks."""
    step = max(_PAGE, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def _mapped(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):
        # not the default, shared memory: a forked child would write into its parent's results, and there
        # are no huge pages for it
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        block = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 8 << 30


pool = Pool(min(2 << 30, _memory_bytes() // 8))
"""The process's pool: at most an eighth of the machine's memory and 2 GiB unused."""


def empty(
    shape: Sequence[int], *, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A dense, uninitialised CPU tensor (NaN under torch's deterministic algorithms), large ones from the `pool`.

    Args:
        shape: its sizes.
        channels_last: channels vary fastest (4 or 5 axes); else the last axis does.
        dtype: its element type.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < _SMALLEST:
        order = torch.contiguous_format
        if channels_last:
            order = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
        return torch.empty(tuple(shape), dtype=dtype, memory_format=order)
    flat = torch.frombuffer(pool.take(size), dtype=dtype, count=count)
    if torch.are_deterministic_algorithms_enabled() and getattr(
        torch.utils.deterministic, "fill_uninitialized_memory", True
    ):
        flat.fill_(math.nan if dtype.is_floating_point else torch.iinfo(dtype).max)
    if channels_last:
        batch, channels, *spatial = shape
        return flat.view(batch, *spatial, channels).movedim(-1, 1)
    return flat.view(tuple(shape))


_sharing = threading.local()


@contextlib.contextmanager
def sharing_workspaces() -> Iterator[None]:
    """Whatever is prepared meanwhile, on this thread, shares its workspaces: it must run one after the other."""
    before = getattr(_sharing, "held", None)
    _sharing.held = {} if before is None else before
    try:
        yield
    finally:
        _sharing.held = before


def workspace(name: str, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """At least ``count`` elements, zero when new, for a prepared kernel to keep; see `sharing_workspaces`.

    Args:
        name: of the kernel family: others never see what it leaves there.
        count: elements.
        dtype: their type.
    """
    held: dict[str, torch.Tensor] | None = getattr(_sharing, "held", None)
    if held is None:
        return torch.zeros(count, dtype=dtype)
    if name not in held or held[name].numel() < count:
        held[name] = torch.zeros(count, dtype=dtype)
    return held[name]
