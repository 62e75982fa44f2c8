"""Parts of a large TIFF, so that it need not be decoded as a whole: each of its strips or tiles is a picture.

A TIFF is cut into strips or tiles, each compressed by itself. Pillow decodes all of them at once; so one of them
is given to it as a small TIFF of its own, with the same tags, and the decoder is the one that reads every other
picture here. What was decoded last is kept, as much as rows of tiles beside each other need.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

from PIL import Image, TiffImagePlugin

from convlens.data.pictures import upright_picture
from convlens.data.preprocessing import Preprocessing
from convlens.errors import BadFileError

__all__ = ["ScaledRegions", "TiffRegions"]

Box = tuple[int, int, int, int]
Ifd = TiffImagePlugin.ImageFileDirectory_v2

_LARGEST_PART = 64 << 20  # decoded bytes of a strip or tile: of a larger one nothing is gained
_KEPT = 64 << 20  # decoded bytes kept at least
_CUT = 1 << 20  # bytes of a strip where we choose them
_BAND_ROWS = 512  # of the source, resized at once at least
_NO_COMPRESSION, _OLD_JPEG = 1, 6
_WIDTH, _LENGTH, _COMPRESSION, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES = (
    256,
    257,
    259,
    273,
    277,
    278,
    279,
)
_PLANAR, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTES, _BITS = 284, 322, 323, 324, 325, 258
_COPIED = (_BITS, _COMPRESSION, 262, 266, _SAMPLES, _PLANAR, 292, 293, 317, 320, 338, 339, 347, 529, 530, 532)
"""Tags that say how pixels are written: the same for a part as for the whole."""


class TiffRegions:
    """A TIFF of which boxes are decoded; `crop` and `resize` are those of Pillow's pictures.

    Args:
        path: the file.
        preprocessing: says which colours.
        opened: the file as Pillow opened it, not decoded.

    Attributes:
        size: ``(width, height)`` in pixels.

    Raises:
        ValueError: why its parts cannot be had one by one; then the whole picture must be decoded.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing, opened: Image.Image) -> None:
        if not isinstance(opened, TiffImagePlugin.TiffImageFile):
            raise ValueError("not a TIFF")
        tags = opened.tag_v2
        if opened.mode in ("I", "F"):
            raise ValueError("its brightness is judged by the whole picture")
        if tags.get(_PLANAR, 1) != 1 or tags.get(274, 1) != 1 or tags.get(_COMPRESSION, 1) == _OLD_JPEG:
            raise ValueError("its planes are apart, it lies on its side, or its JPEG is of the old kind")
        self.path, self.preprocessing, self.size = path, preprocessing, opened.size
        self._tags = tags
        self._tiled = _TILE_OFFSETS in tags
        self._part_size, self._places = _strips(tags, opened.size) if not self._tiled else _tiles(tags)
        self._across = -(-self.size[0] // self._part_size[0])
        down = -(-self.size[1] // self._part_size[1])
        channels = 1 if preprocessing.channels == 1 else 3
        decoded = self._part_size[0] * self._part_size[1] * max(channels, _sample_bytes(tags))
        if decoded > _LARGEST_PART or len(self._places) != self._across * down:
            raise ValueError("its parts are too large, or not as many as they should be")
        self._row_bytes = self.size[0] * channels
        self._kept: OrderedDict[int, Image.Image] = OrderedDict()
        self._room = _KEPT
        self._mode = "L" if channels == 1 else "RGB"

    def crop(self, box: Box) -> Image.Image:
        """The pixels of ``(left, top, right, bottom)``.

        Raises:
            BadFileError: a part of it cannot be decoded.
        """
        left, top, right, bottom = box
        width, height = self._part_size
        # tiles beside each other share parts: those of a row of tiles are kept
        self._room = max(self._room, 2 * (bottom - top + height) * self._row_bytes)
        found = Image.new(self._mode, (right - left, bottom - top))
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                part = self._part(row * self._across + column)
                found.paste(part, (column * width - left, row * height - top))
        return found

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> ScaledRegions:
        """The picture at another size, of which boxes are made when they are asked for."""
        return ScaledRegions(self, size, resample)

    def _part(self, number: int) -> Image.Image:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        try:
            file = self._as_file(number)
        except (BadFileError, MemoryError, OSError):
            raise
        except Exception as error:  # tags of a damaged file hold anything
            raise BadFileError(f"{self.path}: cannot be decoded ({error}).") from None
        part = upright_picture(self.preprocessing, file, f"{self.path}: part {number}")
        self._kept[number] = part
        held = len(self._kept) * self._part_size[0] * self._part_size[1] * len(self._mode)
        while held > self._room and len(self._kept) > 1:
            self._kept.popitem(last=False)
            held -= self._part_size[0] * self._part_size[1] * len(self._mode)
        return part

    def _as_file(self, number: int) -> bytes:
        offset, count = self._places[number]
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(count)
        if len(data) < count:
            raise BadFileError(f"{self.path}: is truncated: part {number} lies beyond its end.")
        width, height = self._part_size
        if not self._tiled:
            height = min(height, self.size[1] - number * height)
        little = self._tags.prefix == b"II"
        ifd = Ifd(b"II*\0\0\0\0\0" if little else b"MM\0*\0\0\0\0")
        for tag in _COPIED:
            if tag in self._tags:
                ifd.tagtype[tag] = self._tags.tagtype[tag]
                ifd[tag] = self._tags[tag]
        ifd[_WIDTH], ifd[_LENGTH], ifd[_ROWS_PER_STRIP] = width, height, height
        ifd[_STRIP_OFFSETS], ifd[_STRIP_BYTES] = 0, len(data)  # Pillow puts in where the tags end
        written = io.BytesIO()
        ifd.save(written)
        written.write(data)
        return written.getvalue()


class ScaledRegions:
    """A `TiffRegions` at another size; the rows asked for last are kept, over the whole width.

    Pixels are those of the whole picture resized, but for a last bit here and there (Pillow's boxes have 32 bits).
    """

    def __init__(self, source: TiffRegions, size: tuple[int, int], resample: Image.Resampling) -> None:
        self.source, self.size, self.resample = source, size, resample
        self._rows = (0, 0)
        self._band: Image.Image | None = None

    def crop(self, box: Box) -> Image.Image:
        """The pixels of ``(left, top, right, bottom)``; errors as `TiffRegions.crop`."""
        left, top, right, bottom = box
        if self._band is None or self._rows != (top, bottom):
            self._band, self._rows = self._made(top, bottom), (top, bottom)
        return self._band.crop((left, 0, right, bottom - top))

    def _made(self, top: int, bottom: int) -> Image.Image:
        """Rows ``top`` to ``bottom``: each is made of the source's rows that the filter reaches, and no others."""
        band = Image.new(self.source._mode, (self.size[0], bottom - top))
        ratio = self.source.size[1] / self.size[1]
        reach = math.ceil(2 * max(1.0, ratio)) + 2  # pixels: Pillow's widest filter here is two, bicubic
        step = max(1, int(_BAND_ROWS / ratio))
        for begin in range(top, bottom, step):
            end = min(bottom, begin + step)
            first = max(0, math.floor(begin * ratio) - reach)
            last = min(self.source.size[1], math.ceil(end * ratio) + reach)
            rows = self.source.crop((0, first, self.source.size[0], last))
            exact = (0.0, begin * ratio - first, float(rows.width), end * ratio - first)
            band.paste(rows.resize((self.size[0], end - begin), self.resample, box=exact), (0, begin - top))
        return band


Places = list[tuple[int, int]]


def _sample_bytes(tags: Any) -> int:
    bits = tags.get(_BITS, (1,))
    deepest = max(bits) if isinstance(bits, tuple) else bits
    return -(-int(deepest) // 8) * int(tags.get(_SAMPLES, 1))


def _tiles(tags: Any) -> tuple[tuple[int, int], Places]:
    """Size of a tile, and offset and bytes of each, row by row."""
    places = list(zip(tags[_TILE_OFFSETS], tags[_TILE_BYTES], strict=True))
    return (int(tags[_TILE_WIDTH]), int(tags[_TILE_LENGTH])), places


def _strips(tags: Any, size: tuple[int, int]) -> tuple[tuple[int, int], Places]:
    """Size of a strip, and offset and bytes of each; what is not compressed is cut as we like."""
    offsets, counts = tuple(tags[_STRIP_OFFSETS]), tuple(tags[_STRIP_BYTES])
    width, height = size
    rows = min(height, int(tags.get(_ROWS_PER_STRIP, height)))
    bits = tags.get(_BITS, (1,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    row_bits = width * (sum(bits) if len(bits) > 1 else bits[0] * int(tags.get(_SAMPLES, 1)))
    if int(tags.get(_COMPRESSION, 1)) == _NO_COMPRESSION and len(offsets) == 1 and row_bits % 8 == 0:
        row_bytes = row_bits // 8
        rows = max(1, _CUT // row_bytes)
        starts = range(0, height, rows)
        return (width, rows), [(offsets[0] + s * row_bytes, min(rows, height - s) * row_bytes) for s in starts]
    return (width, max(1, rows)), list(zip(offsets, counts, strict=True))
