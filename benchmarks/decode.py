"""Photos to training tensors: ``python benchmarks/decode.py CATS_DOGS [--out FILE] [--repeats 7]``.

The same work three ways, in turns, in one process: every photo decoded, brought to 128×128 RGB (whole picture,
bilinear with antialiasing) and left as one uint8 array. The files are in the page cache for all.

* ``loop``: open, convert, resize, copy; one photo after the other.
* ``loader``: the usual PyTorch way, a data set of files behind a DataLoader with one worker per core, batches of
  32 (torchvision's ImageFolder and Resize written out).
* ``convlens``: ``data.open`` with an empty cache, which also hashes every file, writes the array to disk, syncs
  it, splits and measures mean and deviation.
* ``convlens again``: the second opening, as every later command sees it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from convlens import data
from convlens.bench.results import environment

SIDE = 128


def photo(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def loop(files: list[Path]) -> np.ndarray:
    out = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
    for number, path in enumerate(files):
        out[number] = photo(path).transpose(2, 0, 1)
    return out


class Files(Dataset[torch.Tensor]):
    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(photo(self.files[number]).transpose(2, 0, 1).copy())


def loader(files: list[Path]) -> np.ndarray:
    batches = DataLoader(Files(files), batch_size=32, num_workers=os.cpu_count() or 1)
    return torch.cat(list(batches)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    choices = parser.parse_args()
    files = sorted(choices.folder.rglob("*.jpg"))
    cache = Path(tempfile.mkdtemp())
    os.environ["CONVLENS_CACHE"] = str(cache)

    def ours() -> np.ndarray:
        shutil.rmtree(cache, ignore_errors=True)
        return data.open(choices.folder, size=SIDE, fit="stretch").inputs

    def again() -> np.ndarray:
        return data.open(choices.folder, size=SIDE, fit="stretch").inputs

    ways: dict[str, Callable[[], np.ndarray]] = {
        "loop": lambda: loop(files),
        "loader": lambda: loader(files),
        "convlens": ours,
        "convlens again": again,
    }
    expected = loop(files).astype(np.int16)
    difference = float(np.abs(expected - ours()).mean())
    assert difference < 3, f"not the same pictures: mean difference {difference:.2f} of 255"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(choices.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    shutil.rmtree(cache, ignore_errors=True)
    rows = [row(name, seconds, len(files)) for name in ways]
    result: dict[str, Any] = {
        "benchmark": "decode",
        "environment": environment(),
        "photos": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "mean_difference_of_255": round(difference, 3),
        "rows": rows,
    }
    for found in rows:
        print(
            f"{found['way']:15s} {found['photos_per_s']:8.0f} photos/s  "
            f"{found['median_s']:.3f} s ({found['quartiles_s'][0]:.3f}-{found['quartiles_s'][1]:.3f})  "
            f"{found['times_loop']:.2f}x loop, {found['times_loader']:.2f}x loader"
        )
    if choices.out:
        choices.out.parent.mkdir(parents=True, exist_ok=True)
        choices.out.write_text(json.dumps(result, indent=1) + "\n")


def row(name: str, seconds: dict[str, list[float]], photos: int) -> dict[str, Any]:
    quarter, middle, three = statistics.quantiles(seconds[name], n=4)
    return {
        "way": name,
        "median_s": middle,
        "quartiles_s": [quarter, three],
        "repeats": len(seconds[name]),
        "photos_per_s": photos / middle,
        "times_loop": statistics.median(seconds["loop"]) / middle,
        "times_loader": statistics.median(seconds["loader"]) / middle,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
