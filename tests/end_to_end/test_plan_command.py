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
