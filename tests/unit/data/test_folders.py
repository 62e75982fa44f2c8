"""Class folders: layouts, choices from the data, bad files, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens import data
from convlens.errors import BadFileError, DataError

from .conftest import PictureFolder


def test_mixed_formats_in_class_folders(pictures: PictureFolder) -> None:
    for label in ("cat", "dog"):
        for ending in ("png", "jpg", "webp", "tif", "bmp", "gif", "JPEG"):
            pictures.add(f"{label}/a.{ending}")
    pictures.add("cat/deeper/b.png")
    (pictures.root / "cat" / "notes.txt").write_text("not a picture")
    (pictures.root / "cat" / ".hidden.png").write_text("hidden")
    dataset = data.open(pictures.root)
    assert len(dataset) == 15
    assert dataset.class_names == ("cat", "dog")
    assert dataset.report.ignored == 1
    assert dataset.preprocessing.size == (10, 12)
    for number, name in enumerate(dataset.names):
        np.testing.assert_array_equal(dataset.inputs[number], dataset.preprocessing.decode(pictures.root / name))
        assert dataset.class_names[dataset.labels[number]] == name.split("/")[0]


def test_given_parts_are_kept(pictures: PictureFolder) -> None:
    pictures.fill("train/", each=8).fill("val/", each=3).fill("test/", each=4)
    dataset = data.open(pictures.root)
    assert [len(dataset.splits[part]) for part in data.SPLITS] == [16, 6, 8]
    assert all(dataset.names[number].startswith("val/") for number in dataset.splits["dev"])


def test_dev_is_carved_out_of_train(pictures: PictureFolder) -> None:
    pictures.fill("train/", each=20).fill("test/", each=4)
    dataset = data.open(pictures.root)
    assert len(dataset.splits["test"]) == 8
    assert 4 <= len(dataset.splits["dev"]) <= 12
    assert "20 % dev out of train" in dataset.report.split_rule


def test_grey_pictures_need_one_channel(pictures: PictureFolder) -> None:
    for number in range(6):
        pictures.add(f"{'ab'[number % 2]}/{number}.png", grey=True)
    assert data.open(pictures.root).preprocessing.channels == 1
    assert data.open(pictures.root, channels=3).inputs.shape[1] == 3


def test_large_unequal_pictures_get_a_standard_size(pictures: PictureFolder) -> None:
    for number in range(6):
        pictures.add(f"{'ab'[number % 2]}/{number}.jpg", (150 + 10 * number, 100))
    dataset = data.open(pictures.root)
    assert dataset.preprocessing.size == (96, 96)
    assert dataset.preprocessing.fit == "pad"
    assert dataset.report.fit_losses["crop"] > 0.3
    assert "crop would cut" in dataset.report.notes[0]
    assert data.open(pictures.root, size=16, fit="crop").inputs.shape[2:] == (16, 16)


def damage(root: Path) -> None:
    (root / "cat" / "text.jpg").write_text("I am not a picture")
    (root / "dog" / "empty.png").touch()
    whole = (root / "dog" / "000.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])


def test_bad_files_are_skipped_and_named(pictures: PictureFolder) -> None:
    damage(pictures.fill().root)
    dataset = data.open(pictures.root)
    assert len(dataset) == 20
    reasons = {Path(item.path).name: item.reason for item in dataset.report.skipped}
    assert set(reasons) == {"text.jpg", "empty.png", "cut.png"}
    assert reasons["text.jpg"].startswith("is not a picture: it holds text")
    assert reasons["empty.png"] == "is empty (0 bytes)"
    assert data.open(pictures.root).report == dataset.report


def test_bad_files_are_fatal_when_asked(pictures: PictureFolder) -> None:
    damage(pictures.fill().root)
    with pytest.raises(BadFileError, match=r"text\.jpg: is not a picture"):
        data.open(pictures.root, on_bad_file="fail")
    (pictures.root / "cat" / "text.jpg").unlink()
    (pictures.root / "dog" / "empty.png").unlink()
    with pytest.raises(BadFileError, match=r"cut\.png: cannot be decoded"):
        data.open(pictures.root, on_bad_file="fail")


def test_unreadable_file_is_skipped(pictures: PictureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.fill()
    whole = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name == "003.png":
            raise PermissionError(13, "denied")
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert {Path(item.path).name for item in data.open(pictures.root).report.skipped} == {"003.png"}


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is empty"):
        data.open(tmp_path)


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("nothing here")
    with pytest.raises(DataError, match="holds nothing that can be read here"):
        data.open(tmp_path)


def test_one_class_only(pictures: PictureFolder) -> None:
    pictures.fill(classes=("cat",))
    with pytest.raises(DataError, match=r"all 10 samples are of one class \('cat'\)"):
        data.open(pictures.root)


def test_pictures_without_class_folders(pictures: PictureFolder) -> None:
    pictures.add("a.png")
    with pytest.raises(DataError, match="nothing says which class"):
        data.open(pictures.root)


def test_only_bad_files(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpg").write_text("text")
    with pytest.raises(BadFileError, match=r"2 such files"):
        data.open(tmp_path)


def test_links_in_a_circle_end(pictures: PictureFolder) -> None:
    pictures.fill(each=3)
    (pictures.root / "cat" / "loop").symlink_to(pictures.root, target_is_directory=True)
    assert len(data.open(pictures.root)) == 6


def test_sixteen_bit_and_small_pictures(pictures: PictureFolder) -> None:
    pictures.fill(each=3)
    Image.fromarray(np.full((1, 1), 40_000, np.uint16)).save(pictures.root / "cat" / "deep.png")
    assert len(data.open(pictures.root)) == 7
