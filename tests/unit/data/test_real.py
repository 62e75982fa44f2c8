"""The data sets of the lectures' kinds as they are published; skipped where they are not at hand."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from convlens import data

HOME = os.environ.get("CONVLENS_TEST_DATA")
pytestmark = [pytest.mark.data, pytest.mark.skipif(HOME is None, reason="CONVLENS_TEST_DATA is not set")]


def test_mnist() -> None:
    dataset = data.open(Path(HOME or "") / "mnist")
    assert dataset.inputs.shape == (70_000, 1, 28, 28)
    assert len(dataset.splits["test"]) == 10_000
    assert dataset.class_counts("test").tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.preprocessing.mean[0] == pytest.approx(0.1307, abs=5e-4)
    assert dataset.preprocessing.std[0] == pytest.approx(0.3081, abs=5e-4)


def test_cats_and_dogs(tmp_path: Path) -> None:
    with tarfile.open(Path(HOME or "") / "cats_dogs.tar") as tar:
        members = [member for number, member in enumerate(tar.getmembers()) if number % 25 == 0]
        for member in members:
            if (content := tar.extractfile(member)) is not None:  # extractall's filter is newer than Python 3.11.0
                path = tmp_path / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    dataset = data.open(tmp_path / "cats_dogs")
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.preprocessing.channels == 3
    assert not dataset.report.skipped


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("ECG200", 96, 2), ("SwedishLeaf", 128, 15), ("CricketX", 300, 12)]
)
def test_ucr(name: str, shape: int, classes: int) -> None:
    dataset = data.open(Path(HOME or "") / "ucr2018" / name)
    assert dataset.inputs.shape[1:] == (1, shape)
    assert dataset.num_classes == classes


def test_promoters() -> None:
    dataset = data.open(Path(HOME or "") / "dna_promoters" / "promoters.data")
    assert dataset.inputs.shape == (106, 4, 57)
    assert np.bincount(dataset.labels).tolist() == [53, 53]


def test_samson() -> None:
    from scipy.io import loadmat

    path = Path(HOME or "") / "samson_hsi" / "samson_dataset.mat"
    dataset = data.open(path)
    raw = loadmat(path)
    cube = raw["Y"].reshape(156, 95, 95).transpose(0, 2, 1)
    np.testing.assert_allclose(dataset.inputs[:, :, 0, 0], cube.reshape(156, -1).T, rtol=1e-6)
    labels = raw["A"].argmax(axis=0).reshape(95, 95).T
    np.testing.assert_array_equal(dataset.labels, labels.ravel())
