"""A classifier of small pictures looks over a big one (LECTURES A6): places, boxes, bounded memory.

The net is made fully convolutional, so that it answers at every place at once. The picture goes through it in
tiles. A tile begins at a multiple of the net's stride, and of its answers only those are kept whose receptive
field lies inside the tile or ends, as the picture does, at the picture's edge: so each kept answer has seen
exactly what it would have seen in one pass over the whole picture, and no seam can be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from convlens.data.pictures import quiet_pillow, upright_picture
from convlens.data.progress import Track, silent
from convlens.data.tiff_regions import ScaledRegions, TiffRegions
from convlens.errors import ArgumentError, BadFileError, ConvlensError, PathError, UnsupportedError
from convlens.explain.places import pin_kernels
from convlens.layers import fully_convolutional
from convlens.modelfile import Predictor
from convlens.models.fields import Axis, Field
from convlens.models.summary import output_field

__all__ = ["MAX_PIXELS", "Detection", "PlaceMap", "Scan", "Scanner", "open_big_picture", "separate", "tile_spans"]

MAX_PIXELS = 500_000_000
"""Pixels of the largest picture that is decoded unless told otherwise: 2 GB as RGB in Pillow."""
BACKGROUND = "background"
"""A class of this name is not looked for unless it is asked for."""
BigPicture = Image.Image | TiffRegions
"""What is looked over: decoded, or decoded box by box."""
_CANDIDATES = 20_000
_WHOLE_PIXELS = 1 << 25  # pictures up to here are decoded as a whole
_AT_ONCE = 1 << 20  # places compared with the threshold at once


@dataclass(frozen=True, slots=True)
class Detection:
    """One thing found.

    Attributes:
        label: its class.
        probability: 0–1.
        box: ``(left, top, right, bottom)`` in pixels of the picture, right and bottom exclusive.
        scale: size at which it was found, relative to the picture.
    """

    label: str
    probability: float
    box: tuple[float, float, float, float]
    scale: float


@dataclass(frozen=True, slots=True)
class PlaceMap:
    """The answers at one scale; place ``(row, column)`` looks at a window that begins at ``stride`` times it.

    Attributes:
        scale: size relative to the picture.
        stride: pixels of the scaled picture between neighbouring places, ``(down, across)``.
        window: pixels of the scaled picture that one answer is about, ``(height, width)``.
        probability: float32 ``[rows, columns]``: of the most probable wanted class.
        label: int32 ``[rows, columns]``: number of that class.
        tiles: how many the picture was cut into.
    """

    scale: float
    stride: tuple[int, int]
    window: tuple[int, int]
    probability: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    tiles: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in a picture of ``size`` (width, height): detections, most probable first, and the maps."""

    size: tuple[int, int]
    detections: list[Detection]
    maps: list[PlaceMap]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, without the maps."""
        scales = [
            {"scale": m.scale, "places": m.probability.size, "tiles": m.tiles, "stride": list(m.stride)}
            for m in self.maps
        ]
        found = [asdict(detection) for detection in self.detections]
        return {"width": self.size[0], "height": self.size[1], "scales": scales, "detections": found}

    def heat(self, longest: int = 2048) -> npt.NDArray[np.float32]:
        """Largest probability over the scales, float32 0–1 ``[height, width]``, at most ``longest`` a side.

        A place is drawn in the middle of its window, as wide as its stride.
        """
        ratio = min(1.0, longest / max(self.size))
        width, height = (max(1, round(ratio * n)) for n in self.size)
        heat = np.zeros((height, width), np.float32)
        for places in self.maps:
            rows, columns = places.probability.shape
            top, left = (
                ratio / places.scale * (w - s) / 2 for w, s in zip(places.window, places.stride, strict=True)
            )
            down, across = (ratio / places.scale * s for s in places.stride)
            row = np.floor((np.arange(height) + 0.5 - top) / down).astype(np.int64)
            column = np.floor((np.arange(width) + 0.5 - left) / across).astype(np.int64)
            seen_rows, seen_columns = (row >= 0) & (row < rows), (column >= 0) & (column < columns)
            part = np.ix_(seen_rows, seen_columns)
            heat[part] = np.maximum(heat[part], places.probability[np.ix_(row[seen_rows], column[seen_columns])])
        return heat


class Scanner:
    """A trained image classifier, ready to look over big pictures.

    Args:
        predictor: the trained model.
        tile: side of a tile in pixels; the largest part of the picture that is computed at once. Raised to what
            one answer needs.

    Attributes:
        window: ``(height, width)`` that one answer is about: the size the net was trained with.
        field: what one answer sees, padding included.

    Raises:
        ArgumentError: not a model of pictures.
        UnsupportedError: its head has no convolutional form, or each of its answers sees the whole picture.
    """

    def __init__(self, predictor: Predictor, tile: int = 768) -> None:
        form = predictor.preprocessing
        if form.kind != "image" or form.dtype != "uint8":
            raise ArgumentError("model", "a classifier of pictures", f"one of kind {form.kind}, {form.dtype}")
        if tile < 1:
            raise ArgumentError("tile", "at least 1 pixel", tile)
        self.predictor = predictor
        self.tile = tile
        self.window = (form.size[0], form.size[1])
        self.net = fully_convolutional(predictor.model, form.shape).eval()
        field = _finite_field(self.net, (form.channels, *(2 * n + 64 for n in form.size)))
        if field is None:
            raise UnsupportedError(
                "model",
                "a net whose answers each see a part of the picture",
                "one that looks at the whole picture (squeeze-and-excitation, attention or circular padding)",
                "train a net without it, such as convnet-s or resnet20",
            )
        self.field = field
        self._pinned: dict[str, str] | None = None

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel of each convolution, the same for all tiles; chosen when it is first asked for."""
        if self._pinned is None:
            side = max(self.tile, *(axis.start + axis.size + 2 * axis.stride for axis in self.field.axes))
            self._pinned = pin_kernels(self.net, (self.predictor.preprocessing.channels, side, side))
        return self._pinned

    def scan(
        self,
        picture: BigPicture,
        scales: Sequence[float] = (1.0,),
        labels: Sequence[str] = (),
        threshold: float = 0.9,
        overlap: float = 0.2,
        track: Track = silent,
    ) -> Scan:
        """Look over ``picture``.

        Args:
            picture: upright, ``L`` or ``RGB`` as the net takes it; see `open_big_picture`.
            scales: sizes to look at, relative to the picture; things larger than the window need less than 1.
            labels: classes to look for; all but ``background`` when empty.
            threshold: lowest probability of a detection, 0–1.
            overlap: of two boxes whose intersection over union is larger, the more probable one stays.
            track: told the progress, tile by tile.

        Raises:
            ArgumentError: an unknown label, an impossible setting, or a picture smaller than the window.
        """
        wanted = self._wanted(labels)
        _ = self.kernels
        for name, value in (("threshold", threshold), ("overlap", overlap)):
            if not 0 <= value <= 1:
                raise ArgumentError(name, "0 to 1", value)
        maps = [self._places(picture, scale, wanted, track) for scale in self._fitting(picture.size, scales)]
        boxes = [found for places in maps for found in self._detections(places, threshold)]
        return Scan(picture.size, separate(boxes, overlap), maps)

    @torch.inference_mode()
    def probabilities(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """Probabilities in one pass, float32 ``[classes, rows, columns]``."""
        _ = self.kernels
        pixels = np.array(picture)
        stored = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        device = next(self.net.parameters()).device
        logits = self.net(
            self.predictor.preprocessing.normalise(torch.from_numpy(stored)[None].to(device))
        ).float()
        answers = logits.sigmoid() if self.predictor.card.multilabel else logits.softmax(dim=1)
        found: npt.NDArray[np.float32] = answers[0].cpu().numpy()
        return found

    def spans(self, size: tuple[int, int]) -> tuple[list[Span], list[Span]]:
        """The tiles of a picture of ``size`` (width, height): down, and across."""
        if max(size) <= self.tile:
            return [Span(0, size[1], 0, None)], [Span(0, size[0], 0, None)]
        down, across = self.field.axes
        return tile_spans(size[1], self.tile, down), tile_spans(size[0], self.tile, across)

    def _places(self, picture: BigPicture, scale: float, wanted: list[int], track: Track) -> PlaceMap:
        scaled: BigPicture | ScaledRegions = picture
        if scale != 1:
            scaled = picture.resize(_scaled(picture.size, scale), Image.Resampling.BILINEAR)
        down, across = self.spans(scaled.size)
        probability, label = [], []
        with track(len(down) * len(across), f"scale {scale:g}") as step:
            for row in down:
                strip = []
                for column in across:
                    tile = scaled.crop((column.begin, row.begin, column.end, row.end))
                    answers = self.probabilities(tile)[:, row.kept, column.kept]
                    best = answers[wanted].argmax(axis=0)
                    strip.append((answers[wanted].max(axis=0), np.asarray(wanted, np.int32)[best]))
                    step(1)
                probability.append(np.concatenate([p for p, _ in strip], axis=1))
                label.append(np.concatenate([number for _, number in strip], axis=1))
        stride = self.field.stride
        return PlaceMap(
            scale,
            (stride[0], stride[1]),
            self.window,
            _stacked(probability),
            _stacked(label),
            len(down) * len(across),
        )

    def _detections(self, places: PlaceMap, threshold: float) -> list[Detection]:
        """The most probable places from ``threshold`` up, each a box."""
        flat, width = places.probability.reshape(-1), places.probability.shape[1]
        best = np.empty(0, np.int64)
        for begin in range(0, flat.size, _AT_ONCE):
            more = begin + np.flatnonzero(flat[begin : begin + _AT_ONCE] >= threshold)
            if more.size:
                best = np.concatenate([best, more])
                # a bound on time and memory when nearly every place is over the threshold
                best = best[np.argsort(-flat[best], kind="stable")[:_CANDIDATES]]
        found = []
        for place in best.tolist():
            (row, column), value = divmod(place, width), flat[place]
            top, left = row * places.stride[0], column * places.stride[1]
            box = (left, top, left + places.window[1], top + places.window[0])
            name = self.predictor.class_names[int(places.label[row, column])]
            in_picture = (
                box[0] / places.scale,
                box[1] / places.scale,
                box[2] / places.scale,
                box[3] / places.scale,
            )
            found.append(Detection(name, float(value), in_picture, places.scale))
        return found

    def _fitting(self, size: tuple[int, int], scales: Sequence[float]) -> list[float]:
        """The scales at which the picture holds at least one window."""
        if not scales or not all(0 < scale <= 8 for scale in scales):
            raise ArgumentError("scales", "numbers over 0, up to 8", tuple(scales))
        fitting = []
        for scale in dict.fromkeys(scales):
            width, height = _scaled(size, scale)
            if width >= self.window[1] and height >= self.window[0]:
                fitting.append(scale)
        if not fitting:
            raise ArgumentError(
                "picture",
                f"at least {self.window[1]}×{self.window[0]} pixels at one of the scales, as the net was trained",
                f"{size[0]}×{size[1]} pixels at scales {', '.join(f'{scale:g}' for scale in scales)}",
            )
        return fitting

    def _wanted(self, labels: Sequence[str]) -> list[int]:
        names = self.predictor.class_names
        unknown = [label for label in labels if label not in names]
        if unknown:
            raise ArgumentError("label", f"one of {', '.join(names)}", unknown[0])
        return [n for n, name in enumerate(names) if (name in labels if labels else name != BACKGROUND)] or [0]


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis: pixels ``begin`` to ``end``, and which of its places are kept."""

    begin: int
    end: int
    first: int
    stop: int | None

    @property
    def kept(self) -> slice:
        """Its places that are kept."""
        return slice(self.first, self.stop)


def tile_spans(length: int, tile: int, axis: Axis) -> list[Span]:
    """Cut ``length`` pixels into tiles whose kept places together are those of one pass, each once.

    Args:
        length: pixels of the picture.
        tile: pixels of a tile; raised to what one answer needs, and by less than a stride, so that all are of one
            size and kernels are compiled for that one alone.
        axis: what a place sees.
    """
    # earlier places reach over a tile's beginning: only at the picture's own edge are they right
    first_clean = max(0, -(axis.start // axis.stride))
    shortest = axis.start + axis.size + first_clean * axis.stride
    tile = max(tile, shortest)
    tile += max(0, length - tile) % axis.stride
    spans: list[Span] = []
    done = 0
    while True:
        begin = max(0, done - first_clean) * axis.stride if done else 0
        if begin + tile >= length:
            begin = max(0, min(begin, (length - tile) // axis.stride * axis.stride))
            return [*spans, Span(begin, length, done - begin // axis.stride, None)]
        stop = (tile - axis.start - axis.size) // axis.stride + 1
        spans.append(Span(begin, begin + tile, done - begin // axis.stride, stop))
        done = begin // axis.stride + stop


def separate(found: Sequence[Detection], overlap: float) -> list[Detection]:
    """Non-maximum suppression over classes and scales: of overlapping boxes the most probable stays.

    Args:
        found: the candidates.
        overlap: largest intersection over union, 0–1, that two boxes may have.
    """
    if not found:
        return []
    order = sorted(found, key=lambda detection: -detection.probability)
    boxes = np.array([detection.box for detection in order])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    open_places = np.arange(len(order))
    kept = []
    while len(open_places):
        best, rest = open_places[0], open_places[1:]
        kept.append(order[best])
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = np.clip(high - low, 0, None).prod(axis=1)
        open_places = rest[common <= overlap * (areas[best] + areas[rest] - common)]
    return kept


def open_big_picture(path: str | Path, predictor: Predictor, max_pixels: int = MAX_PIXELS) -> BigPicture:
    """A picture at its full size, upright, in the colours that the net takes.

    A large TIFF is not decoded here, but strip by strip or tile by tile when it is looked at.

    Args:
        path: the file.
        predictor: whose preprocessing says which colours.
        max_pixels: width × height over which the file is refused before anything is decoded.

    Raises:
        PathError: no such file.
        BadFileError: too many pixels, or it cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise PathError(f"{path}: no such picture.")
    try:
        with quiet_pillow(), _own_limit(), Image.open(path) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise BadFileError(
                    f"{path}: {width}×{height} = {width * height:,} pixels, over the limit of {max_pixels:,}. "
                    f"If you trust the file: --max-pixels {width * height}"
                )
            if width * height > _WHOLE_PIXELS:
                with suppress(ValueError):
                    return TiffRegions(path, predictor.preprocessing, opened)
            return upright_picture(predictor.preprocessing, opened)
    except (ConvlensError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise anything
        raise BadFileError(f"{path}: cannot be decoded as a picture ({error}).") from None


@contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow's own limit off while ours is in force."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _stacked(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts below each other; each is let go when it is copied, so they are never held twice."""
    whole = np.empty((sum(len(part) for part in parts), parts[0].shape[1]), parts[0].dtype)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _finite_field(net: torch.nn.Module, shape: tuple[int, ...]) -> Field | None:
    if any(getattr(module, "padding_mode", "zeros") == "circular" for module in net.modules()):
        return None  # at its edge an answer sees the other edge
    return output_field(net, shape)
