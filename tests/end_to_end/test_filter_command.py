"""`convlens filter` as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from convlens.cli._app import run_command_line


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_blur_keeps_size_and_mean(photo, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert (
        run_command_line(["filter", str(photo), "--kernel", "gaussian", "--sigma", "2", "-o", str(out), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["width"] == 30
    blurred = np.asarray(Image.open(out))
    assert blurred.shape == (20, 30, 3)
    assert abs(blurred.mean() - np.asarray(Image.open(photo)).mean()) < 2
    assert blurred.std() < np.asarray(Image.open(photo)).std() / 2


def test_flat_picture_has_no_edges(tmp_path):
    path = tmp_path / "flat.png"
    Image.new("L", (9, 9), 77).save(path)
    assert run_command_line(["filter", str(path), "--kernel", "sobel_x"]) == 0
    assert set(np.asarray(Image.open(tmp_path / "flat-sobel_x.png")).ravel()) == {128}


def test_numbers_and_hybrid(photo, tmp_path):
    assert run_command_line(["filter", str(photo), "--kernel", "0,0,0;0,1,0;0,0,0"]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "photo-custom.png")), np.asarray(Image.open(photo)))
    assert run_command_line(["filter", str(photo), "--hybrid", str(photo)]) == 0
    same = np.asarray(Image.open(tmp_path / "photo-hybrid.png")).astype(int)
    assert np.abs(same - np.asarray(Image.open(photo)).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{dir}/none.png"], "no such picture"),
        (["{dir}/text.png"], "cannot be read as a picture"),
        (["{photo}", "--kernel", "sobble"], "one of identity"),
        (["{photo}", "--kernel", "1,2;3"], "rows of equal length"),
        (["{photo}", "--border", "wrap"], "one of symmetric"),
    ],
)
def test_mistakes_are_explained(arguments, said, photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not a picture")
    filled = [argument.format(dir=tmp_path, photo=photo) for argument in arguments]
    assert run_command_line(["filter", *filled]) == 1
    assert said in capsys.readouterr().err
