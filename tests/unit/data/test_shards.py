"""WebDataset shards there and back, and rows read ahead from a cache larger than memory."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from convlens import data
from convlens.cli._app import run_command_line
from convlens.data.reading import RowFile, fits_in_memory, read_ahead
from convlens.data.shards import write_shards
from convlens.errors import DataError, StorageError

from .conftest import PictureFolder

pytest.importorskip("webdataset")


def test_shards_give_the_same_data_set(pictures: PictureFolder, tmp_path: Path) -> None:
    source = data.open(pictures.fill(each=15).root)
    paths = write_shards(source, tmp_path / "shards", per_shard=8)
    assert [path.name for path in paths] == [f"shard-{n:06d}.tar" for n in range(4)]
    back = data.open(tmp_path / "shards")
    assert len(back) == 30
    assert back.class_names == source.class_names
    for part in data.SPLITS:
        names = sorted(source.names[n] for n in source.splits[part])
        assert sorted(source.names[int(back.names[n])] for n in back.splits[part]) == names
    for n in range(30):
        np.testing.assert_array_equal(back.inputs[n], source.inputs[int(back.names[n])])


def test_samples_of_arrays_become_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(
        tmp_path / "a.npz", x=np.random.default_rng(0).integers(0, 256, (20, 6, 6), np.uint8), y=np.arange(20) % 2
    )
    arguments = ["data", "shards", str(tmp_path / "a.npz"), "--out", str(tmp_path / "s"), "--json"]
    assert run_command_line(arguments) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == ["shard-000000.tar"]
    assert data.open(tmp_path / "s").inputs.shape == (20, 1, 6, 6)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_cls_files_and_bad_pictures(pictures: PictureFolder, tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for n in range(12):
        members[f"{n:03d}.png"] = pictures.add(f"{n}.png").read_bytes() if n else b"text"
        members[f"{n:03d}.cls"] = str(n % 2).encode()
    write_tar(tmp_path / "a.tar", members)
    dataset = data.open(tmp_path / "a.tar")
    assert len(dataset) == 11
    assert dataset.report.skipped[0].path == "000"
    del members["003.cls"]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match="sample 003 has no class"):
        data.open(tmp_path / "a.tar")


def test_shards_of_signals_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(20, 9)), y=np.arange(20) % 2)
    with pytest.raises(DataError, match="shards hold pictures"):
        write_shards(data.open(tmp_path / "a.npz"), tmp_path / "s")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_from_a_file_are_those_of_indexing(tmp_path: Path, dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2500, 2, 3)).astype(dtype)
    values.tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", dtype, "r", shape=values.shape)
    order = np.random.default_rng(1).permutation(2500)
    with RowFile(mapped) as rows:
        np.testing.assert_array_equal(rows.rows(order[:100]), values[order[:100]])
        np.testing.assert_array_equal(rows.rows(np.arange(2500)), values)  # more than one preadv takes
        np.testing.assert_array_equal(rows.rows(np.array([7, 7, 8])), values[[7, 7, 8]])
        assert rows.rows(np.zeros(0, np.int64)).shape == (0, 2, 3)
    for source in (mapped, values):
        pieces = list(read_ahead(source, order, 64))
        np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in pieces]), order)
        np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), values[order])


def test_reading_ahead_may_be_left_early(tmp_path: Path) -> None:
    values = np.zeros((100, 4), np.uint8)
    ahead = read_ahead(values, np.arange(100), 10)
    next(ahead)
    ahead.close()


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    np.zeros((10, 8), np.uint8).tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", np.uint8, "r", shape=(10, 8))
    with RowFile(mapped) as rows:
        with (tmp_path / "rows.bin").open("r+b") as file:
            file.truncate(44)
        with pytest.raises(StorageError, match="is shorter than it was"):
            rows.rows(np.array([5, 6]))


def test_memory() -> None:
    assert fits_in_memory(1)
    assert not fits_in_memory(1 << 60)
