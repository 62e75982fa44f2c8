"""Every finding is made by data that has it, and not by data that does not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convlens import data
from convlens.data.doctor import DataFinding, examine
from convlens.data.likeness import near_pairs

from .conftest import PictureFolder


def named(findings: list[DataFinding], what: str) -> DataFinding:
    assert what in [finding.what for finding in findings]
    return next(finding for finding in findings if finding.what == what)


def test_sound_data_has_no_findings(pictures: PictureFolder) -> None:
    assert examine(data.open(pictures.fill(each=40).root)) == []


def test_duplicates_across_given_parts(pictures: PictureFolder) -> None:
    pictures.fill("train/", each=30).fill("test/", each=10)
    shutil.copy(pictures.root / "train/cat/003.png", pictures.root / "test/cat/copy.png")
    finding = named(examine(data.open(pictures.root)), "exact duplicates across the split")
    assert finding.severity == "error"
    assert finding.count == 1
    assert "copy.png" in finding.items[0] and "003.png" in finding.items[0]


def test_split_by_content_keeps_duplicates_together(pictures: PictureFolder) -> None:
    pictures.fill(each=40)
    for number in range(20):
        shutil.copy(pictures.root / f"cat/{number:03d}.png", pictures.root / f"cat/copy{number}.png")
    dataset = data.open(pictures.root)
    assert dataset.report.duplicates == 20
    assert dataset.report.crossing_duplicates == 0
    findings = examine(dataset)
    assert named(findings, "exact duplicates").severity == "note"
    assert "exact duplicates across the split" not in [finding.what for finding in findings]


def test_one_picture_in_two_classes(pictures: PictureFolder) -> None:
    pictures.fill(each=40)
    shutil.copy(pictures.root / "cat/001.png", pictures.root / "dog/same.png")
    assert named(examine(data.open(pictures.root)), "one content under several labels").count == 1


def smooth(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)


def test_near_duplicates_across_given_parts(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("test", 100)):
        for number in range(24):
            folder = tmp_path / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            smooth(first + number).save(folder / f"{number}.png")
    smooth(4).filter(ImageFilter.GaussianBlur(0.6)).save(tmp_path / "test" / "a" / "again.jpg", quality=90)
    dataset = data.open(tmp_path)
    finding = named(examine(dataset), "near duplicates across the split")
    assert finding.count == 1
    assert "again.jpg" in finding.items[0] and "train/a/4.png" in finding.items[0]


def test_near_pairs_need_two_parts() -> None:
    inputs = np.stack([np.asarray(smooth(1)).transpose(2, 0, 1)] * 2)
    assert near_pairs(inputs, np.array([0, 0])) == []
    assert near_pairs(inputs, np.array([0, 2])) == [(0, 1)]


def test_leaking_groups(pictures: PictureFolder) -> None:
    files = [pictures.add(f"{n}.png") for n in range(40)]
    path = pictures.root / "m.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "group"])
        for n, picture in enumerate(files):
            writer.writerow([picture.name, n % 2, "test" if n >= 30 else "train", f"g{n % 8}"])
    finding = named(examine(data.open(path)), "groups on both sides of the split")
    assert finding.severity == "error"
    assert finding.count == 8


def test_imbalance_few_and_missing(pictures: PictureFolder) -> None:
    pictures.fill("train/", ("cat",), each=80).fill("train/", ("dog",), each=12).fill("train/", ("emu",), each=4)
    pictures.fill("test/", ("cat", "dog"), each=20)
    findings = examine(data.open(pictures.root))
    assert "'cat' has" in named(findings, "classes of unequal size").detail
    assert named(findings, "classes with few samples").items[0].startswith(("dog", "emu"))
    assert named(findings, "classes without test samples").items == ("emu",)


def test_blank_and_bad_files(pictures: PictureFolder) -> None:
    pictures.fill(each=30)
    Image.new("RGB", (12, 10), (7, 7, 7)).save(pictures.root / "cat" / "blank.png")
    (pictures.root / "dog" / "bad.png").write_text("text")
    findings = examine(data.open(pictures.root))
    assert named(findings, "blank samples").items == ("cat/blank.png",)
    assert named(findings, "files that cannot be decoded").count == 1


def test_test_part_of_another_distribution(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "a.npz",
        x_train=draw.normal(size=(300, 20)),
        y_train=np.arange(300) % 2,
        x_test=draw.normal(0.5, 1.5, size=(100, 20)),
        y_test=np.arange(100) % 2,
    )
    assert (
        "distributed differently" in named(examine(data.open(tmp_path / "a.npz")), "train and test differ").detail
    )


def test_crop_that_cuts_much(pictures: PictureFolder) -> None:
    for number in range(60):
        pictures.add(f"{'ab'[number % 2]}/{number}.png", (40, 10))
    dataset = data.open(pictures.root, size=10, fit="crop")
    assert "75%" in named(examine(dataset), "much of each picture is cut away").detail


@pytest.mark.parametrize("kind", ["signal", "volume"])
def test_other_kinds_are_examined(tmp_path: Path, kind: str) -> None:
    shape = (60, 30) if kind == "signal" else (60, 9, 8, 7)
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=shape), y=np.arange(60) % 2)
    assert examine(data.open(tmp_path / "a.npz")) == []
