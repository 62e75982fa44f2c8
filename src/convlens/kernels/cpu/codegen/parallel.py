"""Parallel regions of generated code, run by the OpenMP runtime that torch has loaded (about 1 µs each).

Generated code calls one external function, ``convlens_parallel(worker, data, threads)``, which calls
``worker(data, thread, threads)`` on every thread. It is bound when an object is loaded: to libgomp's
``GOMP_parallel``, to libomp's ``__kmpc_fork_call``, or, where there is no OpenMP, to a pool of Python threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llvmlite import ir

from convlens.kernels.cpu.codegen.values import I32, INT, PTR, Value
from convlens.kernels.cpu.team import is_alone

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen.builder import Function

__all__ = ["emit_region", "region_address", "threads"]

REGION_SYMBOL = "convlens_parallel"
_forked = False


def _after_fork() -> None:
    global _forked
    # an OpenMP runtime's threads do not survive a fork: asking it for a team there would hang
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """Threads that a region may use now: torch's number; 1 in a forked child and under `one_thread`."""
    return 1 if _forked or is_alone() else torch.get_num_threads()


def emit_region(f: Function, body: Function, items: Value, arguments: list[Value], grain: int) -> None:
    """Emit the call of a parallel region; see `Function.parallel`."""
    fields = [a.type for a in arguments]
    record = ir.LiteralStructType([INT, INT, *fields])  # items, shared counter, the body's arguments
    data = f.stack_slot(record)
    for place, value in enumerate([items, f.index(0), *arguments]):
        f.irb.store(value.ir, _field(f, data, record, place))
    worker = _worker(f, body, record, grain)
    region = f.module.intrinsic(REGION_SYMBOL, ir.VoidType(), [PTR, PTR, INT])
    team = f.minimum(f.threads, items)
    with f.when_else(team > 1) as (many, one):
        with many:
            f.irb.call(region, [f.irb.bitcast(worker, PTR), data, team.ir])
        with one:
            f.irb.call(worker, [data, ir.Constant(INT, 0), ir.Constant(INT, 1)])


def _worker(f: Function, body: Function, record: Any, grain: int) -> Any:
    """``worker(data, thread, threads)``: unpack the arguments, run this thread's share of the items."""
    from convlens.kernels.cpu.codegen.builder import Function

    number = sum(name.startswith(f"{body.name}.worker") for name in f.module.ir.globals)
    w = Function(f.module, f"{body.name}.worker{number}", {"data": "i8*", "thread": "int", "team": "int"}, True)
    read = [
        w.irb.load(_field(w, w.data.ir, record, i), typ=record.elements[i]) for i in range(len(record.elements))
    ]
    items, arguments = Value(w, read[0]), [Value(w, r) for r in read[2:]]
    thread, team = w.arguments["thread"], w.arguments["team"]
    if not grain:
        w.call(body, *arguments, items * thread // team, items * (thread + 1) // team, thread)
    else:
        counter = _field(w, w.data.ir, record, 1)
        with w.repeat_while() as leave:
            begin = Value(w, w.irb.atomic_rmw("add", counter, ir.Constant(INT, grain), "monotonic"))
            leave(begin >= items)
            w.call(body, *arguments, begin, w.minimum(begin + grain, items), thread)
    w.irb.ret_void()
    return w.ir


def _field(f: Function, data: Any, record: Any, place: int) -> Any:
    return f.irb.gep(data, [ir.Constant(I32, 0), ir.Constant(I32, place)], source_etype=record)


# --- binding to a runtime --------------------------------------------------------------------------------


@cache
def runtime_name() -> str:
    """Which runtime runs regions: ``libgomp``, ``libomp`` or ``python threads``."""
    library = _openmp()
    if library is None:
        return "python threads"
    return "libgomp" if hasattr(library, "GOMP_parallel") else "libomp"


@cache
def region_address() -> int:
    """Address of ``convlens_parallel`` for this process."""
    name, library = runtime_name(), _openmp()
    if library is None:
        return _address(_PYTHON_REGION)
    from convlens.kernels.cpu.codegen.compile import link_runtime

    symbols = ["omp_get_thread_num", "omp_get_num_threads"]
    symbols += ["GOMP_parallel"] if name == "libgomp" else ["__kmpc_fork_call", "__kmpc_push_num_threads"]
    symbols += [] if name == "libgomp" else ["__kmpc_global_thread_num"]
    addresses = {symbol: _address(getattr(library, symbol)) for symbol in symbols}
    return link_runtime(_GOMP_SHIM if name == "libgomp" else _KMPC_SHIM, addresses, REGION_SYMBOL)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    if address is None:
        raise RuntimeError("a loaded function has no address")
    return address


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime already in this process, torch's own first; never loads a second one."""
    for path in _loaded_libraries():
        try:
            library = ctypes.CDLL(path, mode=ctypes.DEFAULT_MODE | getattr(os, "RTLD_NOLOAD", 0))
        except OSError:
            continue
        has_team = hasattr(library, "GOMP_parallel") or hasattr(library, "__kmpc_fork_call")
        if has_team and hasattr(library, "omp_get_thread_num"):
            return library
    return None


def _loaded_libraries() -> list[str]:
    torch_lib = Path(torch.__file__).parent / "lib"
    if sys.platform.startswith("linux"):
        lines = Path("/proc/self/maps").read_text().splitlines()
        loaded = {
            line.split(maxsplit=5)[5] for line in lines if line.count("/") and "omp" in line.rsplit("/", 1)[1]
        }
    else:
        loaded = {str(path) for path in torch_lib.glob("*omp*.dylib")}
    return sorted(loaded, key=lambda path: (not path.startswith(str(torch_lib)), path))


_GOMP_SHIM = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @GOMP_parallel(ptr, ptr, i32, i32)
define internal void @member(ptr %team) {
  %data_at = getelementptr {ptr, ptr}, ptr %team, i32 0, i32 1
  %worker = load ptr, ptr %team
  %data = load ptr, ptr %data_at
  %t32 = call i32 @omp_get_thread_num()
  %n32 = call i32 @omp_get_num_threads()
  %t = sext i32 %t32 to i64
  %n = sext i32 %n32 to i64
  call void %worker(ptr %data, i64 %t, i64 %n)
  ret void
}
define void @convlens_parallel(ptr %worker, ptr %data, i64 %threads) {
  %team = alloca {ptr, ptr}
  store ptr %worker, ptr %team
  %data_at = getelementptr {ptr, ptr}, ptr %team, i32 0, i32 1
  store ptr %data, ptr %data_at
  %n = trunc i64 %threads to i32
  call void @GOMP_parallel(ptr @member, ptr %team, i32 %n, i32 0)
  ret void
}
"""

_KMPC_SHIM = """
%ident = type {i32, i32, i32, i32, ptr}
@psource = private constant [23 x i8] c";unknown;unknown;0;0;;\\00"
@place = private global %ident {i32 0, i32 2, i32 0, i32 22, ptr @psource}
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare i32 @__kmpc_global_thread_num(ptr)
declare void @__kmpc_push_num_threads(ptr, i32, i32)
declare void @__kmpc_fork_call(ptr, i32, ptr, ...)
define internal void @member(ptr %gtid, ptr %btid, ptr %worker, ptr %data) {
  %t32 = call i32 @omp_get_thread_num()
  %n32 = call i32 @omp_get_num_threads()
  %t = sext i32 %t32 to i64
  %n = sext i32 %n32 to i64
  call void %worker(ptr %data, i64 %t, i64 %n)
  ret void
}
define void @convlens_parallel(ptr %worker, ptr %data, i64 %threads) {
  %n = trunc i64 %threads to i32
  %gtid = call i32 @__kmpc_global_thread_num(ptr @place)
  call void @__kmpc_push_num_threads(ptr @place, i32 %gtid, i32 %n)
  call void (ptr, i32, ptr, ...) @__kmpc_fork_call(ptr @place, i32 2, ptr @member, ptr %worker, ptr %data)
  ret void
}
"""

_WORKER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def _python_region(worker: int, data: int, team: int) -> None:
    """The portable fallback: one Python thread per member (the worker itself runs without the GIL)."""
    run = _WORKER(worker)
    members = [threading.Thread(target=run, args=(data, i, team)) for i in range(1, team)]
    for member in members:
        member.start()
    run(data, 0, team)
    for member in members:
        member.join()


_PYTHON_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(_python_region)
