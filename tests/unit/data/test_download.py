"""Downloads from a server on this machine: resumed, checked, told when they fail; CIFAR-10's binary rows."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convlens import data
from convlens.data import download
from convlens.data.download import Remote, fetch
from convlens.data.formats import known
from convlens.data.progress import silent
from convlens.errors import BadFileError, DataError, StorageError

CONTENT = bytes(range(256)) * 4000


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges: list[str | None] = []
        self.break_after: int | None = None
        self.knows_ranges = True

    def address(self, name: str = "file.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.path == "/none":
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.knows_ranges else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.break_after is not None:
            body, self.server.break_after = body[: self.server.break_after], None
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def remote(server: Server, content: bytes = CONTENT, *addresses: str) -> Remote:
    return Remote("file.bin", addresses or (server.address(),), hashlib.md5(content).hexdigest())


def test_fetched_once(server: Server, tmp_path: Path) -> None:
    assert fetch([remote(server)], tmp_path, silent)[0].read_bytes() == CONTENT
    fetch([remote(server)], tmp_path, silent)
    assert server.ranges == [None]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_broken_off_download_is_resumed(server: Server, tmp_path: Path, knows_ranges: bool) -> None:
    server.break_after, server.knows_ranges = 300_000, knows_ranges
    assert fetch([remote(server)], tmp_path, silent)[0].read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_part_of_a_killed_process_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch([remote(server)], tmp_path, silent)[0].read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    assert fetch([remote(server)], tmp_path, silent)[0].read_bytes() == CONTENT


def test_wrong_content_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another MD5 sum"):
        fetch([remote(server, b"other")], tmp_path, silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_damaged_part_is_begun_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"damaged")
    assert fetch([remote(server)], tmp_path, silent)[0].read_bytes() == CONTENT


def test_second_address_is_tried(server: Server, tmp_path: Path) -> None:
    fetch([remote(server, CONTENT, server.address("none"), server.address())], tmp_path, silent)
    assert len(server.ranges) == 2


def test_no_server_is_a_clear_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="could not be downloaded .*Not Found.*by hand"):
        fetch([remote(server, CONTENT, server.address("none"))], tmp_path, silent)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        fetch([remote(server)], tmp_path / "file" / "below", silent)


def cifar_archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, count in (("data_batch_1", 40), ("test_batch", 10)):
            rows = np.random.default_rng(count).integers(0, 256, (count, 3073), np.uint8)
            rows[:, 0] = np.arange(count) % 10
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = rows.size
            tar.addfile(member, io.BytesIO(rows.tobytes()))
    return out.getvalue()


def test_cifar10_by_name(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.content = cifar_archive()
    monkeypatch.setitem(known._SETS, "cifar10", (remote(server, server.content),))
    monkeypatch.chdir(tmp_path)
    dataset = data.open("cifar10")
    assert dataset.inputs.shape == (50, 3, 32, 32)
    assert len(dataset.splits["test"]) == 10
    assert dataset.class_names[3] == "cat"
    row = np.random.default_rng(10).integers(0, 256, (10, 3073), np.uint8)[4]
    np.testing.assert_array_equal(dataset.inputs[dataset.splits["test"][4]].reshape(-1), row[1:])
    assert data.open("cifar10", size=16).inputs.shape == (50, 3, 16, 16)
    assert len(server.ranges) == 1


def test_cut_archive_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.content = cifar_archive()[:5000]
    monkeypatch.setitem(known._SETS, "cifar10", (remote(server, server.content),))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadFileError, match="is not a whole archive"):
        data.open("cifar10")


def test_every_known_set_has_sums_and_addresses() -> None:
    for remotes in known._SETS.values():
        for item in remotes:
            assert len(item.md5) == 32
            assert all(address.startswith("http") for address in item.addresses)
