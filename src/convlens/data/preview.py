"""One picture of what the net will see: stored samples on the left, augmented ones to their right."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from convlens.data.augment import Augmentation, Augmenter
from convlens.data.augment.draws import Draws
from convlens.data.dataset import Dataset
from convlens.data.preprocessing import Array, Preprocessing

__all__ = ["preview", "sample_picture"]

_CELL = 112
_GAP = 6
_TEXT = 14


def preview(
    dataset: Dataset, augmentation: Augmentation, *, rows: int = 8, versions: int = 6, seed: int = 0
) -> Image.Image:
    """Rows of training samples: as stored, then in `versions` epochs.

    Samples are drawn so that the classes take turns.
    """
    import torch

    train = dataset.indices("train")
    labels = dataset.labels[train] if not dataset.multilabel else dataset.labels[train].argmax(axis=1)
    shuffled = np.argsort(Draws(seed, 0, train).uniform("preview"))
    turn = np.zeros(len(train), np.int64)
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        turn[mine] = np.arange(len(mine))
    chosen = np.lexsort((labels, turn))[:rows]
    numbers = torch.from_numpy(chosen)
    stored = torch.from_numpy(np.array(dataset.inputs[train[chosen]]))
    augmenter = Augmenter(augmentation, dataset.preprocessing, dataset.num_classes, seed)
    columns = [stored.numpy()]
    for epoch in range(versions):
        changed = augmenter.change(stored, numbers, epoch)
        columns.append(dataset.preprocessing.denormalise(changed).numpy())
    sheet = Image.new("RGB", (_place(versions + 1), _place(len(chosen), _TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, number in enumerate(chosen.tolist()):
        label = dataset.class_names[int(labels[number])]
        name = f"{label}  ({dataset.names[int(train[number])]})"
        draw.text((_GAP, _place(row, _TEXT)), name.encode("latin-1", "replace").decode("latin-1"), fill="black")
        for column, samples in enumerate(columns):
            cell = sample_picture(samples[row], dataset.preprocessing, reference=columns[0][row])
            sheet.paste(cell, (_place(column), _place(row, _TEXT) + _TEXT))
    return sheet


def _place(number: int, extra: int = 0) -> int:
    return _GAP + number * (_CELL + _GAP + extra)


def sample_picture(sample: Array, preprocessing: Preprocessing, reference: Array | None = None) -> Image.Image:
    """One stored sample ``[C, *size]`` as a square RGB picture.

    Signals and spectra are drawn as lines, sequences as coloured columns, volumes by their middle slice, all
    between the least and largest value of `reference` (the sample itself when None).
    """
    kind = preprocessing.kind
    base = sample if reference is None else reference
    low, high = float(base.min()), float(base.max())
    if kind == "signal":
        return _lines(sample, low, high)
    if kind == "spectral":
        middle = tuple(side // 2 for side in sample.shape[1:])
        return _lines(sample[(slice(None), *middle)][None], low, high)
    if kind == "sequence":
        shades = np.clip(sample, 0, 1)
        colours = np.array([[230, 60, 60], [60, 160, 60], [60, 90, 220], [230, 180, 40]])
        letters = np.arange(len(sample))
        palette = colours[letters % 4] * (1 - 0.15 * (letters // 4 % 4))[:, None]
        pixels = (shades.T @ palette)[None].repeat(8, axis=0)
    elif kind == "volume":
        middle_slice = sample[0, sample.shape[1] // 2]
        pixels = _stretched(middle_slice, low, high)[..., None].repeat(3, axis=2)
    else:
        pixels = np.clip(sample, 0, 255).transpose(1, 2, 0)
        pixels = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    ratio = _CELL / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    if kind == "sequence":
        size = (_CELL, _CELL)
    out = Image.new("RGB", (_CELL, _CELL), "white")
    out.paste(picture.resize(size, Image.Resampling.NEAREST))
    return out


def _stretched(values: Array, low: float, high: float) -> Array:
    scaled: Array = np.clip((values - low) / (high - low or 1.0), 0, 1) * 255
    return scaled


def _lines(signals: Array, low: float, high: float) -> Image.Image:
    out = Image.new("RGB", (_CELL, _CELL), (245, 245, 245))
    draw = ImageDraw.Draw(out)
    across = np.linspace(0, _CELL - 1, signals.shape[1])
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
    for number, signal in enumerate(signals):
        down = (_CELL - 1) * (1 - (signal - low) / (high - low or 1.0))
        points = [(float(x), float(y)) for x, y in zip(across, np.clip(down, 0, _CELL - 1), strict=True)]
        draw.line(points, fill=colours[number % len(colours)], width=1)
    return out
