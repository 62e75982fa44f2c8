"""The cache of objects and parallel regions: corruption, read-only folders, processes, forks, thread counts."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from convlens.kernels.cpu.codegen import compile as compiling
from convlens.kernels.cpu.codegen import compile_log, compiled, parallel, runtime_name, threads


def build_relu(m, length):
    """Rows of ``length`` values; also records which thread did which row."""
    lanes = m.target.lanes
    with m.body("rows", x="f32*", y="f32*", who="i32*") as rows:
        f = rows
        with f.loop(f.begin, f.end) as row:
            x, y = f.x + row * length, f.y + row * length
            with f.loop(0, length, lanes) as i:
                mask = f.mask_below(length - i, lanes)
                y.store(f.max(x.load(i, lanes, mask=mask), 0.0), i, mask=mask)
            f.who.store(type(row)(f, f.irb.trunc(f.thread.ir, f.who.element_type)), row)
    for name, grain in (("fixed", 0), ("drawn", 3)):
        with m.function(name, x="f32*", y="f32*", who="i32*", count="int") as f:
            f.parallel(rows, f.count, f.x, f.y, f.who, grain=grain)


def run_relu(kernel, name="fixed", count=50, length=37, team=2):
    x, y = torch.randn(count, length), torch.full((count, length), torch.nan)
    who = torch.full((count,), -1, dtype=torch.int32)
    getattr(kernel, name)(x.data_ptr(), y.data_ptr(), who.data_ptr(), count, team)
    assert torch.equal(y, x.relu())
    return who


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder and an empty memory."""
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_memory", {})
    monkeypatch.setattr(compiling, "_log", [])
    return tmp_path / "cache" / "kernels"


def again(monkeypatch):
    monkeypatch.setattr(compiling, "_memory", {})
    return compiled("test.relu", build_relu, length=37)


@pytest.mark.parametrize("name", ["fixed", "drawn"])
@pytest.mark.parametrize("team", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_regions_cover_every_item_once(name, team, count):
    who = run_relu(compiled("test.relu", build_relu, length=37), name, count, team=team)
    assert bool((who >= 0).all())
    assert bool((who < max(team, 1)).all())
    if name == "fixed" and count == 50:
        assert len(who.unique()) == team


def test_python_threads_where_there_is_no_openmp(monkeypatch, fresh):
    monkeypatch.setattr(parallel, "_openmp", lambda: None)
    parallel.runtime_name.cache_clear()
    parallel.region_address.cache_clear()
    try:
        assert runtime_name() == "python threads"
        who = run_relu(compiled("test.relu", build_relu, length=37), team=3)
        assert who.unique().tolist() == [0, 1, 2]
    finally:
        parallel.runtime_name.cache_clear()
        parallel.region_address.cache_clear()


def test_object_is_remembered_on_disk(monkeypatch, fresh):
    run_relu(compiled("test.relu", build_relu, length=37))
    assert len(list(fresh.rglob("*.o"))) == 1
    run_relu(again(monkeypatch))
    assert [record.from_disk for record in compile_log()] == [False, True]
    assert compile_log()[1].compile_s == compile_log()[0].compile_s > 0


@pytest.mark.parametrize("damage", ["torn", "empty", "garbage", "flipped", "header"])
def test_damaged_entries_are_discarded_and_rebuilt(monkeypatch, fresh, damage):
    compiled("test.relu", build_relu, length=37)
    (entry,) = fresh.rglob("*.o")
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    damaged = {
        "torn": whole[: len(whole) // 2],
        "empty": b"",
        "garbage": os.urandom(1000),
        "flipped": bytes(flipped),
        "header": b'{"functions": 3, "sha256": 1}\n' + whole.partition(b"\n")[2],
    }
    entry.write_bytes(damaged[damage])
    run_relu(again(monkeypatch))
    assert entry.read_bytes().partition(b"\n")[2] == whole.partition(b"\n")[2]
    assert [record.from_disk for record in compile_log()] == [False, False]


def test_unwritable_cache_costs_only_the_saving(monkeypatch, fresh):
    fresh.parent.mkdir()
    fresh.write_text("a file where the folder should be")  # holds for root too, unlike a mode
    run_relu(compiled("test.relu", build_relu, length=37))
    assert fresh.is_file()


def test_full_disk_leaves_no_torn_entry(monkeypatch, fresh):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling.os, "replace", full)
    run_relu(compiled("test.relu", build_relu, length=37))
    assert not [path for path in fresh.rglob("*") if path.is_file()]


def test_threads_that_ask_at_once_compile_once(fresh):
    found = []
    asking = [
        threading.Thread(target=lambda: found.append(compiled("test.relu", build_relu, length=41)))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(compile_log()) == 1
    assert len(set(map(id, found))) == 1


def test_processes_share_one_cache(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/unit/kernels/codegen']\n"
        "from test_compile import *\n"
        "for length in (33, 34, 35): run_relu(compiled('test.relu', build_relu, length=length), length=length)\n"
    )
    environment = {**os.environ, "CONVLENS_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    racing = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(120) for process in racing] == [0, 0, 0]
    assert len(list(tmp_path.rglob("*.o"))) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_regions_obey_torch_threads():
    before = torch.get_num_threads()
    kernel = compiled("test.relu", build_relu, length=37)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert len(run_relu(kernel, team=threads()).unique()) == count
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_runs_alone_and_right():
    code = (
        "import os, sys, signal; sys.path[:0] = ['tests', 'tests/unit/kernels/codegen']\n"
        "from test_compile import *\n"
        "kernel = compiled('test.relu', build_relu, length=37)\n"
        "run_relu(kernel, team=2)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(30)\n"
        "    ok = threads() == 1 and run_relu(kernel, team=threads()).unique().tolist() == [0]\n"
        "    os._exit(0 if ok else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "run_relu(kernel, team=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=False).returncode == 0


def test_unknown_function_says_so():
    with pytest.raises(AttributeError, match="exports no function 'conv'"):
        _ = compiled("test.relu", build_relu, length=37).conv
