"""Records to JSON values. Arrays travel as bytes with their range, pictures as PNG."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["plain", "quantised", "thumbnail"]

Array = npt.NDArray[Any]


def plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy values as JSON values; NaN and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def quantised(values: Array) -> dict[str, Any]:
    """An array for drawing: 8 bits a value between ``low`` and ``high``, base64, with its shape.

    Exact numbers, where a reader asks for them, travel as numbers (`plain`).
    """
    floats = np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0.0, neginf=0.0)
    low, high = (float(floats.min()), float(floats.max())) if floats.size else (0.0, 0.0)
    span = high - low
    levels = (
        np.zeros(floats.shape, np.uint8) if span == 0 else np.rint((floats - low) / span * 255).astype(np.uint8)
    )
    return {
        "shape": list(floats.shape),
        "low": low,
        "high": high,
        "data": base64.b64encode(levels.tobytes()).decode("ascii"),
    }


def thumbnail(
    stored: Array, kind: str, largest: int = 256, planes: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """One sample in storage form ``[channels, *size]`` as something a page can show.

    Pictures become PNG data URIs, volumes one slice, signals the values of each channel; sequences (one-hot) the
    most probable letter's row; of more than three bands, one in grey or three as false colours.

    Args:
        stored: the sample.
        kind: as `Preprocessing` has it.
        largest: longer side in pixels.
        planes: the slice of a volume, or one or three bands; default the middle, or one band from each third.
    """
    values = np.asarray(stored)
    if kind in ("signal", "sequence"):
        return {"kind": "curve", "values": plain(values.astype(np.float32))}
    choice: dict[str, Any] = {}
    if values.ndim == 4:
        chosen = min(max(planes[0], 0), values.shape[1] - 1) if planes else values.shape[1] // 2
        choice = {"planes": {"kind": "slice", "count": values.shape[1], "shown": [chosen]}}
        values = values[:, chosen]
    if len(values) not in (1, 3):
        bands = len(values)
        thirds = (0,) if bands < 3 else (bands // 6, bands // 2, bands - 1 - bands // 6)
        shown = [min(max(band, 0), bands - 1) for band in (planes if planes and not choice else thirds)]
        values = values[shown if len(shown) == 3 else shown[:1]]
        choice = choice or {"planes": {"kind": "band", "count": bands, "shown": shown}}
    if values.dtype != np.uint8:
        # each band by itself: bands of one spectrum differ by orders of magnitude
        axes = (1, 2) if choice else (0, 1, 2)
        low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
        span = np.where(high > low, high - low, 1.0)
        values = ((values - low) / span * 255).astype(np.uint8)
    picture = Image.fromarray(np.moveaxis(values, 0, -1) if len(values) == 3 else values[0])
    picture.thumbnail((largest, largest))
    written = io.BytesIO()
    picture.save(written, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")
    return {"kind": "picture", "uri": uri, "width": picture.width, "height": picture.height, **choice}
