"""Decoded once, re-used, invalidated, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convlens import data
from convlens.data import cache, picture_files
from convlens.data.dataset import Report
from convlens.data.formats.contract import Found
from convlens.errors import StorageError

from .conftest import PictureFolder


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "data").iterdir() if path.is_dir() and path.name != "files")


def refuse_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("convlens.data.picture_files.decode_picture", fail)


def test_second_opening_decodes_nothing(pictures: PictureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.open(pictures.fill().root)
    refuse_decoding(monkeypatch)
    second = data.open(pictures.root)
    assert isinstance(second.inputs, np.memmap)
    assert second.fingerprint == first.fingerprint
    assert second.preprocessing == first.preprocessing
    np.testing.assert_array_equal(first.inputs, second.inputs)


def test_moved_folder_is_known_by_content(pictures: PictureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    data.open(pictures.fill().root)
    moved = pictures.root.with_name("moved")
    shutil.move(pictures.root, moved)
    refuse_decoding(monkeypatch)
    assert len(data.open(moved)) == 20


def test_another_split_decodes_nothing(pictures: PictureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.open(pictures.fill(each=30).root)
    refuse_decoding(monkeypatch)
    other = data.open(pictures.root, split_seed=5)
    assert not np.array_equal(first.splits["test"], other.splits["test"])


def test_changed_file_is_decoded_again(pictures: PictureFolder) -> None:
    before = data.open(pictures.fill().root)
    pictures.add("cat/003.png")
    after = data.open(pictures.root)
    assert before.fingerprint != after.fingerprint
    changed = [n for n in range(20) if not np.array_equal(before.inputs[n], after.inputs[n])]
    assert [after.names[n] for n in changed] == ["cat/003.png"]


def test_same_size_and_time_within_two_seconds_is_still_noticed(pictures: PictureFolder) -> None:
    path = pictures.fill(each=3).add("cat/000.bmp")
    before = data.open(pictures.root)
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert data.open(pictures.root).fingerprint != before.fingerprint


def test_old_files_are_not_read_again(pictures: PictureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.fill(each=3)
    for path in pictures.root.rglob("*.png"):
        os.utime(path, (time.time() - 60, time.time() - 60))
    data.open(pictures.root)

    def fail(self: Path) -> bytes:
        raise AssertionError(f"read {self}")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert len(data.open(pictures.root)) == 6


def test_only_added_files_are_decoded(pictures: PictureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.open(pictures.fill(each=20).root)
    pictures.add("cat/added.png")
    plain, decoded = picture_files.decode_picture, []

    def count(form: data.Preprocessing, path: Path) -> np.ndarray:
        decoded.append(path.name)
        return plain(form, path)

    monkeypatch.setattr(picture_files, "decode_picture", count)
    second = data.open(pictures.root)
    assert decoded == ["added.png"]
    place = {name: n for n, name in enumerate(second.names)}
    for n, name in enumerate(first.names):
        np.testing.assert_array_equal(first.inputs[n], second.inputs[place[name]])
    for part in data.SPLITS:
        names = {second.names[n] for n in second.splits[part]}
        assert {first.names[n] for n in first.splits[part]} <= names
    decoded.clear()
    data.open(pictures.root, size=5)
    assert len(decoded) == 41


def test_entries_unused_for_a_month_are_removed(pictures: PictureFolder, own_cache: Path) -> None:
    data.open(pictures.fill(each=3).root)
    old = entries(own_cache)[0]
    os.utime(old, (0, 0))
    data.open(pictures.root)
    assert old.stat().st_mtime > 0
    os.utime(old, (0, 0))
    pictures.add("cat/added.png")
    data.open(pictures.root)
    assert old not in entries(own_cache)
    assert len(entries(own_cache)) == 1


@pytest.mark.parametrize("victim", ["inputs.bin", "samples.json", "arrays.npz"])
def test_torn_entry_is_made_again(pictures: PictureFolder, own_cache: Path, victim: str) -> None:
    first = np.array(data.open(pictures.fill(each=3).root).inputs)
    path = entries(own_cache)[0] / victim
    path.write_bytes(path.read_bytes()[:-9])
    np.testing.assert_array_equal(data.open(pictures.root).inputs, first)


def test_what_a_killed_process_left_is_cleared(pictures: PictureFolder, own_cache: Path) -> None:
    pictures.fill(each=150)
    script = (
        "import os, sys\nfrom convlens import data\nfrom convlens.data import cache\n"
        "plain = cache.RowWriter.append\n"
        "def append(self, sample):\n"
        "    plain(self, sample)\n"
        "    if self._count == 100: print('half', flush=True); sys.stdin.read()\n"
        "cache.RowWriter.append = append\n"
        "data.open(sys.argv[1])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(pictures.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    assert entries(own_cache)[0].suffix == ".partial"
    assert len(data.open(pictures.root)) == 300
    assert [path.suffix for path in entries(own_cache)] == [""]


def test_two_processes_make_one_entry(pictures: PictureFolder, own_cache: Path) -> None:
    pictures.fill(each=40)
    script = "import sys\nfrom convlens import data\nprint(data.open(sys.argv[1]).fingerprint)\n"
    command = [sys.executable, "-c", script, str(pictures.root)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert len(answers) == 1
    assert [child.returncode for child in children] == [0, 0]
    assert len(entries(own_cache)) == 1


def build(writer: cache.RowWriter) -> Found:
    writer.expect(2, 4)
    for value in range(2):
        writer.append(np.full((1, 2, 2), value, np.uint8))
    return Found(
        preprocessing=data.Preprocessing(kind="image", channels=1, size=(2, 2)),
        inputs=writer.finish(),
        labels=np.arange(2),
        class_names=("a", "b"),
        names=["0", "1"],
        report=Report(found=2, used=2),
    )


def test_full_disk_is_one_clear_error_and_leaves_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: cache.RowWriter, sample: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.RowWriter, "append", full)
    with pytest.raises(StorageError, match="no space left for the cache"):
        cache.cached("a" * 32, build)
    assert entries(own_cache) == []


def test_too_little_room_is_told_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7))
    with pytest.raises(StorageError, match=r"need 0\.00 GB and 0\.00 GB are free"):
        cache.cached("a" * 32, build)


def test_unwritable_cache_works_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    found, folder = cache.cached("a" * 32, build)
    assert folder is None
    assert found.inputs.shape == (2, 1, 2, 2)
    with pytest.raises(StorageError, match="too many to hold in memory"):
        cache.RowWriter(None).expect(1 << 31, 2)
