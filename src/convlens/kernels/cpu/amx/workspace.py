"""Memory that tile kernels reuse between calls: fresh memory costs more in page faults than packing takes."""

from __future__ import annotations

import threading

import torch

__all__ = ["reused"]

_held = threading.local()


def reused(name: str, elements: int) -> torch.Tensor:
    """A bfloat16 array of at least ``elements``, owned by this thread, zero when new and then as last left."""
    found: torch.Tensor | None = getattr(_held, name, None)
    if found is None or found.numel() < elements:
        found = torch.zeros(elements, dtype=torch.bfloat16)
        setattr(_held, name, found)
    return found
