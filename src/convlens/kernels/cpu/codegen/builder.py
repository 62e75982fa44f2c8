"""Structured emission of LLVM IR: modules, functions, loops, branches, vectors, parallel regions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir

from convlens.kernels.cpu.codegen.target import Target, current
from convlens.kernels.cpu.codegen.tiles import TileInstructions
from convlens.kernels.cpu.codegen.values import BOOL, F32, I8, I32, INT, PTR, Pointer, Value, Variable
from convlens.kernels.cpu.codegen.vectors import VectorInstructions

__all__ = ["Function", "Module"]

_INT_OPS = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "sdiv", "rem": "srem",
    "shl": "shl", "lshr": "lshr", "and": "and_", "or": "or_", "xor": "xor",
}  # fmt: skip
_FLOAT_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_FOLD = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a // b, "rem": lambda a, b: a % b, "shl": lambda a, b: a << b,
}  # fmt: skip


class Module:
    """One object file in the making: exported functions and the parallel bodies they run.

    Argument types are given by name: ``"f32*"``, ``"bf16*"``, ``"i32*"``, ``"i8*"`` … for pointers,
    ``"int"`` for a 64-bit integer, ``"f32"`` for a float.
    """

    def __init__(self, name: str, target: Target | None = None) -> None:
        self.target = target or current()
        self.ir = ir.Module(name)
        self.ir.triple = self.target.triple
        self.signatures: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def function(self, name: str, **arguments: str) -> Iterator[Function]:
        """An exported function; ``threads`` is appended to its arguments, for `Function.parallel`."""
        arguments = {**arguments, "threads": "int"}
        self.signatures[name] = list(arguments.values())
        function = Function(self, name, arguments)
        yield function
        function.irb.ret_void()

    @contextlib.contextmanager
    def body(self, name: str, **arguments: str) -> Iterator[Function]:
        """The body of a parallel region, over the work items ``f.begin`` to ``f.end`` (excluded).

        ``f.thread`` numbers the thread that runs it, below the caller's ``threads``: each thread may own
        a slice of a workspace. Items must be independent of each other.
        """
        function = Function(
            self, name, {**arguments, "begin": "int", "end": "int", "thread": "int"}, internal=True
        )
        yield function
        function.irb.ret_void()

    def intrinsic(self, name: str, result: Any, parameters: Sequence[Any]) -> Any:
        """Declaration of an LLVM intrinsic or runtime function."""
        found = self.ir.globals.get(name)
        return found or ir.Function(self.ir, ir.FunctionType(result, parameters), name)

    def constant(self, name: str, element: Any, values: Sequence[int | float], align: int = 64) -> Any:
        """A read-only table, as a global."""
        kind = ir.ArrayType(element, len(values))
        table = ir.GlobalVariable(self.ir, kind, name)
        table.global_constant = True
        table.linkage = "internal"
        table.align = align
        table.initializer = ir.Constant(kind, list(values))
        table.type = PTR
        return table


class Function(VectorInstructions, TileInstructions):
    """Emits one function. Arguments are attributes: ``f.x``, ``f.batch``. ``f.irb`` is llvmlite's builder."""

    def __init__(self, module: Module, name: str, arguments: dict[str, str], internal: bool = False) -> None:
        self.module = module
        self.target = module.target
        self.name = name
        self.kinds = arguments
        kinds = [_ir_type(kind) for kind in arguments.values()]
        self.ir = ir.Function(module.ir, ir.FunctionType(ir.VoidType(), kinds), name)
        self.ir.linkage = "internal" if internal else "external"
        self.ir.attributes.add("nounwind")
        self._entry = self.ir.append_basic_block("entry")
        self._slots = ir.IRBuilder(self._entry)
        self.irb = ir.IRBuilder(self.ir.append_basic_block("start"))
        self._slots.branch(self.irb.block)
        self.arguments: dict[str, Any] = {}
        for argument, (label, kind) in zip(self.ir.args, arguments.items(), strict=True):
            if label in self.__dict__ or hasattr(type(self), label):
                raise ValueError(f"argument {label!r} of {name} hides the builder's own f.{label}: rename it")
            argument.name = label
            self.arguments[label] = self._argument(argument, kind)

    def _argument(self, argument: Any, kind: str) -> Value:
        if kind.endswith("*"):
            return Pointer(self, argument, _element_type(kind[:-1]))
        return Value(self, argument)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["arguments"][name]
        except KeyError:
            raise AttributeError(name) from None

    # --- scalars ---------------------------------------------------------------------------------------

    def index(self, value: Value | int) -> Value:
        """A 64-bit integer."""
        if isinstance(value, Value):
            return value
        return Value(self, ir.Constant(INT, value))

    def number(self, value: float) -> Value:
        """A float32 constant."""
        return Value(self, ir.Constant(F32, value))

    def variable(self, start: Value | int | float) -> Variable:
        """A mutable local, such as an accumulator."""
        if not isinstance(start, Value):
            start = self.index(start) if isinstance(start, int) else self.number(start)
        return Variable(self, start)

    def stack_slot(self, kind: Any, align: int | None = None) -> Any:
        """Uninitialised stack memory of one value, reserved once per call wherever it is asked for."""
        position = ir.IRBuilder(self._entry)
        position.position_at_start(self._entry)
        slot = position.alloca(kind)
        slot.type = PTR  # llvmlite still types it by its content
        if align:
            slot.align = align
        return slot

    def scratch(self, element: Any, count: int, align: int = 64) -> Pointer:
        """Uninitialised stack array (keep below 64 KiB: threads have small stacks)."""
        return Pointer(self, self.stack_slot(ir.ArrayType(element, count), align), element)

    def arithmetic(self, op: str, left: Value | float, right: Value | float) -> Value:
        """``left op right``, Python numbers taking the other side's type; integer constants fold."""
        like = left if isinstance(left, Value) else right
        assert isinstance(like, Value)  # noqa: S101
        a, b = self.like(left, like), self.like(right, like)
        if isinstance(like.element, ir.IntType):
            if like.lanes == 1 and (folded := _fold(op, a, b)) is not None:
                return folded if isinstance(folded, Value) else Value(self, ir.Constant(like.type, folded))
            return Value(self, getattr(self.irb, _INT_OPS[op])(a.ir, b.ir))
        return Value(self, getattr(self.irb, _FLOAT_OPS[op])(a.ir, b.ir))

    def compare(self, op: str, left: Value | float, right: Value | float) -> Value:
        """Signed or ordered comparison, except that floats are "!=" when unordered (NaN)."""
        like = left if isinstance(left, Value) else right
        assert isinstance(like, Value)  # noqa: S101
        a, b = self.like(left, like), self.like(right, like)
        if isinstance(like.element, ir.IntType):
            return Value(self, self.irb.icmp_signed(op, a.ir, b.ir))
        emit = self.irb.fcmp_unordered if op == "!=" else self.irb.fcmp_ordered
        return Value(self, emit(op, a.ir, b.ir))

    def like(self, value: Value | float, other: Value) -> Value:
        """``value`` as it is, or a Python number as a constant of ``other``'s type."""
        if isinstance(value, Value):
            return value
        number = int(value) if isinstance(other.element, ir.IntType) else float(value)
        if other.lanes == 1:
            return Value(self, ir.Constant(other.type, number))
        return Value(self, ir.Constant(other.type, [number] * other.lanes))

    def minimum(self, a: Value | int, b: Value | int) -> Value:
        """Smaller of two integers."""
        a, b = self.index(a), self.index(b)
        return self.select(a < b, a, b)

    def maximum(self, a: Value | int, b: Value | int) -> Value:
        """Larger of two integers."""
        a, b = self.index(a), self.index(b)
        return self.select(a > b, a, b)

    # --- control flow ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """``for i in range(start, stop, step)``; never unrolled or vectorised behind your back."""
        first, last, stride = self.index(start), self.index(stop), self.index(step)
        before = self.irb.block
        head, inside, after = (self.ir.append_basic_block(n) for n in ("head", "inside", "after"))
        self.irb.branch(head)
        self.irb.position_at_end(head)
        index = self.irb.phi(INT)
        index.add_incoming(first.ir, before)
        self.irb.cbranch(self.irb.icmp_signed("<", index, last.ir), inside, after)
        self.irb.position_at_end(inside)
        yield Value(self, index)
        following = self.irb.add(index, stride.ir, flags=("nsw",))
        index.add_incoming(following, self.irb.block)
        self.irb.branch(head)
        self.irb.position_at_end(after)

    @contextlib.contextmanager
    def repeat_while(self) -> Iterator[Any]:
        """Loop until ``leave(condition)``, which the block calls at least once; yields ``leave``."""
        inside, after = self.ir.append_basic_block("again"), self.ir.append_basic_block("left")
        self.irb.branch(inside)
        self.irb.position_at_end(inside)

        def leave(condition: Value) -> None:
            on = self.ir.append_basic_block("on")
            self.irb.cbranch(condition.ir, after, on)
            self.irb.position_at_end(on)

        yield leave
        self.irb.branch(inside)
        self.irb.position_at_end(after)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition:``."""
        with self.irb.if_then(condition.ir):
            yield

    @contextlib.contextmanager
    def when_else(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """``with f.when_else(c) as (then, otherwise): with then: … with otherwise: …``."""
        with self.irb.if_else(condition.ir) as branches:
            yield branches

    def intrinsic(self, name: str, result: Any, *arguments: Any) -> Value:
        """Call an LLVM intrinsic (fully named) with raw IR values."""
        function = self.module.intrinsic(name, result, [a.type for a in arguments])
        return Value(self, self.irb.call(function, arguments))

    def call(self, body: Function, *arguments: Value | int) -> None:
        """Call another function of the module (a body needs ``begin``, ``end`` and ``thread`` too)."""
        self.irb.call(body.ir, [self.index(a).ir if isinstance(a, int) else a.ir for a in arguments])

    # --- parallel regions ------------------------------------------------------------------------------

    def parallel(self, body: Function, items: Value | int, *arguments: Value | int, grain: int = 0) -> None:
        """Run ``body`` over ``items`` work items on ``f.threads`` threads.

        Args:
            body: from `Module.body`; its own arguments follow in order.
            items: how many independent work items there are.
            arguments: values of the body's arguments.
            grain: 0 = each thread gets one equal run of items; otherwise threads draw that many items
                at a time from a shared counter, for items of unequal cost.
        """
        from convlens.kernels.cpu.codegen.parallel import emit_region

        given = [self.index(a) if isinstance(a, int) else a for a in arguments]
        emit_region(self, body, self.index(items), given, grain)


def _fold(op: str, a: Value, b: Value) -> Value | int | None:
    left = a.ir.constant if isinstance(a.ir, ir.Constant) else None
    right = b.ir.constant if isinstance(b.ir, ir.Constant) else None
    if isinstance(left, int) and isinstance(right, int) and op in _FOLD:
        return int(_FOLD[op](left, right))
    if right == 0 and op in ("add", "sub") or right == 1 and op in ("mul", "div"):
        return a
    if left == 0 and op == "add" or left == 1 and op == "mul":
        return b
    return 0 if op == "mul" and (left == 0 or right == 0) else None


def _element_type(name: str) -> Any:
    from convlens.kernels.cpu.codegen import values

    return {
        "f32": F32,
        "f64": values.F64,
        "bf16": values.BF16,
        "i8": I8,
        "i16": values.I16,
        "i32": I32,
        "int": INT,
    }[name]


def _ir_type(kind: str) -> Any:
    return PTR if kind.endswith("*") else {"int": INT, "f32": F32, "bool": BOOL}[kind]
