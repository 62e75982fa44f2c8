'''The shared builder of LLVM IR: loops, vectors, masks, tiles, threads, cache.

How to write a kernel::

    from convlens.kernels.cpu.codegen import Module, compiled, threads

    def build(m: Module, length: int) -> None:
        """y = relu(x) for rows of ``length`` values; work items are rows."""
        lanes = m.target.lanes                             # 16, 8 or 4; never assume which
        with m.body("rows", x="f32*", y="f32*") as f:      # runs on every thread, over f.begin … f.end
            with f.loop(f.begin, f.end) as row:
                x, y = f.x + row * length, f.y + row * length
                for i in range(0, length - lanes + 1, lanes):          # a Python loop unrolls
                    y.store(f.max(x.load(i, lanes), 0.0), i)
                if tail := length % lanes:                             # tails by mask: touch nothing outside
                    mask = f.mask_below(tail, lanes)
                    y.store(f.max(x.load(length - tail, lanes, mask=mask), 0.0), length - tail, mask=mask)
        rows = f
        with m.function("relu", x="f32*", y="f32*", count="int") as f:  # exported; gets ``threads`` appended
            f.parallel(rows, f.count, f.x, f.y)            # static split; grain=4 draws four items at a time

    kernel = compiled("cpu.relu", build, length=100)       # memory, then disk, then about 50 ms of LLVM
    kernel.relu(x.data_ptr(), y.data_ptr(), x.shape[0], threads())

Rules of thumb
- Sizes are Python ints, so constants in the code; pass what varies between calls (the batch) as ``"int"``.
- A Python loop unrolls, ``with f.loop(0, n) as i`` loops. LLVM's own unroller and vectoriser are off.
- Accumulators: ``acc = [f.variable(f.zeros(lanes)) for _ in range(12)]``, then
  ``acc[k].set(f.fma(a, b, acc[k].get()))``; they live in registers (``m.target.registers`` of them) as long as
  every index into the list is a Python int. Keep them loaded in plain lists inside unrolled blocks.
- Several regions in one exported function run one after the other: pack, barrier, multiply.
  ``f.thread`` numbers the running thread: give each its own slice of a workspace allocated with torch.empty.
- ``f.scratch(F32, n)`` is a small stack array; ``f.transpose(rows)`` turns a square of registers;
  ``f.gather``, ``f.split_bf16``, ``f.tile_*`` (AMX) are there when ``m.target`` has them.
- Indices are 64-bit. ``a < b`` gives a mask or condition; use ``.equals`` for equality; ``f.select`` chooses.
- Allocate results with `kernels.cpu.memory.empty`: 100 MB of fresh pages cost 25 ms of page faults, pooled ones 0.
- Test at every width: ``with forced(host().narrowed(8)): …``; with ``tests/checking/guards.py`` every array sits
  against an unreadable page, so a stray vector crashes the test; then ``checking.parity.conv_parity``.
- Parameters of `compiled` key the cache; editing any file of ``kernels/cpu`` empties it by itself.
'''

from __future__ import annotations

from convlens.kernels.cpu.codegen.builder import Function, Module
from convlens.kernels.cpu.codegen.compile import Compiled, CompileRecord, compile_log, compiled, emit_object
from convlens.kernels.cpu.codegen.parallel import runtime_name, threads
from convlens.kernels.cpu.codegen.target import Target, current, forced, host, neon
from convlens.kernels.cpu.codegen.values import BF16, F32, F64, I8, I16, I32, INT, Pointer, Value, Variable

__all__ = [
    "BF16",
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "INT",
    "CompileRecord",
    "Compiled",
    "Function",
    "Module",
    "Pointer",
    "Target",
    "Value",
    "Variable",
    "compile_log",
    "compiled",
    "current",
    "emit_object",
    "forced",
    "host",
    "neon",
    "runtime_name",
    "threads",
]
