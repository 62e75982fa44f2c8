"""Signals to float32 ``[channels, length]`` and letters to one-hot uint8 ``[letters, length]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convlens.data.pictures import read_bytes
from convlens.data.preprocessing import Array, Preprocessing
from convlens.errors import BadFileError

__all__ = ["DNA", "PROTEIN", "as_float32", "decode_sequence", "decode_signal", "filled", "one_hot"]

DNA = "ACGT"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


def decode_signal(preprocessing: Preprocessing, raw: Any, name: str = "input") -> Array:
    """One signal as float32 ``[channels, length]``.

    Args:
        preprocessing: channels, length and fit.
        raw: array ``[length]`` or ``[channels, length]``; path or bytes of a ``.npy`` or a text of numbers.
        name: what to call it in errors.
    """
    if isinstance(raw, str | Path):
        name = str(raw)
        raw = read_bytes(raw)
    if isinstance(raw, bytes):
        raw = _signal_from_bytes(raw, name)
    values = as_float32(raw)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[0] != preprocessing.channels or not values.shape[1]:
        wanted = f"[{preprocessing.channels}, length]"
        raise BadFileError(f"{name}: expected a signal {wanted}, received shape {values.shape}")
    return fitted_signal(filled(values), preprocessing)


def _signal_from_bytes(data: bytes, name: str) -> Array:
    from convlens.data.arrays import npy_from_bytes

    if data[:6] == b"\x93NUMPY":
        return npy_from_bytes(data, name)
    try:
        rows = [line.replace(",", " ").replace(";", " ").split() for line in data.decode().splitlines()]
        values = np.array([[float(word) for word in row] for row in rows if row], np.float32)
    except (UnicodeDecodeError, ValueError) as error:
        raise BadFileError(f"{name}: is neither a .npy file nor numbers as text ({error})") from None
    return values.T if values.shape[1] < values.shape[0] else values  # one row per moment, or one per channel


def as_float32(values: Any) -> Array:
    """The same numbers in single precision; what is too large for it becomes infinite, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, np.float32)


def filled(values: Array) -> Array:
    """Gaps (NaN) bridged by straight lines, at the ends by the nearest value; ``[..., length]``."""
    missing = ~np.isfinite(values)
    if not missing.any():
        return values
    values = values.copy()
    places = np.arange(values.shape[-1])
    for row, gaps in zip(values.reshape(-1, len(places)), missing.reshape(-1, len(places)), strict=True):
        row[gaps] = np.interp(places[gaps], places[~gaps], row[~gaps]) if not gaps.all() else 0.0
    return values


def fitted_signal(values: Array, preprocessing: Preprocessing) -> Array:
    """``[channels, any]`` to ``[channels, length]`` by the fit: the middle, filled up at the end, or resampled."""
    length, target = values.shape[1], preprocessing.size[0]
    if length == target:
        return values
    if preprocessing.fit == "stretch":
        places = np.linspace(0, length - 1, target)
        return np.stack([np.interp(places, np.arange(length), row) for row in values]).astype(np.float32)
    if length > target:
        start = (length - target) // 2 if preprocessing.fit == "crop" else 0
        return np.ascontiguousarray(values[:, start : start + target])
    out = np.full((values.shape[0], target), preprocessing.pad_value, values.dtype)
    out[:, :length] = values
    return out


def decode_sequence(preprocessing: Preprocessing, raw: Any, name: str = "input") -> Array:
    """Letters as one-hot uint8 ``[letters, length]``; a letter outside the alphabet is an empty column.

    Args:
        preprocessing: alphabet, length and fit (``crop`` takes the middle, others the start).
        raw: the letters, or the path or bytes of a FASTA file with one record or of plain letters.
        name: what to call it in errors.
    """
    if isinstance(raw, str) and not _is_letters(raw):
        raw = Path(raw)
    if isinstance(raw, Path):
        name = str(raw)
        raw = read_bytes(raw)
    if isinstance(raw, bytes):
        try:
            lines = raw.decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise BadFileError(f"{name}: is not a text of letters") from None
        raw = "".join(line.strip() for line in lines if not line.startswith((">", ";")))
    if not isinstance(raw, str) or not raw:
        raise BadFileError(f"{name}: expected letters, received {type(raw).__name__} {raw!r:.40}")
    return one_hot(raw, preprocessing)


def one_hot(letters: str, preprocessing: Preprocessing) -> Array:
    """uint8 ``[letters of the alphabet, length]``; lower case as upper, U (of RNA) as T in DNA."""
    alphabet, target = preprocessing.alphabet or DNA, preprocessing.size[0]
    table = np.full(256, len(alphabet), np.uint8)
    for number, letter in enumerate(alphabet):
        table[ord(letter)] = table[ord(letter.lower())] = number
    if alphabet == DNA:
        table[ord("U")] = table[ord("u")] = alphabet.index("T")
    codes = table[np.frombuffer(letters.encode("latin-1", "replace"), np.uint8)]
    start = max(0, len(codes) - target) // 2 if preprocessing.fit == "crop" else 0
    codes = codes[start : start + target]
    columns = np.zeros((len(alphabet) + 1, target), np.uint8)
    columns[codes, np.arange(len(codes))] = 1
    return columns[:-1]


def _is_letters(text: str) -> bool:
    return text.isalpha() and text.isascii() and not Path(text).exists()
