"""`convlens plan` and `convlens bench layers` as a user runs them."""

from __future__ import annotations

import json

import pytest

from convlens import planner
from convlens.cli._app import run_command_line

SHAPES = ["--input", "1,2,6,6", "--weight", "3,2,3,3"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    yield
    planner.unpin()
    planner.set_precision("high")


def test_table_names_the_winner_and_the_reason(capsys):
    assert run_command_line(["plan", *SHAPES, "--padding", "1"]) == 0
    shown = capsys.readouterr().out
    assert "forward · 1,944 multiply-adds" in shown
    assert "→ vendor:" in shown


def test_verbose_says_what_was_compiled(capsys):
    arguments = [
        "plan",
        "--input",
        "2,16,20,20",
        "--weight",
        "16,16,3,3",
        "--padding",
        "1",
        "--direction",
        "forward",
    ]
    assert run_command_line([*arguments, "-v", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plans"][0]["problem"]["direction"] == "forward"
    assert {"name", "compile_s", "from_disk", "parameters"} == set(document["compiled"][0])
    assert run_command_line([*arguments, "-v"]) == 0
    assert "kernels made ready by this process" in capsys.readouterr().out


def test_json_export_and_pin(tmp_path, capsys):
    exported = tmp_path / "plans.json"
    assert run_command_line(["plan", *SHAPES, "--export", str(exported), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["problem"]["direction"] for record in records] == ["forward", "input_grad", "weight_grad"]
    assert run_command_line(["plan", *SHAPES, "--pin", str(exported)]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan"], 2, "expected --input and --weight"),
        (["plan", "--input", "1,x,3", "--weight", "1,1,1"], 2, "expected whole numbers"),
        (["plan", "--input", "1,2,6,6", "--weight", "3,4,3,3"], 1, "2/1 = 2 channels per group"),
        (["plan", "--input", "1,2,6,6", "--weight", "3,2,9,9"], 1, "a window that fits (6, 6)"),
        (["plan", *SHAPES, "--direction", "sideways"], 2, "received 'sideways'"),
        (["plan", *SHAPES, "--precision", "best"], 1, "'exact' or 'high' or 'fast'"),
        (["plan", *SHAPES, "--algorithm", "magic"], 1, "received 'magic'"),
        (["bench", "layers", "lenet9"], 1, "received 'lenet9'"),
        (["bench", "layers", "--direction", "up"], 2, "received 'up'"),
        (["bench", "nets", "lenet9"], 1, "received 'lenet9'"),
    ],
)
def test_mistakes_are_explained(arguments, code, said, capsys):
    assert run_command_line(arguments) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_clear(capsys):
    assert run_command_line(["plan", "--clear"]) == 0
    assert "forgot 0 measurements" in capsys.readouterr().err


def test_bench_layers_writes_results(tmp_path, capsys):
    arguments = ["bench", "layers", "depthwise_1d", "--direction", "forward", "--repeats", "3", "--budget", "0"]
    assert run_command_line([*arguments, "--out", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][0]["name"] == "depthwise_1d"
    assert (tmp_path / "layers.svg").exists()


def test_bench_nets_writes_results(tmp_path, capsys):
    arguments = ["bench", "nets", "lenet5", "--batch", "2", "--repeats", "3", "--budget", "0", "--no-compile"]
    assert run_command_line([*arguments, "--out", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["rows"]
    assert (row["name"], row["batch"]) == ("lenet5", 2)
    assert row["way"].startswith("one program")
    assert set(document["geometric_mean_ratio"]) == set(row["ratios"]) >= {"torch"}
    assert (tmp_path / "nets.svg").exists()
    assert run_command_line([*arguments]) == 0
    assert "time of a peer" in capsys.readouterr().out


def test_bench_train_writes_results(tmp_path, capsys):
    arguments = [
        "bench",
        "train",
        "--samples",
        "512",
        "--rounds",
        "1",
        "--usual-rounds",
        "0",
        "--out",
        str(tmp_path),
    ]
    assert run_command_line([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in document["rows"]] == ["convlens", "torch", "torch channels_last"]
    assert "512 samples" in document["case"]
    assert (tmp_path / "train.svg").exists()
