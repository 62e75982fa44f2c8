"""Random numbers by counting: each is a hash of seed, epoch, sample and purpose.

So a sample is changed the same way whatever batch, worker or machine it is met in, and a resumed run repeats and
skips nothing. The hash is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from convlens.data.preprocessing import Array

__all__ = ["Draws"]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _scramble(state: Array) -> Array:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = state ^ (state >> np.uint64(31))
    return mixed


@functools.cache
def _purpose_key(purpose: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little"))


class Draws:
    """Random numbers of the samples of one batch in one epoch.

    Args:
        seed: of the run.
        epoch: number of the epoch.
        samples: int64 ``[N]``, numbers of the samples.
    """

    def __init__(self, seed: int, epoch: int, samples: Array) -> None:
        run = _scramble(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + _STEP)
        run = _scramble(run + np.array([epoch], np.uint64) * _STEP)
        self._keys = _scramble(run + samples.astype(np.uint64) * _STEP)

    def bits(self, purpose: str, each: int = 1) -> Array:
        """uint64 ``[N, each]``."""
        counters = np.arange(1, each + 1, dtype=np.uint64) * _STEP
        return _scramble((self._keys ^ _purpose_key(purpose))[:, None] + counters)

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> Array:
        """float64 ``[N]`` in ``[low, high)``."""
        unit = (self.bits(purpose)[:, 0] >> np.uint64(11)) * 2.0**-53
        scaled: Array = low + (high - low) * unit
        return scaled

    def whole(self, purpose: str, low: int, high: int) -> Array:
        """int64 ``[N]`` from `low` to `high`, both included."""
        return np.floor(self.uniform(purpose, low, high + 1)).astype(np.int64)

    def chance(self, purpose: str, probability: float) -> Array:
        """Bool ``[N]``."""
        hit: Array = self.uniform(purpose) < probability
        return hit

    def uniforms(self, purpose: str, each: int) -> Array:
        """float32 ``[N, each]`` in ``[0, 1)``."""
        return ((self.bits(purpose, each) >> np.uint64(40)) * 2.0**-24).astype(np.float32)

    def normals(self, purpose: str, each: int) -> Array:
        """float32 ``[N, each]`` of mean 0 and deviation 1, by Box and Muller (1958)."""
        radius = np.sqrt(-2 * np.log(1 - self.uniforms(purpose + " radius", each)))
        values: Array = radius * np.cos(np.float32(2 * np.pi) * self.uniforms(purpose + " angle", each))
        return values
