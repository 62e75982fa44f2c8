"""One picture file to uint8 ``[channels, height, width]``: any mode, any orientation, any size."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from convlens.data.preprocessing import Array, Preprocessing
from convlens.errors import BadFileError, PathError

__all__ = ["PictureHeader", "decode_picture", "quiet_pillow", "read_bytes", "read_header", "upright_picture"]

MAX_PIXELS = 178_956_970  # Pillow's own limit for an error: a small file must not ask for gigabytes
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class PictureHeader:
    """What a picture file says before it is decoded; width and height as it is to be seen (upright)."""

    width: int
    height: int
    grey: bool


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; `PathError` when it is not there or may not be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise PathError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise PathError(f"{path}: is a folder, expected a file.") from None
    except PermissionError:
        raise PathError(f"{path}: may not be read (permission denied). Fix: chmod u+r {path}") from None


def read_header(data: bytes, name: str) -> PictureHeader:
    """Size and colour of a picture without decoding it; raises `BadFileError` as `decode_picture` would."""
    try:
        with _opened(data, name) as picture:
            width, height = picture.size
            if _orientation(picture) in _SIDEWAYS:
                width, height = height, width
            return PictureHeader(width, height, picture.mode in _GREY_MODES)
    except BadFileError:
        raise
    except Exception as error:  # decoders of damaged files raise anything: struct.error, SyntaxError, IndexError …
        raise BadFileError(f"{name}: {_reason(data, error)}") from None


def decode_picture(preprocessing: Preprocessing, raw: Any, name: str | None = None) -> Array:
    """One picture as uint8 ``[channels, height, width]``.

    JPEGs are decoded at the smallest of the sizes 1/1, 1/2, 1/4, 1/8 that still covers the target (libjpeg's
    scaled inverse transform). Transparent parts show `background`; 16-bit samples keep their upper 8 bits.

    Args:
        preprocessing: target size, channels, fit and resampling.
        raw: path, bytes, ``PIL.Image``, or array ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` (uint8, uint16, bool,
            or float in 0–1).
        name: what to call it in errors; default the path.
    """
    return _fitted(preprocessing, upright_picture(preprocessing, raw, name))


def upright_picture(preprocessing: Preprocessing, raw: Any, name: str | None = None) -> Image.Image:
    """A picture as it is to be seen, of any size: turned upright, ``L`` or ``RGB`` as the net takes it.

    This is everything that happens outside an exported file; arguments and errors as `decode_picture`.
    """
    if isinstance(raw, str | Path):
        name = name or str(raw)
        raw = read_bytes(raw)
    name = name or "input"
    mode = "L" if preprocessing.channels == 1 else "RGB"
    if isinstance(raw, np.ndarray):
        return _plain(_from_array(raw, name), mode, preprocessing.background)
    if isinstance(raw, Image.Image):
        return _turned(_plain(raw, mode, preprocessing.background), _orientation(raw))
    try:
        with _opened(raw, name) as picture:
            turn = _orientation(picture)
            picture.draft(mode, _needed(preprocessing, picture.size, turn))
            return _turned(_plain(picture, mode, preprocessing.background), turn)
    except BadFileError:
        raise
    except Exception as error:  # see read_header
        raise BadFileError(f"{name}: {_reason(raw, error)}") from None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's remarks about odd files off the terminal; what matters comes as an error.

    Python's warning filters belong to the whole process: enter this in one thread, around the workers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _opened(data: bytes, name: str) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadFileError(
            f"{name}: {width}×{height} pixels is over the limit of {MAX_PIXELS:,} (decompression bomb?)"
        )
    return picture


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        start = data[:64]
        looks = "text" if start.isascii() and b"\0" not in start else "bytes of no picture format"
        return f"is not a picture: it holds {looks}, beginning {start[:16]!r}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"is over the pixel limit of {MAX_PIXELS:,} (decompression bomb?)"
    text = str(error) or type(error).__name__
    return f"cannot be decoded ({text})"


def _orientation(picture: Image.Image) -> int:
    if picture.format == "JPEG" and "exif" not in picture.info:
        return 1  # asking would parse anyway, at a third of the time of a small picture
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block does not make the picture unreadable
        return 1


def _target(preprocessing: Preprocessing, turn: int) -> tuple[int, int]:
    """Width and height to make before the picture is turned upright."""
    height, width = preprocessing.size
    return (height, width) if turn in _SIDEWAYS else (width, height)


def _needed(preprocessing: Preprocessing, size: tuple[int, int], turn: int) -> tuple[int, int]:
    """Smallest decoded size from which the target can be made without enlarging."""
    width, height = _target(preprocessing, turn)
    if preprocessing.fit == "stretch":
        return width, height
    ratios = (width / size[0], height / size[1])
    ratio = max(ratios) if preprocessing.fit == "crop" else min(ratios)
    return math.ceil(size[0] * ratio), math.ceil(size[1] * ratio)


def _fitted(preprocessing: Preprocessing, picture: Image.Image) -> Array:
    """An upright picture at the net's size, uint8 ``[channels, height, width]``."""
    height, width = preprocessing.size
    if picture.size == (width, height):
        pass  # as most are that a server is sent
    elif preprocessing.fit == "crop":
        picture = picture.crop(_centre_box(picture.size, (width, height)))
    elif preprocessing.fit == "pad":
        inner = _inner_size(picture.size, (width, height))
        colour = int(preprocessing.pad_value)
        framed = Image.new(picture.mode, (width, height), colour if picture.mode == "L" else (colour,) * 3)
        framed.paste(_resized(preprocessing, picture, inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        picture = framed
    pixels = np.asarray(_resized(preprocessing, picture, (width, height)))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized(preprocessing: Preprocessing, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Across first, then down: which goes first differs between Pillow's versions, and with it the rounding."""
    resample = _RESAMPLE[preprocessing.resample]
    if picture.width != size[0]:
        picture = picture.resize((size[0], picture.height), resample)
    return picture if picture.height == size[1] else picture.resize(size, resample)


def _centre_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred rectangle of the target's shape, in whole pixels."""
    width = max(1, min(size[0], (2 * size[1] * target[0] + target[1]) // (2 * target[1])))
    height = max(1, min(size[1], (2 * size[0] * target[1] + target[0]) // (2 * target[0])))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _inner_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the picture's shape that fits into the target, in whole pixels."""
    width = max(1, min(target[0], (2 * size[0] * target[1] + size[1]) // (2 * size[1])))
    height = max(1, min(target[1], (2 * size[1] * target[0] + size[0]) // (2 * size[0])))
    return width, height


def _turned(picture: Image.Image, turn: int) -> Image.Image:
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def _plain(picture: Image.Image, mode: str, background: int) -> Image.Image:
    """Any Pillow mode as ``L`` or ``RGB`` with 8 bits a sample."""
    if picture.mode == mode:
        picture.load()
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bit(picture)
    if picture.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        under = Image.new("RGBA", seen.size, (background, background, background, 255))
        picture = Image.alpha_composite(under, seen)
    return picture if picture.mode == mode else picture.convert(mode)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Deep samples: of 16 bits the upper 8; of 32-bit and float ones by the smallest usual range."""
    values = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    top = values.max(initial=0.0)
    full = 1.0 if top <= 1 and picture.mode == "F" else next((r for r in (255.0, 65535.0) if top <= r), float(top))
    return Image.fromarray(np.clip(values * (255.0 / full), 0, 255).astype(np.uint8))


def _from_array(values: Array, name: str) -> Image.Image:
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in values.shape:
        raise BadFileError(
            f"{name}: expected an array [H, W], [H, W, C] or [C, H, W] of 1 or 3 channels, received {values.shape}"
        )
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise BadFileError(
                f"{name}: expected a float picture in 0–1, received {values.min():g} to {values.max():g}"
            )
        values = np.round(values * 255).astype(np.uint8)
    elif values.dtype.kind in "iu" and values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            raise BadFileError(
                f"{name}: expected whole numbers in 0–255, received {values.min()} to {values.max()}"
            )
        values = values.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))
