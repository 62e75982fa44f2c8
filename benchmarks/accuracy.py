"""Accuracy of a recipe over several seeds (and folds), with the time that training took.

    python benchmarks/accuracy.py --recipe promoters --data shared/data/dna_promoters --folds 10 --seeds 5

Each seed is a whole training as ``convlens train`` does it, in this process. ``--dev`` shows the dev part only (of
the best and of the last epoch), for choosing settings (``--set 'epochs = 3'``, TOML); without it the test
accuracies of the recipe as shipped go to ``results/accuracy.json``, one entry per recipe and data set, and the
test part has been looked at once per seed.
With ``--folds N`` a seed is one cross-validation: N trainings, each sample tested once.
"""

import argparse
import json
import statistics
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from convlens.bench.results import environment
from convlens.training import Recipe, read_recipe, train


def merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``extra``, table by table."""
    both = {**base, **extra}
    for name in base.keys() & extra.keys():
        if isinstance(base[name], dict):
            both[name] = merged(base[name], extra[name])
    return both


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with a seed (over all folds); accuracies are over all samples that were judged."""
    right = judged = dev_right = last_right = dev_judged = 0.0
    seconds, begin = 0.0, time.perf_counter()
    for fold in range(1, options.folds + 1) if options.folds else [None]:
        settings = read_recipe(options.recipe) if options.recipe else {}
        settings = merged(settings, tomllib.loads("\n".join(options.set)))
        settings = merged(settings, {"data": options.data, "seed": seed})
        if fold is not None:
            settings = merged(settings, {"data_options": {"fold": f"{fold}/{options.folds}"}})
        recipe = Recipe.from_settings(settings)
        with tempfile.TemporaryDirectory() as folder:
            result = train(recipe, Path(folder) / "run")
            last = result.run.metrics()[-1]["dev_accuracy"] or 0.0
        right += result.test.accuracy * result.test.samples if result.test.samples else 0
        judged += result.test.samples
        dev = result.card.data["dev"]
        dev_right += (result.best.get("dev_accuracy") or 0.0) * dev
        last_right += last * dev
        dev_judged += dev
        seconds += result.seconds
    return {
        "seed": seed,
        "test_accuracy": right / judged if judged else None,
        "test_samples": judged,
        "dev_accuracy": dev_right / dev_judged if dev_judged else None,
        "last_dev_accuracy": last_right / dev_judged if dev_judged else None,
        "training_seconds": seconds,
        "seconds": time.perf_counter() - begin,
        "epochs": result.card.training["epochs"],
    }


def summary(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{100 * statistics.mean(values):.2f} % ± {100 * deviation:.2f} (n={len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", help="name of the data in the results; default: the last part of --data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="TOML")
    parser.add_argument("--dev", action="store_true", help="show the dev part only, write nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    parts = ["dev_accuracy", "last_dev_accuracy"] if options.dev else ["test_accuracy"]
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        row = one_seed(options, seed)
        rows.append(row)
        shown = ", ".join(f"{part} {100 * row[part]:.2f} %" for part in parts)
        print(f"seed {seed}: {shown}  {row['seconds']:.1f} s", flush=True)
    seconds = statistics.median(row["training_seconds"] for row in rows)
    name = options.name or Path(options.data).stem
    print(options.recipe, *options.set, "on", name, f"{seconds:.1f} s")
    for part in parts:
        print(f"  {part}: {summary([row[part] for row in rows])}")
    if options.dev:
        return
    path = options.out / "accuracy.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    document[f"{options.recipe or 'default'} on {name}"] = {
        "mean": statistics.mean(row[parts[0]] for row in rows),
        "deviation": statistics.stdev(row["test_accuracy"] for row in rows) if len(rows) > 1 else None,
        "median_training_seconds": seconds,
        "folds": options.folds or None,
        "set": options.set,
        "seeds": rows,
        "environment": environment(),
    }
    path.write_text(json.dumps(dict(sorted(document.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
