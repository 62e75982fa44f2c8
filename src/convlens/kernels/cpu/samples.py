"""Numbers at many addresses compared with what they were: whether someone wrote to memory."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from convlens.kernels.cpu.codegen import I32, INT, Module, Pointer, Value, compiled

__all__ = ["comparing"]


def comparing() -> Callable[..., None]:
    """``compare`` as `build_samples` has it."""
    compare: Callable[..., None] = compiled("cpu.samples", build_samples).compare
    return compare


def build_samples(m: Module) -> None:
    """Export ``compare(places, held, result, count, threads)``: ``result`` becomes 1 where a number differs.

    ``places`` are addresses of 32-bit numbers; ``held`` has them as of the last call and is brought up to date.
    """
    with m.function("compare", places="i32*", held="i32*", result="i32*", count="int") as f:
        with f.loop(0, f.count) as i:
            now = Pointer(f, f.irb.inttoptr(f.places.cast(INT).load(i).ir, f.places.ir.type), I32).load(0)
            with f.when(now.differs(f.held.load(i))):
                f.held.store(now, i)
                f.result.store(Value(f, ir.Constant(ir.IntType(32), 1)))
