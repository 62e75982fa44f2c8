"""Filters on a 12 Mpixel photo: ``python benchmarks/filters.py [--out benchmarks/results/filters.json]``.

`convlens.explain.filter_image` against scipy.ndimage and OpenCV, in turns, in one process: uint8 RGB in, float32
out, mirrored border. Each peer runs its best function for the filter: scipy one 1-D pass per axis where the filter
is separable, OpenCV ``sepFilter2D`` there, ``filter2D`` elsewhere and ``boxFilter`` for the box. scipy takes
float32, converted outside the clock, and is timed once, as it takes seconds. Results are compared before anything
is timed; "x fastest" is the faster peer's median over ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy import ndimage

from convlens import explain
from convlens.bench.results import environment
from convlens.layers.filters import hand_filter, separated

FILTERS: dict[str, dict[str, Any]] = {
    "sobel_x": {},
    "prewitt_y": {},
    "laplacian": {},
    "sharpen": {},
    "emboss": {},
    "box": {"size": 9},
    "gaussian": {"sigma": 3.0},
}
Array = np.ndarray
# with one thread the process's own time, which others on the machine disturb least
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def ways(name: str, settings: dict[str, Any], image: Array) -> dict[str, Callable[[], Array]]:
    kernel = hand_filter(name, **settings)
    dense = kernel.numpy()
    floats = image.astype(np.float32)
    parts = separated(kernel)

    def scipy_way() -> Array:
        if parts is None:
            return ndimage.correlate(floats, dense[:, :, None], mode="reflect")
        down = ndimage.correlate1d(floats, parts[0].numpy(), axis=0, mode="reflect")
        return ndimage.correlate1d(down, parts[1].numpy(), axis=1, mode="reflect")

    def opencv_way() -> Array:
        border = cv2.BORDER_REFLECT
        if name == "box":
            return cv2.boxFilter(image, cv2.CV_32F, dense.shape, borderType=border)
        if parts is None:
            return cv2.filter2D(image, cv2.CV_32F, dense, borderType=border)
        return cv2.sepFilter2D(image, cv2.CV_32F, parts[1].numpy(), parts[0].numpy(), borderType=border)

    return {"convlens": lambda: explain.filter_image(image, kernel), "scipy": scipy_way, "opencv": opencv_way}


def measured(name: str, settings: dict[str, Any], image: Array, repeats: int) -> dict[str, Any]:
    chosen = ways(name, settings, image)
    answers = {way: run() for way, run in chosen.items()}
    gap = max(float(np.abs(answers["convlens"] - other).max()) for other in answers.values())
    assert gap < 0.01, f"{name}: not the same picture, off by {gap}"
    del answers
    seconds: dict[str, list[float]] = {way: [] for way in chosen}
    for turn in range(repeats):
        for way, run in chosen.items():
            if way == "scipy" and turn:
                continue
            start = CLOCK()
            run()
            seconds[way].append(CLOCK() - start)
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    quarter, _, three = statistics.quantiles(seconds["convlens"], n=4)
    peer_low, _, peer_high = statistics.quantiles(seconds["opencv"], n=4)
    return {
        "filter": name,
        "kernel": "x".join(str(size) for size in hand_filter(name, **settings).shape),
        "convlens_s": middle["convlens"],
        "quartiles_s": [quarter, three],
        "opencv_s": middle["opencv"],
        "opencv_quartiles_s": [peer_low, peer_high],
        "scipy_s": middle["scipy"],
        "x_fastest": min(middle["opencv"], middle["scipy"]) / middle["convlens"],
        "repeats": repeats,
        "largest_difference_of_255": gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--width", type=int, default=4000)
    choices = parser.parse_args()
    cv2.setNumThreads(torch.get_num_threads())
    width, height = choices.width, choices.width * 3 // 4
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = []
    for name, settings in FILTERS.items():
        rows.append(measured(name, settings, image, choices.repeats))
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})
    record: dict[str, Any] = {
        "benchmark": "filters",
        "environment": environment() | {"opencv": cv2.__version__, "scipy": version("scipy")},
        "clock": CLOCK.__name__,
        "photo": f"{height}x{width}x3 uint8",
        "rows": rows,
    }
    if choices.out:
        choices.out.parent.mkdir(parents=True, exist_ok=True)
        choices.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
