"""A few photos of each class: a net from scratch against the same net that has seen other pictures before.

    convlens train cifar10/ --recipe cifar10 --out pretrained
    python benchmarks/transfer.py --pretrained pretrained --photos cats_dogs/ [--per-class 50] [--seeds 5]

From every class of the train part ``--per-class`` photos are drawn (by the seed), of which a fifth chooses the
epoch; all of the test part judges. Both ways have the same photos, settings and number of epochs; only
``--init`` differs. Goes to ``results/transfer.json``.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from convlens.bench.results import environment
from convlens.training import Recipe, train

SETTINGS: dict[str, Any] = {
    "model": "convnet-m", "epochs": 40, "batch_size": 16, "optimizer": "muon", "precision": "bfloat16",
}  # fmt: skip


def draw(photos: Path, to: Path, per_class: int, seed: int) -> None:
    """``to/{train,test}/CLASS``: so many photos of each class, and the whole test part."""
    for folder in sorted((photos / "train").iterdir()):
        chosen = random.Random(seed).sample(sorted(folder.iterdir()), per_class)
        (to / "train" / folder.name).mkdir(parents=True)
        for photo in chosen:
            shutil.copy(photo, to / "train" / folder.name)
    shutil.copytree(photos / "test", to / "test")


def accuracy(data: Path, size: int, seed: int, init: Path | None, out: Path) -> dict[str, float]:
    settings = SETTINGS | {"data": str(data), "seed": seed, "data_options": {"size": [size]}}
    if init is not None:
        settings["init"] = str(init)
    result = train(Recipe.from_settings(settings), out)
    return {"test_accuracy": result.test.accuracy, "seconds": result.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {"scratch": [], "transferred": []}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            draw(options.photos, Path(folder) / "data", options.per_class, seed)
            for way, init in (("scratch", None), ("transferred", options.pretrained)):
                row = accuracy(Path(folder) / "data", options.size, seed, init, Path(folder) / way)
                rows[way].append({"seed": seed, **row})
                print(way, rows[way][-1], flush=True)
    summary = {}
    for way, found in rows.items():
        values = [row["test_accuracy"] for row in found]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[way] = {"mean": statistics.mean(values), "deviation": deviation}
    print(summary)
    document = {"per_class": options.per_class, "size": options.size, "settings": SETTINGS, "summary": summary}
    document |= {"rows": rows, "environment": environment()}
    (options.out / "transfer.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
