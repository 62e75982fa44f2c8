"""The commands as a user types them: what they print, write and return, and every error with its one paragraph."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import convlens
from convlens.cli._app import run_command_line

QUICK = ["--epochs", "2", "--size", "16", "--threads", "1", "--no-report"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and a few pictures, shared by the tests that only read them."""
    folder = tmp_path_factory.mktemp("finished")
    run = folder / "runs" / "digits-lenet5-1"
    assert run_command_line(["train", "digits", "--out", str(run), *QUICK]) == 0
    for number, picture in enumerate(load_digits().images[:3]):
        Image.fromarray((picture * 15.9).astype(np.uint8)).save(folder / f"digit{number}.png")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _json(capsys, *arguments):
    capsys.readouterr()
    code = run_command_line(list(arguments))
    return code, json.loads(capsys.readouterr().out)


def test_train_prints_accuracy_run_and_next_commands(here, capsys):
    assert run_command_line(["train", "digits", *QUICK]) == 0
    captured = capsys.readouterr()
    assert "Test accuracy" in captured.out
    assert "Run: runs/digits-lenet5-1" in captured.out
    commands = [line.split()[1] for line in captured.out.splitlines() if line.startswith("  convlens ")]
    assert len(commands) == 3
    assert "epoch 2" in captured.err
    assert sorted(path.name for path in (here / "runs/digits-lenet5-1").iterdir() if path.suffix != ".html") == [
        "checkpoints",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.toml",
    ]
    assert run_command_line(["train", "digits", *QUICK]) == 0
    assert (here / "runs/digits-lenet5-2/model.safetensors").exists()


def test_the_recipe_of_a_run_gives_the_same_run(here, capsys):
    code, first = _json(capsys, "train", "digits", *QUICK, "--seed", "3", "--json", "--optimizer", "sgd")
    assert code == 0
    again = ["train", "--recipe", "runs/digits-lenet5-1/recipe.toml", "--out", "again", "--json", "--no-report"]
    code, second = _json(capsys, *again)
    assert code == 0
    assert second["test_accuracy"] == first["test_accuracy"]
    assert second["dev_accuracy"] == first["dev_accuracy"]
    weights = [convlens.load(run).model.state_dict() for run in ("runs/digits-lenet5-1", "again")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_runs_lists_finished_unfinished_and_damaged(finished, here, capsys):
    shutil.copytree(finished / "runs", here / "runs")
    shutil.copytree(here / "runs/digits-lenet5-1", here / "runs/digits-lenet5-2")
    (here / "runs/digits-lenet5-2/model.safetensors").unlink()
    shutil.copytree(here / "runs/digits-lenet5-1", here / "runs/digits-lenet5-10")
    damaged = here / "runs/digits-lenet5-10/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, runs = _json(capsys, "runs", "--json")
    assert code == 0
    assert [run["run"] for run in runs] == [f"runs/digits-lenet5-{n}" for n in (1, 2, 10)]
    assert [run["status"].partition(":")[0] for run in runs] == ["finished", "unfinished", "damaged"]
    assert 0 < runs[0]["test_accuracy"] <= 1
    assert run_command_line(["runs"]) == 0
    assert "digits-lenet5-10" in capsys.readouterr().out
    assert run_command_line(["runs", "nowhere"]) == 1


def test_no_runs_yet(here, capsys):
    assert run_command_line(["runs"]) == 0
    assert "convlens train digits" in capsys.readouterr().out
    assert _json(capsys, "runs", "--json") == (0, [])


def test_evaluate_counts_each_look_at_the_test_part(finished, here, capsys):
    shutil.copytree(finished / "runs/digits-lenet5-1", here / "run")
    before = convlens.load("run").metadata["test_evaluations"]
    code, found = _json(capsys, "evaluate", "run", "--json")
    assert code == 0
    assert found["test_accuracy"] == pytest.approx(before[0]["accuracy"])
    assert len(found["test_evaluations"]) == len(before) + 1 == 2
    assert run_command_line(["evaluate", "run", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "Accuracy" in printed
    assert "look number 3" in printed


def test_evaluate_on_folders_of_pictures(finished, here, capsys):
    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images[:200], digits.target, strict=False)):
        folder = here / "data" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
    shutil.copytree(finished / "runs/digits-lenet5-1", here / "run")
    code, found = _json(capsys, "evaluate", "run", "data", "--json")
    assert code == 0
    assert (found["part"], found["samples"]) == ("all", 200)
    assert found["accuracy"] > 0.5
    assert len(found["test_evaluations"]) == 1
    (here / "data/extra").mkdir()
    Image.new("L", (8, 8)).save(here / "data/extra/0.png")
    assert run_command_line(["evaluate", "run", "data"]) == 1
    assert "expected the model's classes" in capsys.readouterr().err


def test_predict_takes_files_globs_folders_and_stdin(finished, here, capsys, monkeypatch):
    run = str(finished / "runs/digits-lenet5-1")
    code, rows = _json(
        capsys, "predict", run, str(finished / "digit0.png"), str(finished / "digit[12].png"), "--json"
    )
    assert code == 0
    assert [row["path"] for row in rows] == [str(finished / f"digit{n}.png") for n in range(3)]
    assert rows[0].keys() == {"path", "label", "probability", "top"}
    assert rows[0]["top"][0] == {"label": rows[0]["label"], "probability": rows[0]["probability"]}
    (here / "inner").mkdir()
    shutil.copy(finished / "digit1.png", here / "inner")
    code, (from_folder,) = _json(capsys, "predict", run, "inner", "--json")
    with open(finished / "digit1.png", "rb") as file:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": file}))
        code, (from_stdin,) = _json(capsys, "predict", run, "-", "--json", "--top", "1")
    assert from_folder["label"] == from_stdin["label"] == rows[1]["label"]
    assert len(from_stdin["top"]) == 1
    assert run_command_line(["predict", run, "inner"]) == 0
    assert "inner/digit1.png" in capsys.readouterr().out


def test_predict_names_what_it_cannot_decode_and_does_the_rest(finished, here, capsys):
    (here / "text.png").write_text("not a picture")
    run = str(finished / "runs/digits-lenet5-1")
    capsys.readouterr()
    code = run_command_line(["predict", run, "text.png", str(finished / "digit0.png"), "--json"])
    captured = capsys.readouterr()
    assert code == 1
    assert len(json.loads(captured.out)) == 1
    assert "text.png" in captured.err


def test_summary_of_a_name_and_of_a_run(finished, capsys):
    code, found = _json(capsys, "summary", "lenet5-1998", "--json")
    assert code == 0
    assert found["rows"]
    assert run_command_line(["summary", str(finished / "runs/digits-lenet5-1")]) == 0
    assert "multiply-adds" in capsys.readouterr().out
    assert run_command_line(["summary", "lenet5", "--input", "3,40,40", "--classes", "7"]) == 0
    assert run_command_line(["summary", "lenet5", "--input", "wide"]) == 2
    assert run_command_line(["summary", "lenet6"]) == 1
    assert "lenet5" in capsys.readouterr().err


def test_verify_resume(finished, capsys):
    code, found = _json(capsys, "verify-resume", str(finished / "runs/digits-lenet5-1"), "--json")
    assert (code, found["identical"], found["different"]) == (0, True, [])
    assert run_command_line(["verify-resume", str(finished / "runs/digits-lenet5-1")]) == 0
    assert "Identical" in capsys.readouterr().out


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def _newer(path):
    path.write_bytes(path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"2"'))


def _foreign(path):
    path.write_bytes(b"GIF89a" + bytes(100))


@pytest.mark.parametrize(
    ("spoil", "text"), [(_truncated, "truncated"), (_newer, "newer convlens"), (_foreign, "not a convlens file")]
)
@pytest.mark.parametrize("command", ["predict", "evaluate", "summary"])
def test_model_files_that_are_refused(finished, here, capsys, command, spoil, text):
    shutil.copy(finished / "runs/digits-lenet5-1/model.safetensors", here / "m.safetensors")
    spoil(here / "m.safetensors")
    capsys.readouterr()
    files = [str(finished / "digit0.png")] if command == "predict" else []
    assert run_command_line([command, "m.safetensors", *files]) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def _nothing(here):
    return "nowhere"


def _empty(here):
    (here / "empty").mkdir()
    return "empty"


def _one_class(here):
    (here / "one" / "cats").mkdir(parents=True)
    for number in range(5):
        Image.new("L", (9, 9), number).save(here / "one/cats" / f"{number}.png")
    return "one"


def _no_pictures(here):
    for name in ("a", "b"):
        (here / "bad" / name).mkdir(parents=True)
        (here / "bad" / name / "x.png").write_text("text")
    return "bad"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_nothing, "nowhere: no such file or folder"),
        (_empty, "empty"),
        (_one_class, "one class"),
        (_no_pictures, "bad"),
    ],
)
def test_data_that_cannot_be_trained_on(here, capsys, make, text):
    source = make(here)
    assert run_command_line(["train", source]) == 1
    error = capsys.readouterr().err
    assert text in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["train", "digits", "--device", "cuda:9"], 1, "no CUDA device|CUDA device"),
        (["train", "digits", "--device", "gpu"], 2, "Did you mean 'cpu'"),
        (["train", "digits", "--optimizer", "adam"], 2, "expected one of sgd, rmsprop, adamw"),
        (["train", "digits", "--epochs", "0"], 2, "--epochs"),
        (["train", "digits", "--learning-rat", "1"], 2, "--learning-rate"),
        (["train", "digits", "--model", "lenet6"], 1, "lenet5"),
        (["train", "digits", "--model-option", "nonsense=1"], 1, "nonsense"),
        (["train", "digits", "--recipe", "none.toml"], 1, "no such recipe file"),
        (["train"], 2, "DATA"),
        (["train", "digits", "--resume"], 1, "no unfinished run"),
        (["train", "digits", "--out", "nowhere", "--resume"], 1, "no such run"),
        (["predict", "nowhere", "x.png"], 1, "no such run or model file"),
        (["predict"], 2, "Missing argument"),
        (["evaluate", "nowhere"], 1, "no such run or model file"),
        (["verify-resume", "nowhere"], 1, "no such run"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_errors_say_what_is_wrong(here, capsys, arguments, code, text):
    import re

    assert run_command_line(arguments) == code
    error = re.sub(r"[│\s]+", " ", capsys.readouterr().err)
    assert re.search(text, error), error
    assert "Traceback" not in error
    assert not (here / "runs").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(here, capsys):
    (here / "locked").mkdir(mode=0o500)
    assert run_command_line(["train", "digits", "--out", "locked/run", *QUICK]) == 1
    assert "no permission" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /proc, which nobody may write to")
def test_a_place_that_cannot_be_written(here, capsys):
    assert run_command_line(["train", "digits", "--out", "/proc/nowhere/run", *QUICK]) == 1
    assert "Traceback" not in capsys.readouterr().err
    (here / "file").write_text("")
    assert run_command_line(["train", "digits", "--out", "file", *QUICK]) == 1
    assert "expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "sent"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_saves_and_prints_how_to_go_on(here, capsys, number, sent):
    command = [
        sys.executable,
        "-m",
        "convlens",
        "train",
        "digits",
        "--size",
        "16",
        "--threads",
        "1",
        "--no-report",
    ]
    child = subprocess.Popen(
        [*command, "--epochs", "5000", "--out", "run"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (here / "run/metrics.jsonl").exists() or not (here / "run/metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "convlens train digits --out run --resume" in error
    assert "Traceback" not in error
    code, found = _json(capsys, "verify-resume", "run", "--json")
    assert (code, found["identical"]) == (0, True)


def test_resume_refuses_other_settings(here, capsys):
    child = [sys.executable, "-m", "convlens", "train", "digits", *QUICK, "--out", "run"]
    assert subprocess.run(child, capture_output=True, timeout=120).returncode == 0
    (here / "run/model.safetensors").unlink()
    assert run_command_line(["train", "digits", "--out", "run", "--resume", "--seed", "9"]) == 2
    assert "seed" in capsys.readouterr().err
    assert run_command_line(["train", "digits", "--out", "run", "--resume", "--epochs", "2", "--no-report"]) == 0
    assert "Test accuracy" in capsys.readouterr().out


def test_doctor_of_a_run_and_of_a_network(finished, capsys):
    code, found = _json(capsys, "doctor", str(finished / "runs/digits-lenet5-1"), "--json")
    assert code == 0
    assert {"kind", "severity", "text", "fix"} <= found["findings"][0].keys()
    assert len(found["layers"]) == 5
    assert run_command_line(["doctor", str(finished / "runs/digits-lenet5-1")]) == 0
    assert "|gradient|" in capsys.readouterr().out
    assert run_command_line(["doctor", "vgg16"]) == 0
    assert "Weights" in capsys.readouterr().out
    assert run_command_line(["doctor", "resnet20"]) == 0


def test_tune_prints_the_next_command(here, capsys):
    pytest.importorskip("optuna", reason="needs optuna: pip install 'convlens[tune]'")
    flags = ["--trials", "2", "--seeds", "2", "--epochs", "1", "--size", "16", "--threads", "1"]
    assert run_command_line(["tune", "digits", "--search", "dropout=0:0.3", *flags]) == 0
    printed = capsys.readouterr().out
    assert "The recipe as it is" in printed
    assert "convlens train digits --recipe runs/tune-digits/best.toml" in printed
    assert run_command_line(["tune", "digits", "--method", "luck"]) == 2
    assert run_command_line(["tune", "digits", "--search", "dropout=5:9"]) == 1
