"""Size, channels and fit of pictures, chosen from their headers, and what each fit would lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.data.dataset import Indices
from convlens.data.options import DataOptions, Fit
from convlens.data.pictures import PictureHeader
from convlens.data.preprocessing import Preprocessing

__all__ = ["choose_picture_form", "fit_losses", "square"]

_NATIVE_LIMIT = 256
_LADDER = (32, 48, 64, 96, 128)
_CROP_LIMIT = 0.10
_STRETCH_LIMIT = 0.50


def square(size: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """One side stands for both."""
    return size * 2 if size is not None and len(size) == 1 else size


def choose_picture_form(
    headers: Sequence[PictureHeader], options: DataOptions
) -> tuple[Preprocessing, dict[str, float], str]:
    """`Preprocessing` without statistics, the loss of each fit, and the choices in words.

    Size: the pictures' own when all are equal and at most 256; else the largest of 32, 48, 64, 96, 128 that the
    median picture fills. Channels: 1 when every picture is grey. Fit: crop when it cuts at most 10 % on average;
    else stretch when the mean distortion is at most 1.5; else pad.
    """
    sizes = np.array([(header.height, header.width) for header in headers])
    chosen = square(options.size)
    notes = []
    if chosen is None:
        chosen = _native(sizes) or _from_ladder(sizes)
        equal = (sizes == sizes[0]).all()
        seen = "all are that size" if equal and chosen == tuple(sizes[0]) else _median_words(sizes)
        notes.append(f"size {chosen[0]}×{chosen[1]} ({seen})")
    losses = fit_losses(sizes, (chosen[0], chosen[1]))
    fit = options.fit or _fit_for(losses)
    if max(losses.values()) > 0:
        how = "asked" if options.fit else "from the data"
        notes.append(
            f"fit {fit} ({how}; crop would cut {losses['crop']:.0%} of the picture on average, pad would leave "
            f"{losses['pad']:.0%} of the input empty, stretch would distort by {losses['stretch']:.0%})"
        )
    channels = options.channels or (1 if all(header.grey for header in headers) else 3)
    form = Preprocessing(kind="image", channels=channels, size=chosen, fit=fit, scale=1 / 255)
    return form, losses, "; ".join(notes)


def fit_losses(sizes: Indices, target: tuple[int, int]) -> dict[str, float]:
    """Means over pictures ``[N, (height, width)]``: share cut off, share of input left empty, distortion − 1."""
    squeeze = (sizes[:, 1] / sizes[:, 0]) / (target[1] / target[0])
    kept = np.minimum(squeeze, 1 / squeeze)
    cut = float(np.mean(1 - kept))
    return {"crop": cut, "pad": cut, "stretch": float(np.mean(1 / kept - 1))}


def _fit_for(losses: dict[str, float]) -> Fit:
    if losses["crop"] <= _CROP_LIMIT:
        return "crop"
    return "stretch" if losses["stretch"] <= _STRETCH_LIMIT else "pad"


def _native(sizes: Indices) -> tuple[int, ...] | None:
    if (sizes == sizes[0]).all() and sizes[0].max() <= _NATIVE_LIMIT:
        return int(sizes[0, 0]), int(sizes[0, 1])
    return None


def _from_ladder(sizes: Indices) -> tuple[int, int]:
    median = float(np.median(sizes.min(axis=1)))
    side = max((rung for rung in _LADDER if rung <= median), default=_LADDER[0])
    return side, side


def _median_words(sizes: Indices) -> str:
    height, width = np.median(sizes, axis=0)
    return f"the median picture is {width:.0f}×{height:.0f}"
