"""Speed against named peers: one process, interleaved, medians and quartiles, every losing row kept."""

from __future__ import annotations
