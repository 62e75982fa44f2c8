"""``torchrun`` with two processes gives the result of one process with the same global batch, to rounding."""

import json
import os
import subprocess
import sys

import pytest
import torch

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
    "--batch-size",
    "216",
    "--no-report",
]
TRAIN += ["--json", "--learning-rate", "0.02", "--optimizer", "sgd", "--threads", "1", "--schedule", "constant"]


def _run(here, out, processes, *extra):
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "CONVLENS_PLAN": "estimate", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *TRAIN, "--out", out, *extra],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch was built without distributed")
@pytest.mark.parametrize("model", ["lenet5", "convnet-s"])
def test_two_processes_train_as_one(tmp_path, model):
    alone = _run(tmp_path, "alone", 1, "--model", model)
    together = _run(tmp_path, "together", 2, "--model", model)
    assert together["test_samples"] == alone["test_samples"]
    assert together["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.006)
    first, second = read_model(tmp_path / "alone")[0], read_model(tmp_path / "together")[0]
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, rtol=1e-2, atol=5e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
