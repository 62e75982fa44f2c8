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
@pytest.mark.parametrize(("model", "batch", "tolerance"), [("lenet5", "216", 5e-4), ("convnet-s", "1082", 2e-5)])
def test_two_processes_train_as_one(tmp_path, model, batch, tolerance):
    """Five steps of a net without batch norm; one strict step of a net with it.

    Batch norm amplifies rounding from step to step, so that several steps would show nothing; statistics that
    were not synchronised change the very first gradient.
    """
    alone = _run(tmp_path, "alone", 1, "--model", model, "--batch-size", batch)
    together = _run(tmp_path, "together", 2, "--model", model, "--batch-size", batch)
    assert together["test_samples"] == alone["test_samples"]
    assert together["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.006)
    first, second = read_model(tmp_path / "alone")[0], read_model(tmp_path / "together")[0]
    assert _apart(first, second, tolerance) < 0.02
    # the comparison can fail
    assert _apart(first, {name: tensor * 1.5 for name, tensor in second.items()}, tolerance) > 0.3


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
