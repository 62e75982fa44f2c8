"""NumPy files without pickle, and volumes to storage form: float32 ``[channels, depth, height, width]``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from convlens.data.pictures import read_bytes
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.series import as_float32
from convlens.errors import BadFileError, MissingExtraError, PathError

__all__ = ["decode_patch", "decode_volume", "fitted_volume", "load_npy", "npy_from_bytes", "read_volume"]


def load_npy(path: Path, *, mapped: bool = False) -> Array:
    """One ``.npy`` file, mapped when it may be larger than memory; a pickled one is refused."""
    try:
        found: Array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return found
    except FileNotFoundError:
        raise PathError(f"{path}: no such file.") from None
    except PermissionError:
        raise PathError(f"{path}: may not be read (permission denied). Fix: chmod u+r {path}") from None
    except Exception as error:  # a damaged header is parsed as Python text and raises anything
        raise BadFileError(f"{path}: {_npy_reason(error)}") from None


def npy_from_bytes(data: bytes, name: str) -> Array:
    """The array in the bytes of a ``.npy`` file."""
    try:
        found: Array = np.load(io.BytesIO(data), allow_pickle=False)
        return found
    except Exception as error:  # see load_npy
        raise BadFileError(f"{name}: {_npy_reason(error)}") from None


def _npy_reason(error: Exception) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "holds Python objects (pickle), which could run code when loaded; only plain arrays are read"
    return f"is not a whole .npy file ({error})"


def read_volume(path: Path) -> Array:
    """A ``.npy`` or NIfTI file as float32 ``[channels, depth, height, width]``.

    NIfTI keeps x first; the axes are turned round, and a fourth axis (time, contrast) becomes the channels.
    """
    if path.suffix == ".npy":
        values = load_npy(path)
        if values.ndim not in (3, 4):
            raise BadFileError(
                f"{path}: expected a volume [D, H, W] or [C, D, H, W], received shape {values.shape}"
            )
        return as_float32(values if values.ndim == 4 else values[None])
    try:
        import nibabel
        from nibabel.spatialimages import SpatialImage
    except ImportError:
        raise MissingExtraError("nibabel", "volumes", "Reading NIfTI volumes") from None
    try:
        picture = nibabel.load(path)
        if not isinstance(picture, SpatialImage):
            raise BadFileError(f"{path}: is not a volume.")
        values = as_float32(picture.dataobj)
    except FileNotFoundError:
        raise PathError(f"{path}: no such file.") from None
    except BadFileError:
        raise
    except Exception as error:  # damaged files raise anything from gzip, zlib and nibabel
        raise BadFileError(f"{path}: cannot be decoded ({error})") from None
    if values.ndim not in (3, 4):
        raise BadFileError(f"{path}: expected a volume of 3 or 4 axes, received shape {values.shape}")
    return np.ascontiguousarray(values.T if values.ndim == 4 else values.T[None])


def decode_volume(preprocessing: Preprocessing, raw: Any, name: str = "input") -> Array:
    """One volume as float32 ``[channels, depth, height, width]`` from a path or an array."""
    if isinstance(raw, str | Path):
        name = str(raw)
        raw = read_volume(Path(raw))
    elif isinstance(raw, bytes):
        raw = npy_from_bytes(raw, name)
    values = as_float32(raw)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[0] != preprocessing.channels or 0 in values.shape:
        wanted = f"[{preprocessing.channels}, depth, height, width]"
        raise BadFileError(f"{name}: expected a volume {wanted}, received shape {values.shape}")
    return fitted_volume(np.nan_to_num(values, posinf=0.0, neginf=0.0), preprocessing)


def fitted_volume(values: Array, preprocessing: Preprocessing) -> Array:
    """``[C, any, any, any]`` to the size asked by the fit; resampled along the three axes in one pass."""
    target, sides = preprocessing.size, values.shape[1:]
    if sides == target:
        return values
    import torch
    from torch.nn import functional

    if preprocessing.fit == "crop":
        ratio = max(want / have for want, have in zip(target, sides, strict=True))
        kept = [min(have, max(1, round(want / ratio))) for want, have in zip(target, sides, strict=True)]
        starts = [(have - keep) // 2 for have, keep in zip(sides, kept, strict=True)]
        for axis, (start, keep) in enumerate(zip(starts, kept, strict=True), start=1):
            values = values.take(range(start, start + keep), axis)
        inner = target
    elif preprocessing.fit == "pad":
        ratio = min(want / have for want, have in zip(target, sides, strict=True))
        inner = tuple(max(1, round(have * ratio)) for have in sides)
    else:
        inner = target
    tensor = torch.from_numpy(np.ascontiguousarray(values))[None]
    mode = "nearest" if preprocessing.resample == "nearest" else "trilinear"
    shrinks = any(want < have / 2 for want, have in zip(inner, values.shape[1:], strict=True))
    if shrinks and mode == "trilinear":  # averaging first: interpolation alone would skip voxels
        scaled = functional.adaptive_avg_pool3d(tensor, (inner[0], inner[1], inner[2]))[0].numpy()
    else:
        scaled = functional.interpolate(tensor, size=inner, mode=mode)[0].numpy()
    out = np.full((values.shape[0], *target), preprocessing.pad_value, np.float32)
    place = tuple(
        slice((want - have) // 2, (want - have) // 2 + have) for want, have in zip(target, inner, strict=True)
    )
    out[(slice(None), *place)] = scaled
    return out


def decode_patch(preprocessing: Preprocessing, raw: Any, name: str = "input") -> Array:
    """One spectrum or patch of a hyperspectral scene as float32 ``[bands, side, side]``.

    Args:
        preprocessing: bands and side.
        raw: array ``[bands]``, ``[side, side, bands]`` or ``[bands, side, side]``, or a ``.npy`` of one.
        name: what to call it in errors.
    """
    if isinstance(raw, str | Path):
        name = str(raw)
        raw = read_bytes(raw)
    values = as_float32(npy_from_bytes(raw, name) if isinstance(raw, bytes) else raw)
    wanted = preprocessing.shape
    if values.ndim == 1:
        values = values[:, None, None]
    if values.shape != wanted and values.ndim == 3:
        values = values.transpose(2, 0, 1)
    if values.shape != wanted:
        raise BadFileError(
            f"{name}: expected a patch [bands, side, side] = {list(wanted)}, received {list(values.shape)}"
        )
    return np.ascontiguousarray(values)
