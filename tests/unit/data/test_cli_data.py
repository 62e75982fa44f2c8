"""The commands ``data`` and ``doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from convlens.cli._app import run_command_line

from .conftest import PictureFolder


def test_info_as_json(pictures: PictureFolder, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.fill(each=12)
    assert run_command_line(["data", "info", str(pictures.root), "--json", "--size", "8x6"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 24
    assert found["shape"] == [3, 8, 6]
    assert sum(found["split"].values()) == 24
    assert sum(found["classes"]["cat"].values()) == 12


def test_info_as_text(pictures: PictureFolder, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.fill(each=12)
    (pictures.root / "cat" / "bad.png").write_text("text")
    assert run_command_line(["data", "info", str(pictures.root)]) == 0
    out = capsys.readouterr().out
    assert "24 images 3×10×12, 2 classes" in out
    assert "left out:" in out and "bad.png" in out


def test_preview_writes_a_picture(
    pictures: PictureFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures.fill(each=12)
    out = tmp_path / "seen.png"
    arguments = ["data", "preview", str(pictures.root), "--out", str(out), "--samples", "3", "--versions", "2"]
    assert run_command_line([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    with Image.open(out) as sheet:
        assert sheet.size == (said["width"], said["height"])
        assert len(sheet.getcolors(1 << 24) or []) > 100
    assert said["augmentation"]["mirror"] is True


def test_preview_that_cannot_be_written(pictures: PictureFolder, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.fill(each=12)
    assert run_command_line(["data", "preview", str(pictures.root), "--out", "/nowhere/at/all.png"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_doctor(pictures: PictureFolder, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.fill(each=30)
    assert run_command_line(["doctor", str(pictures.root)]) == 0
    assert "Nothing found." in capsys.readouterr().out
    (pictures.root / "cat" / "bad.png").write_text("text")
    assert run_command_line(["doctor", str(pictures.root)]) == 0
    assert "Fix: copy them again" in capsys.readouterr().out
    assert run_command_line(["doctor", str(pictures.root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["what"] for finding in found] == ["files that cannot be decoded"]


@pytest.mark.parametrize("arguments", [["data", "info", "/nowhere"], ["doctor", "/nowhere"]])
def test_no_such_data(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(arguments) == 1
    assert "no such file or folder" in capsys.readouterr().err
