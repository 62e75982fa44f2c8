"""``torchrun``: the result of one process with the same global batch; a lost process costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from convlens.modelfile.card import read_model

TRAIN = [
    "-m",
    "convlens",
    "train",
    "digits",
    "--size",
    "16",
    "--epochs",
    "1",
    "--no-report",
]
TRAIN += ["--json", "--learning-rate", "0.02", "--optimizer", "sgd", "--threads", "1", "--schedule", "constant"]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "CONVLENS_PLAN": "estimate", "OMP_NUM_THREADS": "1"}


def _run(here, out, processes, *extra):
    return _json(here, processes, *TRAIN, "--out", out, *extra)


def _json(here, processes, *arguments):
    done = subprocess.run(
        [sys.executable, *(TORCHRUN if processes > 1 else []), *arguments],
        cwd=here,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch was built without distributed")
def test_two_processes_train_as_one(tmp_path):
    """Five steps of a net without batch norm, from the command to the model file."""
    alone = _run(tmp_path, "alone", 1, "--model", "lenet5", "--batch-size", "216")
    together = _run(tmp_path, "together", 2, "--model", "lenet5", "--batch-size", "216")
    assert together["test_samples"] == alone["test_samples"]
    assert together["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.006)
    first, second = read_model(tmp_path / "alone")[0], read_model(tmp_path / "together")[0]
    assert _apart(first, second, 5e-4) < 0.02
    # the comparison can fail
    assert _apart(first, {name: tensor * 1.5 for name, tensor in second.items()}, 5e-4) > 0.3


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch was built without distributed")
def test_batch_norm_sees_the_global_batch(tmp_path):
    """Seventeen steps with batch norm in float64: all weights and statistics agree to nine digits."""
    script = str(Path(__file__).with_name("team_steps.py"))
    for out, launch in (("one", []), ("two", TORCHRUN)):
        command = [sys.executable, *launch, script, str(tmp_path / out)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    first, second = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert any(tensor.dtype == torch.float64 for tensor in first.values()) and len(first) > 20
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-9, atol=1e-11, msg=name)


def _apart(first, second, tolerance):
    """The largest share of a tensor's values that are apart.

    Values, not norms: rounding may turn a unit that is just at its threshold, which moves a few weights of one
    filter by that sample's whole share; wrong statistics would move all of them.
    """
    shares = []
    for name, tensor in first.items():
        far = (second[name] - tensor).abs() > tolerance + 1e-2 * tensor.abs()
        assert tensor.isfinite().all()
        shares.append(float(far.float().mean()))
    return max(shares)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch was built without distributed")
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_killed_process_costs_nothing(tmp_path):
    """torchrun starts the team again, and it ends with the bits of a team that was never disturbed."""
    train = [*TRAIN, "--epochs", "3", "--checkpoint-seconds", "0.05"]
    _json(tmp_path, 2, *train, "--out", "whole")
    launcher = subprocess.Popen(
        [sys.executable, *TORCHRUN, "--max-restarts", "1", *train],  # --out is not needed
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_steps(tmp_path / "runs", launcher)
    os.kill(_children(launcher.pid)[1], signal.SIGKILL)
    told = launcher.communicate(timeout=240)[1]
    assert launcher.returncode == 0, told
    assert "resumed after step" in told and "another process was lost" in told and "Traceback" not in told
    (run,) = (tmp_path / "runs").iterdir()
    first, second = read_model(tmp_path / "whole")[0], read_model(run)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    _shares_are_as_one(tmp_path, str(run))


def _shares_are_as_one(here, run):
    """Two processes evaluate and predict as one does; the look is counted once."""
    names = [str(here / f"{number}.png") for number in range(130)]
    for number, name in enumerate(names):
        Image.new("L", (16, 16), number).save(name)
    command = ["-m", "convlens"]
    scores = [_json(here, count, *command, "evaluate", run, "--json") for count in (1, 2)]
    assert scores[0]["accuracy"] == scores[1]["accuracy"] and len(scores[1]["test_evaluations"]) == 3
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-6)
    answers = [_json(here, count, *command, "predict", run, *names, "--json") for count in (1, 2)]
    assert len(answers[0]) == 130 and answers[0] == answers[1]


def _wait_for_steps(runs, launcher):
    end = time.monotonic() + 120
    while not [path for path in runs.glob("*/checkpoints/step-*") if int(path.stem[5:]) > 1]:
        assert launcher.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def _children(process):
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
