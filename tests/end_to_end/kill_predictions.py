"""Predictions of many files, killed at random moments and continued: ``python kill_predictions.py --kills 20``.

Prints one JSON document: kills that hit a running process, how many parts were there then, and whether every
finished table and its list of bad files had the bytes of the undisturbed run, with nothing beside them. Libraries
are imported once; each attempt is a forked child, so that its whole life is work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convlens import models
from convlens.data import Preprocessing
from convlens.modelfile import bulk, load
from convlens.modelfile.card import ModelCard, write_model

LOOSE, SHARDS, IN_SHARD = 180, 2, 60


def prepare(folder: Path) -> None:
    """A model, loose pictures and shards; some of them bad."""
    torch.manual_seed(0)
    architecture = {"name": "lenet5", "in_channels": 1, "num_classes": 3, "input_size": [16, 16]}
    form = Preprocessing(kind="image", channels=1, size=(16, 16), scale=1 / 255)
    card = ModelCard(architecture=architecture, preprocessing=form, class_names=("a", "b", "c"))
    write_model(folder / "m.safetensors", models.create(**architecture).state_dict(), card)
    (folder / "in").mkdir()
    for number in range(LOOSE):
        (folder / "in" / f"{number:03}.png").write_bytes(picture(number))
    for shard in range(SHARDS):
        with tarfile.open(folder / "in" / f"s{shard}.tar", "w") as tar:
            for number in range(IN_SHARD):
                content = picture(1000 * (shard + 1) + number)
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def picture(number: int) -> bytes:
    if number % 17 == 5:
        return b"no picture"
    written = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def predict(folder: Path, out: Path) -> None:
    bulk._PART, bulk._AT_ONCE = 16, 8  # many parts, so that kills find many states
    sources = sorted(str(path) for path in (folder / "in").iterdir())
    bulk.predict_into(load(folder / "m.safetensors"), sources, out)


def in_child(act: Callable[[], None], kill_after_s: float | None = None) -> bool:
    """Whether ``act`` came to its end, in a process that is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            act()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child ended with {status}")
    return status == 0


def outcome(out: Path) -> dict[str, bytes]:
    """The files of a finished table, by name; what is left over would be one more."""
    found = sorted(out.parent.glob("*"))
    return {path.name: path.read_bytes() if path.is_file() else b"a folder" for path in found}


def tried(folder: Path, ending: str, kills: int, seed: int) -> dict[str, object]:
    draw = random.Random(f"{seed} {ending}")
    undisturbed, disturbed = (folder / name / f"out{ending}" for name in (f"whole{ending}", f"killed{ending}"))
    for out in (undisturbed, disturbed):
        out.parent.mkdir()
    in_child(lambda: predict(folder, undisturbed))
    expected = outcome(undisturbed)
    for path in undisturbed.parent.iterdir():
        path.unlink()
    started = time.monotonic()
    in_child(lambda: predict(folder, undisturbed))  # timed with everything compiled
    whole_s = time.monotonic() - started
    if outcome(undisturbed) != expected or len(expected) != 2:
        raise RuntimeError("two undisturbed runs differ")
    hits, tables, at = 0, 0, []
    while hits < kills:
        for path in disturbed.parent.iterdir():
            path.unlink()
        while not in_child(lambda: predict(folder, disturbed), draw.uniform(0, whole_s) if hits < kills else None):
            hits += 1
            parts = len(list(disturbed.parent.glob("out.*.parts/*.part")))
            at.append(parts)
        tables += 1
        if outcome(disturbed) != expected:
            return {"ending": ending, "kills": hits, "equal": False, "found": sorted(outcome(disturbed))}
    return {
        "ending": ending,
        "kills": hits,
        "tables": tables,
        "parts_at_kills": at,
        "whole_s": whole_s,
        "equal": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--endings", nargs="+", default=[".csv", ".parquet"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        in_child(lambda: prepare(folder))
        print(json.dumps([tried(folder, ending, chosen.kills, chosen.seed) for ending in chosen.endings]))


if __name__ == "__main__":
    main()
