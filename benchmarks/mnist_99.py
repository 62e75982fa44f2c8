"""MNIST to 99 %: wall time from the command to the saved model, ours against the same recipe in plain PyTorch.

    python benchmarks/mnist_99.py --mnist FOLDER [--rounds 3] [--out benchmarks/results]

``ours``   ``convlens train FOLDER --recipe mnist-99 --no-report``, as a user calls it
``torch``  one process as well: read the IDX files, train the same net with the same optimizer, schedule,
           batches and number of epochs, keep the best epoch on the same number of dev pictures, judge the test
           part and save the weights. Everything resident and normalised, fused optimizer, nothing read back
           inside an epoch; once in NCHW and once in channels_last, of which the faster counts.

Processes alternate; medians of the rounds. Both sides use the same number of threads (``OMP_NUM_THREADS``).
"""

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEV = 6000


def idx(path: Path):
    import numpy as np

    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def rate_factor(done: float) -> float:
    """`convlens.training.schedule`'s one-cycle."""
    if done < 0.25:
        return 0.1 + 0.9 * done / 0.25
    return max(0.001, 0.5 * (1 + math.cos(math.pi * (done - 0.25) / 0.75)))


def peer(folder: Path, out: Path, channels_last: bool, seed: int, recipe: dict) -> None:
    """The whole program that a practised PyTorch user would write for this recipe."""
    import torch
    from torch import nn
    from torch.nn import functional

    begin = time.perf_counter()
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    parts = {}
    for part in ("train", "t10k"):
        pictures = torch.from_numpy(idx(folder / f"{part}-images-idx3-ubyte.gz").copy())
        parts[part] = (
            ((pictures.float() / 255 - 0.1307) / 0.3081)[:, None],
            torch.from_numpy(idx(folder / f"{part}-labels-idx1-ubyte.gz").copy()).long(),
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs, labels = parts["train"][0][DEV:].contiguous(memory_format=layout), parts["train"][1][DEV:]
    network = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).to(memory_format=layout)  # fmt: skip
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, recipe["learning_rate"], betas=(0.9, 0.99), fused=True)
    batch, epochs = recipe["batch_size"], recipe["epochs"]
    steps = -(-len(labels) // batch)

    def accuracy(part) -> float:
        with torch.inference_mode():
            pairs = zip(part[0].split(1000), part[1].split(1000), strict=True)
            return sum(int((network(x).argmax(1) == y).sum()) for x, y in pairs) / len(part[1])

    best = (-1.0, {})
    for epoch in range(epochs):
        order = torch.randperm(len(labels))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            for group in optimizer.param_groups:
                group["lr"] = recipe["learning_rate"] * rate_factor((epoch * steps + step) / (epochs * steps))
            loss = functional.cross_entropy(
                network(inputs[chosen]), labels[chosen], label_smoothing=recipe["label_smoothing"]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        dev = accuracy((parts["train"][0][:DEV], parts["train"][1][:DEV]))
        if dev > best[0]:
            best = (dev, {name: value.clone() for name, value in network.state_dict().items()})
    trained = time.perf_counter() - begin
    network.load_state_dict(best[1])
    result = {"test_accuracy": accuracy(parts["t10k"]), "seconds": trained}
    torch.save(network.state_dict(), out)
    print(json.dumps(result))


def timed(command: list[str]) -> dict:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    result = json.loads(done.stdout)
    return {"wall": wall, "training": result["seconds"], "test_accuracy": result["test_accuracy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", choices=("nchw", "channels_last"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        settings = json.loads(options.recipe)
        peer(options.mnist, options.to, options.peer == "channels_last", options.seed, settings)
        return
    from convlens.training import read_recipe

    settings = read_recipe("mnist-99")
    recipe = json.dumps(
        {name: settings[name] for name in ("epochs", "batch_size", "learning_rate", "label_smoothing")}
    )
    rows: dict[str, list[dict]] = {"ours": [], "torch nchw": [], "torch channels_last": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name, found in rows.items():
                to = f"{folder}/{name.replace(' ', '-')}-{number}"
                if name == "ours":
                    command = [
                        sys.executable,
                        "-m",
                        "convlens",
                        "train",
                        str(options.mnist),
                        "--recipe",
                        "mnist-99",
                    ]
                    command += ["--seed", str(number), "--out", to, "--no-report", "--json"]
                else:
                    command = [sys.executable, __file__, "--mnist", str(options.mnist), "--peer", name.split()[1]]
                    command += ["--seed", str(number), "--recipe", recipe, "--to", to]
                found.append(timed(command))
                print(number, name, found[-1], flush=True)
    medians = {name: statistics.median(row["wall"] for row in found) for name, found in rows.items()}
    best = min(value for name, value in medians.items() if name != "ours")
    print(medians, f"ours takes 1/{best / medians['ours']:.2f} of the best peer's time")
    if options.out:
        from convlens.bench.results import environment

        document = {"case": "MNIST to 99 %, command to saved model", "recipe": settings, "rows": rows}
        document |= {"median_wall_s": medians, "ours_is_faster_by": best / medians["ours"]}
        document |= {"threads_wanted": os.environ.get("OMP_NUM_THREADS"), "environment": environment()}
        (options.out / "mnist_99.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
