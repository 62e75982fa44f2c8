"""A 12 Mpixel picture looked over three ways: ``python benchmarks/scan.py [--out FILE] [--megapixels 12]``.

One untrained convnet-s (32×32 RGB windows, an answer every 4 pixels) in a process of its own each time:

* ``scan``: tile by tile through our kernels; the first time with planning, then again.
* ``one pass``: the same fully convolutional net over the whole picture at once of PyTorch's own layers.
* ``patches``: every window cut out and classified, batches of 256, PyTorch's own layers; a part is timed and
  the time for all is its share.

Peak memory is the process's largest resident size less that before the picture is opened.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convlens import models
from convlens.bench.results import environment
from convlens.bench.serving.peers import as_torch
from convlens.data import Preprocessing
from convlens.explain.scan import Scanner
from convlens.modelfile import Predictor
from convlens.modelfile.card import ModelCard, write_model

SIDE, STRIDE, PART = 32, 4, 4096


def prepared() -> Predictor:
    torch.manual_seed(0)
    architecture = {"name": "convnet-s", "in_channels": 3, "num_classes": 2, "input_size": [SIDE, SIDE]}
    form = Preprocessing(kind="image", channels=3, size=(SIDE, SIDE), mean=(120.0,) * 3, std=(60.0,) * 3)
    card = ModelCard(architecture=architecture, preprocessing=form, class_names=("background", "thing"))
    return Predictor(models.create(**architecture).eval(), card, Path("none"))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def picture_of(megapixels: float) -> Image.Image:
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (height, height * 4 // 3, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def measured(way: str, megapixels: float, answers: Any) -> None:
    predictor = prepared()
    scanner = Scanner(predictor)
    before = peak()
    picture = picture_of(megapixels)
    found: dict[str, Any] = {"pixels": picture.width * picture.height}
    start = time.perf_counter()
    if way == "scan":
        for name in ("first_seconds", "seconds"):
            start = time.perf_counter()
            scan = scanner.scan(picture, threshold=1.0)
            found[name] = time.perf_counter() - start
        found |= {"tiles": scan.maps[0].tiles, "places": scan.maps[0].probability.size}
    elif way == "one pass":
        as_torch(scanner.net)
        found["places"] = int(np.prod(scanner.probabilities(picture).shape[1:]))
        found["seconds"] = time.perf_counter() - start
    else:
        as_torch(predictor.model)
        pixels = torch.from_numpy(np.array(picture).transpose(2, 0, 1))
        windows = pixels.unfold(1, SIDE, STRIDE).unfold(2, SIDE, STRIDE)
        columns = windows.shape[2]
        places = windows.shape[1] * columns
        for place in range(0, PART, 256):
            chosen = torch.arange(place, place + 256)
            predictor.probabilities(windows[:, chosen // columns, chosen % columns].transpose(0, 1))
        timed = time.perf_counter() - start
        found |= {"timed_places": PART, "timed_seconds": timed, "places": places, "seconds": timed * places / PART}
    answers.put({**found, "peak_bytes": peak() - before})


def huge(megapixels: float, scales: str) -> dict[str, Any]:
    """``convlens scan`` of a grey TIFF by LeNet-5 (28×28): seconds and peak memory of the whole command."""
    side = round((megapixels * 1e6) ** 0.5)
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        architecture = {"name": "lenet5", "in_channels": 1, "num_classes": 2, "input_size": [28, 28]}
        form = Preprocessing(kind="image", channels=1, size=(28, 28), mean=(120.0,), std=(60.0,))
        card = ModelCard(architecture=architecture, preprocessing=form, class_names=("background", "thing"))
        model, tiff = Path(place) / "m.safetensors", Path(place) / "big.tif"
        write_model(model, models.create(**architecture).state_dict(), card)
        rows = np.random.default_rng(0).integers(0, 256, (1000, side), dtype=np.uint8)
        Image.fromarray(np.resize(rows, (side, side))).save(tiff, compression="tiff_adobe_deflate")
        command = [sys.executable, "-m", "convlens", "scan", str(model), str(tiff), "--scales", scales, "--json"]
        started = time.perf_counter()
        done = subprocess.run([*command, "--threshold", "1"], capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        scanned = json.loads(done.stdout)["scales"]
        return {
            "pixels": side * side,
            "bytes": tiff.stat().st_size,
            "scales": scanned,
            "seconds": seconds,
            "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--huge", type=float, help="only a TIFF of so many megapixels, by the command")
    parser.add_argument("--scales", default="1", help="for --huge")
    chosen = parser.parse_args()
    if chosen.huge:
        result = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out and chosen.out.exists() else {}
        result["huge"] = huge(chosen.huge, chosen.scales)
        print(result["huge"], flush=True)
        if chosen.out:
            chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return
    result = {"benchmark": "scan", "environment": environment()}
    context = multiprocessing.get_context("spawn")
    for way in ("scan", "one pass", "patches"):
        answers = context.Queue()
        process = context.Process(target=measured, args=(way, chosen.megapixels, answers))
        process.start()
        result[way] = answers.get(timeout=300)
        process.join()
        print(way, result[way], flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
