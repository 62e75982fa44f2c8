"""The demo of ``convlens scan --find``: figures hidden in a crowd, a net trained on patches, the search."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from convlens.cli._output import print_json, result_console, status_console
from convlens.explain.crowd import FIGURE_SIDE, Box, Crowd, draw_crowd, patches

__all__ = ["find_in_crowd"]

_SCENES = 4
_PATCHES = 2000
_HIDDEN = 8
_SCALES = (1.0, 0.75, 0.6)


def find_in_crowd(out: Path, seed: int, device: str, as_json: bool) -> None:
    """Draw a crowd, train a small net on patches of other crowds, scan, tell what was found; write the picture.

    Args:
        out: where the picture with boxes goes.
        seed: of everything drawn and trained.
        device: where to compute.
        as_json: print one JSON document instead of text.
    """
    from convlens.cli.scan import with_boxes
    from convlens.data.progress import visible
    from convlens.explain.scan import Scanner
    from convlens.modelfile import load
    from convlens.training.machine import device_of

    status = status_console()
    generator = np.random.default_rng(seed)
    crowd = draw_crowd(generator, (1600, 1200), hidden=_HIDDEN)
    with tempfile.TemporaryDirectory(prefix="convlens-find-") as folder:
        status.print("Drawing patches and training on them …")
        run = _trained(Path(folder), generator, seed, device)
        predictor = load(run, device_of(device))
    scan = Scanner(predictor).scan(crowd.picture, _SCALES, ["figure"], 0.95, 0.1, visible)
    found, false_alarms = _counted(crowd, [detection.box for detection in scan.detections])
    with_boxes(crowd.picture, scan).save(out)
    if as_json:
        counts = {"hidden": len(crowd.figures), "found": found, "false_alarms": false_alarms}
        print_json({**counts, "picture": str(out), **scan.to_dict()})
        return
    result_console().print(
        f"[bold green]{found} of {len(crowd.figures)} hidden figures found[/], {false_alarms} false alarms "
        f"in a crowd of {crowd.people:,}."
    )
    status.print(f"wrote {out}", markup=False)


def _trained(folder: Path, generator: np.random.Generator, seed: int, device: str) -> Path:
    """Train on patches; then once more with what the first net took for a figure among the background."""
    from convlens.explain.scan import Scanner
    from convlens.modelfile import load

    data = folder / "patches"
    for name in ("figure", "background"):
        (data / name).mkdir(parents=True)
    crowds = [draw_crowd(generator, (1000, 800), hidden=40) for _ in range(_SCENES)]
    for crowd in crowds:
        for name, cut in patches(generator, crowd, _PATCHES // _SCENES):
            _keep(data / name, cut)
    first = _train(data, folder / "first", 5, seed, device)
    scanner = Scanner(load(first))
    for crowd in crowds[:2]:
        for detection in scanner.scan(crowd.picture, _SCALES, ["figure"], 0.5, 0.3).detections:
            if not any(_meets(detection.box, figure) for figure in crowd.figures):
                side = (FIGURE_SIDE, FIGURE_SIDE)
                alarm = crowd.picture.resize(side, Image.Resampling.BILINEAR, box=detection.box)
                _keep(data / "background", np.asarray(alarm))
    return _train(data, folder / "second", 8, seed, device)


def _keep(folder: Path, cut: npt.NDArray[np.uint8]) -> None:
    Image.fromarray(cut).save(folder / f"{sum(1 for _ in folder.iterdir()):05}.png", compress_level=1)


def _train(data: Path, out: Path, epochs: int, seed: int, device: str) -> Path:
    from convlens.training import Recipe, train

    recipe = Recipe.from_settings(
        {
            "data": str(data),
            "data_options": {"size": (FIGURE_SIDE, FIGURE_SIDE)},
            "model": "convnet-s",
            "epochs": epochs,
            "time_budget": "25s",
            "augmentation": "none",
            "seed": seed,
            "device": device,
        }
    )
    return train(recipe, out).run.path


def _meets(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _counted(crowd: Crowd, boxes: list[Box]) -> tuple[int, int]:
    """Figures with a box whose middle lies on them, and boxes that lie on no figure."""
    middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes]
    hits = [
        [left <= x < right and top <= y < bottom for x, y in middles] for left, top, right, bottom in crowd.figures
    ]
    found = sum(any(row) for row in hits)
    false_alarms = sum(not any(row[place] for row in hits) for place in range(len(boxes)))
    return found, false_alarms
