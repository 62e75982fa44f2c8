"""Raw input of any kind to its storage form: the one way in for training, evaluation, prediction and serving."""

from __future__ import annotations

from typing import Any

from convlens.data.preprocessing import Array, Preprocessing

__all__ = ["decode"]


def decode(preprocessing: Preprocessing, raw: Any) -> Array:
    """One raw input as ``[channels, *size]`` of ``preprocessing.dtype``; see `Preprocessing.decode`."""
    from convlens.data.arrays import decode_patch, decode_volume
    from convlens.data.pictures import decode_picture
    from convlens.data.series import decode_sequence, decode_signal

    decoders = {
        "image": decode_picture,
        "signal": decode_signal,
        "sequence": decode_sequence,
        "volume": decode_volume,
        "spectral": decode_patch,
    }
    return decoders[preprocessing.kind](preprocessing, raw)
