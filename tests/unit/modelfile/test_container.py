"""The container refuses every damaged, foreign or absurd file with one clear sentence, and never half-writes."""

import errno
import json
import os
import random
import resource
import stat
import struct

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from convlens.errors import ModelFileError, PathError, StorageError
from convlens.modelfile import atomic, container
from convlens.modelfile.container import read_container, read_record, write_container

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_container(path, "kind", 1, TENSORS, {"text": 'quotes " and "checksum":"', "n": [1, None]})
    return path


def _with_header(path, change):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    text = change(header)
    raw = (json.dumps(header) if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def test_what_was_written_is_read(file):
    tensors, record = read_container(file, "kind", 1)
    assert record == {"text": 'quotes " and "checksum":"', "n": [1, None]}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_tied_and_strided_tensors_are_written_whole(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    write_container(tmp_path / "t", "kind", 1, {"a": shared, "b": shared, "c": shared.t()}, {})
    tensors, _ = read_container(tmp_path / "t", "kind", 1)
    assert torch.equal(tensors["a"], tensors["b"])
    assert torch.equal(tensors["c"], shared.t())


def test_every_flipped_bit_is_noticed(file):
    content = file.read_bytes()
    generator = random.Random(0)
    places = range(len(content)) if len(content) < 1000 else generator.sample(range(len(content)), 400)
    for place in places:
        broken = bytearray(content)
        broken[place] ^= 1 << generator.randrange(8)
        file.write_bytes(broken)
        with pytest.raises(ModelFileError):
            read_container(file, "kind", 1)


def test_every_truncation_is_noticed(file):
    content = file.read_bytes()
    for length in [0, 1, 7, 8, 9, 10, 50, *range(60, len(content), 7), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            read_record(file, "kind", 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: h["__metadata__"].update(format="other"), "expected a kind file, received a 'other' file"),
        (lambda h: h["__metadata__"].update(format_version="2"), "written by a newer convlens"),
        (lambda h: h["__metadata__"].update(format_version="x"), "format version 'x'"),
        (lambda h: h["__metadata__"].pop("record"), "not one that convlens wrote"),
        (lambda h: h.update(a={"dtype": "F32"}), "no valid type, shape and place"),
        (lambda h: h["a"].update(dtype="PICKLE"), "no valid type, shape and place"),
        (lambda h: h["a"].update(shape=[10**9, 10**9]), "does not fill its place"),
        (lambda h: h["a"].update(shape=[-1, -6]), "no valid type, shape and place"),
        (lambda h: h["a"].update(shape=[True, 6]), "no valid type, shape and place"),
        (lambda h: h["a"].update(data_offsets=[0, 24]), "overlap or leave gaps"),
        (lambda h: h.pop("a"), "overlap or leave gaps|follow the last tensor"),
        (lambda h: h.pop("b"), "overlap or leave gaps|follow the last tensor"),
        (lambda h: json.dumps(h)[:-1] + ', "a": {}}', "appears twice"),
        (lambda h: "[" * 100_000, "does not begin|not JSON"),
        (lambda h: '{"a":' * 100_000, "not JSON"),
        (lambda h: "{not json", "not JSON"),
    ],
)
def test_hostile_headers(file, change, text):
    def only_text(header):
        changed = change(header)
        return changed if isinstance(changed, str) and changed.startswith(("{", "[")) else None

    _with_header(file, only_text)
    with pytest.raises(ModelFileError, match=text):
        read_record(file, "kind", 1)


def test_a_header_that_claims_much_costs_nothing(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{" + b" " * 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match="claims 4,611,686,018,427,387,904 bytes"):
        read_record(path, "kind", 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_files_of_others_are_named_as_such(tmp_path):
    save_file(TENSORS, tmp_path / "plain.safetensors")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFileError, match="a safetensors file, but not one that convlens wrote"):
        read_record(tmp_path / "plain.safetensors", "kind", 1)
    with pytest.raises(ModelFileError, match="not a convlens file"):
        read_record(tmp_path / "picture", "kind", 1)
    with pytest.raises(PathError, match="is a folder"):
        read_record(tmp_path / "folder", "kind", 1)
    with pytest.raises(PathError, match="no such file"):
        read_record(tmp_path / "none", "kind", 1)


@pytest.mark.parametrize(
    ("code", "text"),
    [(errno.ENOSPC, "no space is left"), (errno.EACCES, "no permission"), (errno.EROFS, "no permission")],
)
def test_a_failed_write_keeps_the_old_file(file, monkeypatch, code, text):
    before = file.read_bytes()

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(StorageError, match=text):
        write_container(file, "kind", 1, TENSORS, {})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_other_write_errors_pass_unchanged(file, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(OSError, match="I/O error"):
        atomic.write_text(file, "x")


def test_files_get_the_permissions_that_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "t", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o640


def test_the_header_limit_holds_for_writing_too(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ModelFileError, match="at most 100"):
        write_container(tmp_path / "x", "kind", 1, TENSORS, {})
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_said_and_leaves_the_older_file(tmp_path, monkeypatch):
    """The text is what safetensors raised on a full tmpfs."""
    path = tmp_path / "t"
    write_container(path, "kind", 1, TENSORS, {})
    before = path.read_bytes()

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(container, "save_file", full)
    with pytest.raises(StorageError, match="no space is left"):
        write_container(path, "kind", 1, TENSORS, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
