"""Nothing is lost: a run that was stopped anywhere goes on bit for bit, also past damaged checkpoints."""

import errno

import pytest
import torch

from convlens.errors import ModelFileError, StorageError, TrainingError
from convlens.modelfile.card import read_model
from convlens.training import Events, Interrupted, train
from convlens.training import checkpoint as checkpoint_module
from convlens.training import loop as loop_module
from convlens.training.checkpoint import Checkpoint, checkpoint_files, load_newest, save_checkpoint

EVERYTHING = {
    "optimizer": "adamw", "dropout": 0.3, "ema": 0.9, "clip_norm": 1.0, "max_norm": 3.0, "label_smoothing": 0.1,
    "warmup_epochs": 0.5,
}  # fmt: skip


class StopAt(Events):
    """Asks to stop after a given number of steps, as Ctrl-C does."""

    def __init__(self, monkeypatch, step):
        original = loop_module.Trainer._step

        def counted(trainer, inputs, labels):
            original(trainer, inputs, labels)
            if trainer.progress.step + 1 == step:
                trainer.stop.ask()

        monkeypatch.setattr(loop_module.Trainer, "_step", counted)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def _weights(run):
    return read_model(run)[0]


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_comparing_weights_can_fail():
    with pytest.raises(AssertionError):
        _assert_equal({"a": torch.zeros(1)}, {"a": torch.full((1,), 1e-30)})


@pytest.mark.parametrize("step", [1, 5, 6, 7, 11])
@pytest.mark.parametrize(
    "settings", [EVERYTHING, {"optimizer": "sgd"}, {"optimizer": "rmsprop"}, {"optimizer": "muon"}]
)
def test_a_stopped_run_ends_with_the_same_bits(recipe, tmp_path, monkeypatch, settings, step):
    recipe = recipe.with_settings(**settings)
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"after step {step} "):
        train(recipe, tmp_path / "stopped", events=StopAt(patch, step))
    resumed = train(recipe, tmp_path / "stopped", resume=True)
    _assert_equal(_weights(tmp_path / "whole"), _weights(tmp_path / "stopped"))
    assert resumed.test == whole.test
    timeless = [
        [{k: v for k, v in epoch.items() if "second" not in k} for epoch in result.run.metrics()]
        for result in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0)
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", events=StopAt(patch, 9))
    newest, older = checkpoint_files(tmp_path / "run" / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    events = StopAt(monkeypatch, -1)
    train(recipe, tmp_path / "run", resume=True, events=events)
    assert any(newest.name in note and "damaged" in note for note in events.notes)
    assert any("resumed after step 6" in note for note in events.notes)
    assert newest.with_name(newest.name + ".damaged").exists()
    assert older.name == "step-000000006.safetensors"
    _assert_equal(_weights(whole.run.path), _weights(tmp_path / "run"))


def test_without_a_good_checkpoint_the_run_begins_again(recipe, tmp_path, monkeypatch):
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", events=StopAt(patch, 3))
    for path in checkpoint_files(tmp_path / "run" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:100])
    events = StopAt(monkeypatch, -1)
    train(recipe, tmp_path / "run", resume=True, events=events)
    assert any("begins again from its first step" in note for note in events.notes)
    _assert_equal(_weights(whole.run.path), _weights(tmp_path / "run"))


def test_a_full_disk_leaves_the_last_good_checkpoint(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "SAVE_SECONDS", 0)
    written = []
    original = checkpoint_module.write_container

    def fills_up(path, *args):
        if len(written) == 2:
            with checkpoint_module_atomic.storage_errors(path):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, *args)
        written.append(path)

    from convlens.modelfile import atomic as checkpoint_module_atomic

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_container", fills_up)
        with pytest.raises(StorageError, match="no space is left"):
            train(recipe, tmp_path / "run")
    assert load_newest(tmp_path / "run" / "checkpoints", pytest.fail).step == 6
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "run", resume=True)
    _assert_equal(_weights(whole.run.path), _weights(tmp_path / "run"))


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, Checkpoint({"a": torch.zeros(1)}, {"step": step}))
    assert [path.name for path in checkpoint_files(tmp_path)] == [
        "step-000000004.safetensors",
        "step-000000003.safetensors",
    ]


def test_changed_data_is_not_resumed(recipe, tmp_path, monkeypatch, small_digits):
    import dataclasses

    from convlens.training import session

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", events=StopAt(patch, 3))
    changed = dataclasses.replace(small_digits, fingerprint="another")
    monkeypatch.setattr(session.data, "open", lambda source, options=None: changed)
    with pytest.raises(TrainingError, match="changed since the run began"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_run_is_never_overwritten(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already"):
        train(recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match="has finished"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_checkpoint_is_no_model(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(ModelFileError, match="expected a convlens-model file, received a 'convlens-checkpoint'"):
        read_model(checkpoint_files(tmp_path / "run" / "checkpoints")[0])
