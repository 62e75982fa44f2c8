"""A drawn crowd in which some figures wear red and white stripes: the picture for finding things."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

__all__ = ["FIGURE_SIDE", "Crowd", "draw_crowd", "patches"]

FIGURE_SIDE = 32
"""Pixels along the side of the patch that holds a figure of size 1."""
_STRIPES = ((215, 30, 40), (245, 245, 240))
_SKIN = ((241, 194, 155), (198, 134, 66), (141, 85, 36), (255, 219, 172))
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crowd:
    """A picture, the boxes ``(left, top, right, bottom)`` of the hidden figures, and how many people there are."""

    picture: Image.Image
    figures: list[Box]
    people: int


def draw_crowd(generator: np.random.Generator, size: tuple[int, int], hidden: int) -> Crowd:
    """Draw people close together on grass, ``hidden`` of them in red and white stripes across.

    Everybody else wears one colour, stripes of other colours, or red and white stripes *down*; sizes are 1 to
    1.6 times `FIGURE_SIDE`. Same generator state, same picture.
    """
    width, height = size
    ground = generator.integers(-18, 19, (height, width, 1)) + np.array([96, 142, 84])
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    step = 30
    spots = [
        (x + int(generator.integers(-6, 7)), y + int(generator.integers(-6, 7)))
        for y in range(4, height - 60, step)
        for x in range(4, width - 60, step)
    ]
    chosen = _apart(generator, spots, hidden)
    figures: list[Box] = []
    for number, (x, y) in enumerate(spots):
        side = float(FIGURE_SIDE * generator.uniform(1.0, 1.6 if number in chosen else 1.3))
        if number not in chosen:
            _person(pen, generator, (float(x), float(y)), side, hidden=False)
        else:
            figures.append((float(x), float(y), float(x + side), float(y + side)))
    for left, top, right, _ in figures:  # last, so that nobody stands before them
        _person(pen, generator, (left, top), right - left, hidden=True)
    return Crowd(picture, figures, len(spots))


def patches(
    generator: np.random.Generator, crowd: Crowd, count: int
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """``count`` patches uint8 ``[32, 32, 3]``, named ``figure`` or ``background``: a third figures.

    Figures are a few pixels off the middle, as a net with a stride will meet them; a part of the background lies
    beside a figure, so that half of one does not pass for one.
    """
    for number in range(count):
        left, top, right, _ = crowd.figures[int(generator.integers(len(crowd.figures)))]
        side = right - left
        if number % 3 == 0:
            name, shift = "figure", generator.uniform(-0.09, 0.09, 2) * side
            side *= float(generator.uniform(0.88, 1.12))
        elif number % 3 == 1:
            angle, far = generator.uniform(0, 2 * np.pi), generator.uniform(0.5, 1.0) * side
            name, shift = "background", far * np.array([np.cos(angle), np.sin(angle)])
        else:
            name, shift = "background", np.zeros(2)
            side = FIGURE_SIDE * float(generator.uniform(1.0, 1.7))
            left, top = (float(generator.uniform(0, n - side)) for n in crowd.picture.size)
            if any(abs(left - f[0]) < FIGURE_SIDE and abs(top - f[1]) < FIGURE_SIDE for f in crowd.figures):
                continue
        box = (left + shift[0], top + shift[1], left + shift[0] + side, top + shift[1] + side)
        if box[0] < 0 or box[1] < 0 or box[2] > crowd.picture.width or box[3] > crowd.picture.height:
            continue
        cut = crowd.picture.resize((FIGURE_SIDE, FIGURE_SIDE), Image.Resampling.BILINEAR, box=box)
        yield name, np.asarray(cut)


def _apart(generator: np.random.Generator, spots: list[tuple[int, int]], count: int) -> set[int]:
    """Numbers of ``count`` spots of which no two touch."""
    chosen: set[int] = set()
    for number in generator.permutation(len(spots)).tolist():
        x, y = spots[number]
        if all(max(abs(x - spots[other][0]), abs(y - spots[other][1])) > 2 * FIGURE_SIDE for other in chosen):
            chosen.add(number)
        if len(chosen) == count:
            break
    return chosen


def _person(
    pen: ImageDraw.ImageDraw, generator: np.random.Generator, place: tuple[float, float], side: float, hidden: bool
) -> None:
    left, top = place

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return left + x0 * side, top + y0 * side, left + x1 * side, top + y1 * side

    skin = _SKIN[int(generator.integers(len(_SKIN)))]
    trousers = _colour(generator, 20, 120)
    pen.rectangle(box(0.32, 0.74, 0.47, 0.97), fill=trousers)
    pen.rectangle(box(0.53, 0.74, 0.68, 0.97), fill=trousers)
    kind = (
        "across" if hidden else ("plain", "plain", "plain", "down", "other", "other")[int(generator.integers(6))]
    )
    one, two = (
        _STRIPES if kind in ("across", "down") else (_colour(generator, 30, 230), _colour(generator, 30, 230))
    )
    if kind == "other":  # never the colours of the hidden ones
        one = (one[0] // 3, one[1], one[2])
    pen.rectangle(box(0.26, 0.36, 0.74, 0.76), fill=one)
    for stripe in range(3) if kind != "plain" else ():
        if kind == "down":
            pen.rectangle(box(0.30 + 0.16 * stripe, 0.36, 0.37 + 0.16 * stripe, 0.76), fill=two)
        else:
            pen.rectangle(box(0.26, 0.42 + 0.13 * stripe, 0.74, 0.48 + 0.13 * stripe), fill=two)
    pen.ellipse(box(0.35, 0.06, 0.65, 0.38), fill=skin)
    hat = _colour(generator, 20, 220)
    pen.pieslice(box(0.33, 0.0, 0.67, 0.30), 180, 360, fill=_STRIPES[0] if hidden else hat)


def _colour(generator: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = generator.integers(low, high, 3).tolist()
    return red, green, blue
