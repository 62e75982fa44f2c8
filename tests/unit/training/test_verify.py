"""`verify_resume` proves identity, and notices a difference."""

import pytest
import torch

from convlens.errors import TrainingError
from convlens.training import checkpoint as checkpoint_module
from convlens.training import loop as loop_module
from convlens.training import train
from convlens.training.checkpoint import FORMAT_VERSION, KIND, checkpoint_files
from convlens.training.verify import verify_resume


@pytest.mark.parametrize("every_epoch", [True, False], ids=["two checkpoints", "from the start"])
def test_a_run_is_proved(recipe, tmp_path, monkeypatch, every_epoch):
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "SAVE_SECONDS", 0 if every_epoch else 1e9)
        train(recipe.with_settings(dropout=0.2, ema=0.9), tmp_path / "run")
    files = checkpoint_files(tmp_path / "run" / "checkpoints")
    found = verify_resume(tmp_path / "run")
    assert found.identical, found.different
    assert found.to_step == 12
    assert found.from_step < found.stopped_at < found.to_step
    assert found.tensors > 20
    assert files == checkpoint_files(tmp_path / "run" / "checkpoints")


def test_a_difference_of_one_bit_is_found(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    newest = checkpoint_files(tmp_path / "run" / "checkpoints")[0]
    tensors, record = checkpoint_module.read_container(newest, KIND, FORMAT_VERSION)
    name = next(name for name in tensors if name.startswith("network/") and name.endswith("bias"))
    tensors[name] = tensors[name].clone()
    tensors[name].view(torch.int32)[0] ^= 1
    record["best"]["epoch"] = 99
    checkpoint_module.write_container(newest, KIND, FORMAT_VERSION, tensors, record)
    found = verify_resume(tmp_path / "run")
    assert not found.identical
    assert set(found.different) == {name, "best"}


def test_what_cannot_be_proved_is_said(recipe, tmp_path):
    train(recipe.with_settings(time_budget="0.1s"), tmp_path / "budget")
    with pytest.raises(TrainingError, match="time budget"):
        verify_resume(tmp_path / "budget")
    train(recipe, tmp_path / "run")
    for file in checkpoint_files(tmp_path / "run" / "checkpoints"):
        file.unlink()
    with pytest.raises(TrainingError, match="no checkpoint after its first step"):
        verify_resume(tmp_path / "run")
