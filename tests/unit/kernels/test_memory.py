"""Blocks are used again, bounded, and safe to view, keep and share."""

from __future__ import annotations

import math

import torch

from convlens.kernels.cpu.memory import Pool, _rounded, empty

MIB = 1 << 20


def test_a_freed_block_is_used_again() -> None:
    first = empty((4, 3, 300, 301))
    address = first.data_ptr()
    view = first[1:].view(-1)
    del first
    assert empty((4, 3, 300, 300)).data_ptr() != address, "a view still holds it"
    del view
    assert empty((4, 3, 300, 301)).data_ptr() == address


def test_strides_and_values() -> None:
    plain, last = empty((2, 8, 256, 257)), empty((2, 8, 256, 257), channels_last=True)
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    plain.fill_(1.0), last.fill_(2.0)
    assert float(plain.sum()) == 2 * 8 * 256 * 257 and float(last.max()) == 2.0
    assert empty((0, 3)).shape == (0, 3)
    volume = empty((2, 8, 16, 64, 65), channels_last=True)
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)


def test_poisoned_under_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert math.isnan(float(empty((MIB,))[12345]))
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_is_kept_is_bounded_oldest_first() -> None:
    own = Pool(limit_bytes=10 * MIB)
    views = [own.take(4 * MIB) for _ in range(4)]
    assert own.kept_bytes == 0
    del views
    assert own.kept_bytes == 8 * MIB
    own.clear()
    assert own.kept_bytes == 0


def test_sizes_round_up_by_an_eighth_at_most() -> None:
    for size in (MIB, 17 * MIB, 33 * MIB + 1, 1000 * MIB + 5):
        assert size <= _rounded(size) <= max(2 * MIB, size * 9 // 8 + 2 * MIB)


def test_sharing_copies() -> None:
    shared = empty((MIB,)).fill_(3.0).share_memory_()
    assert shared.is_shared() and float(shared[7]) == 3.0
