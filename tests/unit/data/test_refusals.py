"""What is refused and how it is said; previews of every kind of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convlens import data
from convlens.data.augmentation import default_augmentation
from convlens.data.preview import preview, sample_picture
from convlens.errors import BadFileError, ConvlensError, DataError, PathError, RecipeError

DRAW = np.random.default_rng(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "every side must be at least 1"),
        ({"split": (0.5, 0.5, 0.5)}, "fractions that add up to 1"),
        ({"patch": 4}, "must be odd"),
        ({"fit": "squash"}, "'crop', 'pad' or 'stretch'"),
        ({"on_bad_file": "cry"}, "'skip' or 'fail'"),
    ],
)
def test_impossible_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=f"Data option {next(iter(options))}.*{said}"):
        data.open("digits", **options)


@pytest.mark.parametrize(
    ("kind", "channels", "size", "raw", "said"),
    [
        ("signal", 1, (4,), b"\xff\xfe", "neither a .npy file nor numbers"),
        ("signal", 1, (4,), "nowhere.npy", "no such file"),
        ("sequence", 4, (4,), b"\xff\xfe", "is not a text of letters"),
        ("sequence", 4, (4,), 5, "expected letters"),
        ("sequence", 4, (4,), b">only a header", "expected letters"),
        ("volume", 1, (4, 4, 4), np.zeros((2, 2)), "expected a volume"),
        ("volume", 1, (4, 4, 4), "nowhere.npy", "no such file"),
        ("volume", 1, (4, 4, 4), "nowhere.nii", "no such file"),
        ("volume", 1, (4, 4, 4), b"\x93NUMPY", "is not a whole .npy file"),
        ("spectral", 3, (1, 1), np.zeros((4, 1, 1)), "expected a patch"),
        ("spectral", 3, (1, 1), "nowhere.npy", "no such file"),
    ],
)
def test_raw_inputs_that_do_not_fit(kind: Any, channels: int, size: tuple[int, ...], raw: Any, said: str) -> None:
    form = data.Preprocessing(kind=kind, channels=channels, size=size, dtype="float32")
    with pytest.raises((BadFileError, PathError), match=said):
        form.decode(raw)


def test_preprocessing_that_contradicts_itself() -> None:
    with pytest.raises(ValueError, match="a signal has 1 spatial axes"):
        data.Preprocessing(kind="signal", channels=1, size=(4, 4))
    with pytest.raises(ValueError, match="expected one value for each of 2 channels"):
        data.Preprocessing(kind="signal", channels=2, size=(4,), mean=(0.0,))


def test_files_and_letters_of_a_sequence(tmp_path: Path) -> None:
    form = data.Preprocessing(kind="sequence", channels=4, size=(4,), alphabet="ACGT", fit="pad")
    (tmp_path / "one.fa").write_text(">name\nAC\nGT\n")
    np.testing.assert_array_equal(form.decode(tmp_path / "one.fa"), np.eye(4))
    np.testing.assert_array_equal(form.decode(str(tmp_path / "one.fa")), np.eye(4))
    np.testing.assert_array_equal(form.decode("acgu"), np.eye(4))
    np.testing.assert_array_equal(form.model_copy(update={"fit": "crop"}).decode("NNACGTNN"), np.eye(4))
    assert form.decode("NACG")[:, 0].sum() == 0


def test_signal_files(tmp_path: Path) -> None:
    form = data.Preprocessing(kind="signal", channels=2, size=(3,), dtype="float32")
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    (tmp_path / "a.txt").write_text("0 3\n1 4\n2 5\n")
    np.testing.assert_array_equal(form.decode(tmp_path / "a.npy"), form.decode(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((4, 5)), "y": np.zeros(3)}, "4 samples but 3 labels"),
        ({"x": np.zeros((4, 5)), "y": np.arange(8).reshape(4, 2)}, "must hold 0 and 1 only"),
        ({"x": np.zeros((4, 2, 2, 2, 2, 2)), "y": np.arange(4)}, "neither signals, pictures nor volumes"),
        ({"x": np.zeros((4, 5)), "y": np.zeros(4)}, "all 4 samples are of one class"),
    ],
)
def test_arrays_that_are_no_data_set(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=said):
        data.open(tmp_path / "a.npz")


def test_one_hot_and_several_labels_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=DRAW.normal(size=(12, 9)), y=np.eye(3)[np.arange(12) % 3])
    assert data.open(tmp_path / "one.npz").labels.tolist() == [0, 1, 2] * 4
    np.savez(tmp_path / "many.npz", x=DRAW.normal(size=(12, 9)), y=np.tile([[1, 1], [0, 1]], (6, 1)))
    assert data.open(tmp_path / "many.npz").multilabel


def test_groups_in_an_npz_stay_together(tmp_path: Path) -> None:
    groups = np.repeat(np.arange(30), 4)
    np.savez(tmp_path / "a.npz", x=DRAW.normal(size=(120, 9)), y=np.arange(120) % 2, groups=groups)
    dataset = data.open(tmp_path / "a.npz")
    parts = [set(groups[dataset.splits[part]].tolist()) for part in data.SPLITS]
    assert sum(map(len, parts)) == 30


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"path,other\nx.png,1\n", "has no column 'label'"),
        ("a.csv", b"path,label\n", "holds a header but no rows"),
        ("a.fasta", b">x label=a\n>y label=b\nACGT\n", "has no letters"),
        ("a.fasta", b"ACGT\n", "holds no FASTA record"),
        ("a.fasta", b"\xff\xfe\x00", "is not a text"),
        ("a.mat", b"not a matrix", "is not a whole MATLAB file"),
        ("a.parquet", b"not a table", "is not a whole Parquet file"),
        ("a.tar", b"not a tar" * 100, "is damaged"),
    ],
)
def test_files_that_are_no_data_set(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConvlensError, match=said):
        data.open(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "channels", "size"),
    [
        ("signal", 2, (30,)),
        ("sequence", 4, (30,)),
        ("sequence", 20, (12,)),
        ("volume", 1, (5, 6, 7)),
        ("spectral", 9, (3, 3)),
        ("image", 1, (8, 5)),
        ("image", 3, (5, 8)),
    ],
)
def test_every_kind_can_be_drawn(kind: Any, channels: int, size: tuple[int, ...]) -> None:
    form = data.Preprocessing(kind=kind, channels=channels, size=size, dtype="float32")
    sample = DRAW.random((channels, *size)).astype(np.float32) * 255
    if kind == "sequence":
        sample = np.eye(channels, dtype=np.float32)[:, DRAW.integers(0, channels, size[0])]
    picture = sample_picture(sample, form)
    assert picture.size == (112, 112)
    assert len(picture.getcolors(1 << 16) or []) > 1


def test_preview_takes_the_classes_in_turn() -> None:
    dataset = data.open("digits")
    sheet = preview(dataset, default_augmentation(dataset.preprocessing), rows=10, versions=1)
    again = preview(dataset, default_augmentation(dataset.preprocessing), rows=10, versions=1)
    assert sheet.tobytes() == again.tobytes()
    other = preview(dataset, default_augmentation(dataset.preprocessing), rows=10, versions=1, seed=4)
    assert sheet.tobytes() != other.tobytes()
