"""Calls of generated code one after the other, in one call: a small net costs its kernels and no Python between.

A table has a row for each call: the function's address, how many arguments it takes, the arguments. All are 64-bit
integers or addresses, which every calling convention that convlens runs on passes alike.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache

from convlens.kernels.contract import NativeCall

__all__ = ["Replay"]

_MOST = 16
"""Arguments of a call at most."""
_ROW = _MOST + 2


class Replay:
    """Several `NativeCall`; addresses are fixed but for inputs that may be others every time."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._inputs: list[int] = []  # places in the table
        self._keep: list[object] = []

    def add(self, call: NativeCall, source: int | None, dest: int, keep: object = None) -> None:
        """Append a call.

        Args:
            call: as its kernel prepared it.
            source: address of its input; None for one that is given to `ready`'s function.
            dest: address of its result.
            keep: what the addresses lie in.
        """
        arguments = list(call.arguments)
        if len(arguments) > _MOST:
            raise ValueError(f"at most {_MOST} arguments, got {len(arguments)}")
        arguments[call.source], arguments[call.dest] = source or 0, dest
        function = ctypes.cast(call.function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
        if source is None:
            self._inputs.append(len(self._rows) + 2 + call.source)
        self._rows += [function, len(arguments), *arguments, *[0] * (_MOST - len(arguments))]
        self._keep.append((call, keep))

    def ready(self) -> Callable[[Iterable[int]], None]:
        """A function of the addresses left open, in order, that makes all calls; not for two threads at once."""
        table = (ctypes.c_int64 * len(self._rows))(*self._rows)
        at, count, inputs, calls = ctypes.addressof(table), len(self._rows) // _ROW, tuple(self._inputs), _calls()

        def run(addresses: Iterable[int], keep: object = self._keep) -> None:
            for place, address in zip(inputs, addresses, strict=True):
                table[place] = address
            calls(at, count)

        return run


@cache
def _calls() -> Callable[[int, int], None]:
    from convlens.kernels.cpu.codegen.compile import link_runtime

    address = link_runtime(_text(), {}, "convlens_calls")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)


def _text() -> str:
    """The loop over a table's rows, with a case for each number of arguments."""
    loads, cases, targets = [], [], []
    for i in range(_MOST):
        loads.append(f"  %p{i} = getelementptr i64, ptr %row, i64 {i + 2}\n  %a{i} = load i64, ptr %p{i}")
    for n in range(1, _MOST + 1):
        targets.append(f"i64 {n}, label %with{n}")
        given = ", ".join(f"i64 %a{i}" for i in range(n))
        cases.append(f"with{n}:\n  call void %function({given})\n  br label %done")
    return f"""
define void @convlens_calls(ptr %table, i64 %count) {{
entry:
  br label %head
head:
  %i = phi i64 [0, %entry], [%next, %done]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %end
body:
  %place = mul i64 %i, {_ROW}
  %row = getelementptr i64, ptr %table, i64 %place
  %address = load i64, ptr %row
  %function = inttoptr i64 %address to ptr
  %pn = getelementptr i64, ptr %row, i64 1
  %n = load i64, ptr %pn
{chr(10).join(loads)}
  switch i64 %n, label %done [{" ".join(targets)}]
{chr(10).join(cases)}
done:
  %next = add i64 %i, 1
  br label %head
end:
  ret void
}}
"""
