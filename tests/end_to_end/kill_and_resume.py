"""Kill training at random moments, resume until it ends, and compare with a run that was never killed.

    python tests/end_to_end/kill_and_resume.py --kills 200 --folder /tmp/kills

``SIGKILL`` cannot be caught: whatever was half-written stays so. After every kill the newest checkpoint that is
whole must exist and be used; at the end every weight must have the same bits as in the undisturbed run.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

TRAIN = ["train", "digits", "--size", "16", "--threads", "1", "--epochs", "30", "--checkpoint-seconds", "0.05"]
SETTINGS = ["--no-report", "--optimizer", "adamw", "--ema", "0.95", "--dropout", "0.2"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "convlens", *arguments]


def environment() -> dict[str, str]:
    # Plans by estimate: a measured choice could differ between two processes that never met a checkpoint.
    return {**os.environ, "CONVLENS_PLAN": "estimate", "OMP_NUM_THREADS": "1"}


def run_with_kills(folder: Path, kills: int, generator: random.Random) -> tuple[int, int]:
    """Train into ``folder``, killed up to ``kills`` times; returns kills that hit and damaged files seen."""
    hits, arguments = 0, [*TRAIN, *SETTINGS, "--out", str(folder)]
    while True:
        again = ["--resume"] if (folder / "recipe.toml").exists() else []
        child = subprocess.Popen(
            command(*arguments, *again),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if hits < kills:
            wait_until_training(folder, child)
            # From at once to well into the run; training takes about two seconds.
            time.sleep(generator.uniform(0, 0.35))
            child.kill()
        _, error = child.communicate(timeout=300)
        # A kill between the last write and the end of the process finds nothing left to resume.
        if child.returncode == 0 or "this run has finished" in error:
            damaged = len(list(folder.glob("checkpoints/*.damaged")))
            return hits, damaged
        assert child.returncode == -9, error
        hits += 1


def wait_until_training(folder: Path, child: subprocess.Popen) -> None:
    """Until this process writes something (a kill while Python starts up proves nothing), or ends."""
    before = newest_change(folder)
    while child.poll() is None and newest_change(folder) == before:
        time.sleep(0.005)


def newest_change(folder: Path) -> float:
    times = [0.0]
    for path in folder.glob("**/*"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)


def weights(folder: Path) -> dict[str, bytes]:
    from convlens.modelfile.card import read_model

    return {name: tensor.numpy().tobytes() for name, tensor in read_model(folder)[0].items()}


def check(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill and resume in ``folder``; raises AssertionError where the outcome differs from an undisturbed run."""
    whole = folder / "whole"
    if not (whole / "model.safetensors").exists():
        arguments = command(*TRAIN, *SETTINGS, "--out", str(whole))
        subprocess.run(arguments, env=environment(), check=True, capture_output=True)
    generator, hits, damaged, number = random.Random(seed), 0, 0, 0
    while hits < kills:
        run = folder / f"killed-{number}"
        hit, bad = run_with_kills(run, min(kills - hits, 25), generator)
        assert weights(run) == weights(whole), f"{run}: other weights than the undisturbed run"
        hits, damaged, number = hits + max(hit, 1), damaged + bad, number + 1
    return hits, damaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    hits, damaged = check(options.folder, options.kills, options.seed)
    seconds = time.monotonic() - start
    print(f"{hits} kills in {seconds:.0f} s: every run ended with identical bits; {damaged} files set aside")


if __name__ == "__main__":
    main()
