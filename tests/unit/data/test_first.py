"""The embedded digits and IDX files: opened, split and normalised."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from convlens import data
from convlens.errors import BadFileError, DataError, PathError, RecipeError


def write_idx(path: Path, values: np.ndarray, *, packed: bool = False) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def write_mnist(folder: Path, train: int = 60, test: int = 20, *, packed: bool = False) -> None:
    draw = np.random.default_rng(0)
    end = ".gz" if packed else ""
    for word, count in (("train", train), ("t10k", test)):
        write_idx(
            folder / f"{word}-images-idx3-ubyte{end}",
            draw.integers(0, 256, (count, 6, 5), np.uint8),
            packed=packed,
        )
        write_idx(
            folder / f"{word}-labels-idx1-ubyte{end}", (np.arange(count) % 4).astype(np.uint8), packed=packed
        )


def test_digits_are_whole_and_split_by_content() -> None:
    dataset = data.open("digits")
    assert dataset.inputs.shape == (1797, 1, 32, 32)
    assert dataset.inputs.dtype == np.uint8
    assert dataset.class_names == tuple("0123456789")
    joined = np.sort(np.concatenate([dataset.splits[name] for name in data.SPLITS]))
    np.testing.assert_array_equal(joined, np.arange(1797))
    assert 0.55 < len(dataset.splits["train"]) / 1797 < 0.65


def test_training_part_is_normalised() -> None:
    dataset = data.open("digits")
    inputs, labels = dataset.tensors("train")
    batch = dataset.preprocessing.normalise(inputs)
    assert batch.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(batch.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(dataset.preprocessing.denormalise(batch), inputs.float(), atol=1e-3, rtol=0)


def test_preprocessing_survives_json() -> None:
    preprocessing = data.open("digits").preprocessing
    assert data.Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


@pytest.mark.parametrize("packed", [False, True])
def test_idx_folder_keeps_the_given_test_part(tmp_path: Path, packed: bool) -> None:
    write_mnist(tmp_path, packed=packed)
    dataset = data.open(tmp_path)
    assert dataset.inputs.shape == (80, 1, 6, 5)
    np.testing.assert_array_equal(dataset.splits["test"], np.arange(60, 80))
    assert len(dataset.splits["dev"]) > 0
    assert dataset.names[0].startswith("train-images")


def test_idx_without_labels_says_what_is_missing(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(DataError, match="no labels; expected train-labels-idx1-ubyte"):
        data.open(tmp_path)


def test_cut_idx_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BadFileError, match="train-images-idx3-ubyte: is not a whole IDX file"):
        data.open(tmp_path)


def test_no_such_path() -> None:
    with pytest.raises(PathError, match="no such file or folder"):
        data.open("/nowhere/at/all")


def test_unknown_option_names_the_accepted_ones() -> None:
    with pytest.raises(RecipeError, match=r"Unknown data option sise\. Accepted: size, channels"):
        data.open("digits", sise=3)
