"""Typed values of generated code: numbers with operators, pointers that load and store vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir

if TYPE_CHECKING:
    from convlens.kernels.cpu.codegen.builder import Function

__all__ = ["BF16", "BOOL", "F32", "F64", "I8", "I16", "I32", "INT", "PTR", "Pointer", "Value", "Variable"]


class _BFloat(ir.types._BaseFloatType):  # type: ignore[misc]
    """bfloat16, which llvmlite's type list lacks."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()

BF16 = _BFloat()
F32 = ir.FloatType()
F64 = ir.DoubleType()
BOOL = ir.IntType(1)
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
INT = ir.IntType(64)
"""Type of every index, size and count: 64 bits, so that arrays above 2³¹ elements work."""
PTR = ir.PointerType()

_SIZE = {str(BF16): 2, str(F32): 4, str(F64): 8, str(I8): 1, str(I16): 2, str(I32): 4, str(INT): 8}


def size_of(element: Any) -> int:
    """Bytes of one element."""
    return _SIZE[str(element)]


class Value:
    """A scalar or vector in generated code; ``+ - * / // % << >> & | ^ < <= > >=`` emit instructions.

    Python numbers mix in freely and take the other side's type. Integer constants fold, so index
    arithmetic may be written plainly. ``//`` and ``%`` truncate (operands are never negative).
    """

    __slots__ = ("f", "ir")

    def __init__(self, f: Any, value: Any) -> None:
        self.f: Function = f
        self.ir = value

    @property
    def type(self) -> Any:
        """Its LLVM type."""
        return self.ir.type

    @property
    def lanes(self) -> int:
        """Elements of a vector; 1 for a scalar."""
        return self.ir.type.count if isinstance(self.ir.type, ir.VectorType) else 1

    @property
    def element(self) -> Any:
        """Type of one element."""
        return self.ir.type.element if isinstance(self.ir.type, ir.VectorType) else self.ir.type

    def __add__(self, other: Value | float) -> Value:
        return self.f.arithmetic("add", self, other)

    def __radd__(self, other: Value | float) -> Value:
        return self.f.arithmetic("add", other, self)

    def __sub__(self, other: Value | float) -> Value:
        return self.f.arithmetic("sub", self, other)

    def __rsub__(self, other: Value | float) -> Value:
        return self.f.arithmetic("sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return self.f.arithmetic("mul", self, other)

    def __rmul__(self, other: Value | float) -> Value:
        return self.f.arithmetic("mul", other, self)

    def __truediv__(self, other: Value | float) -> Value:
        return self.f.arithmetic("div", self, other)

    def __rtruediv__(self, other: Value | float) -> Value:
        return self.f.arithmetic("div", other, self)

    def __floordiv__(self, other: Value | int) -> Value:
        return self.f.arithmetic("div", self, other)

    def __mod__(self, other: Value | int) -> Value:
        return self.f.arithmetic("rem", self, other)

    def __lshift__(self, other: Value | int) -> Value:
        return self.f.arithmetic("shl", self, other)

    def __rshift__(self, other: Value | int) -> Value:
        return self.f.arithmetic("lshr", self, other)

    def __and__(self, other: Value | int) -> Value:
        return self.f.arithmetic("and", self, other)

    def __or__(self, other: Value | int) -> Value:
        return self.f.arithmetic("or", self, other)

    def __xor__(self, other: Value | int) -> Value:
        return self.f.arithmetic("xor", self, other)

    def __neg__(self) -> Value:
        return (
            self.f.arithmetic("sub", 0, self) if _is_int(self.element) else Value(self.f, self.f.irb.fneg(self.ir))
        )

    def __lt__(self, other: Value | float) -> Value:
        return self.f.compare("<", self, other)

    def __le__(self, other: Value | float) -> Value:
        return self.f.compare("<=", self, other)

    def __gt__(self, other: Value | float) -> Value:
        return self.f.compare(">", self, other)

    def __ge__(self, other: Value | float) -> Value:
        return self.f.compare(">=", self, other)

    def equals(self, other: Value | float) -> Value:
        """Elementwise equality (``==`` keeps Python's meaning)."""
        return self.f.compare("==", self, other)

    def differs(self, other: Value | float) -> Value:
        """Elementwise inequality; true for NaN."""
        return self.f.compare("!=", self, other)


class Variable:
    """A mutable local: an accumulator or a moving pointer. mem2reg turns it into registers."""

    __slots__ = ("_like", "_slot", "f")

    def __init__(self, f: Function, start: Value) -> None:
        self.f = f
        self._like = start
        self._slot = f.stack_slot(start.type)
        self.set(start)

    def get(self) -> Any:
        """Its present value (a `Pointer` if it started as one)."""
        loaded = self.f.irb.load(self._slot, typ=self._like.type)
        if isinstance(self._like, Pointer):
            return Pointer(self.f, loaded, self._like.element_type)
        return Value(self.f, loaded)

    def set(self, value: Value) -> None:
        """Replace its value."""
        self.f.irb.store(value.ir, self._slot)


class Pointer(Value):
    """A pointer to elements of one type. ``p + i`` moves by elements; indices are 64-bit."""

    __slots__ = ("element_type",)

    def __init__(self, f: Any, value: Any, element_type: Any) -> None:
        super().__init__(f, value)
        self.element_type = element_type

    def __add__(self, other: Value | float) -> Pointer:
        return self.at(other)  # type: ignore[arg-type]

    def at(self, index: Value | int) -> Pointer:
        """Pointer to element ``index``."""
        if isinstance(index, int) and index == 0:
            return self
        index = self.f.index(index)
        moved = self.f.irb.gep(self.ir, [index.ir], source_etype=self.element_type)
        return Pointer(self.f, moved, self.element_type)

    def bytes(self, offset: Value | int) -> Pointer:
        """Pointer moved by ``offset`` bytes."""
        moved = self.f.irb.gep(self.ir, [self.f.index(offset).ir], source_etype=I8)
        return Pointer(self.f, moved, self.element_type)

    def cast(self, element_type: Any) -> Pointer:
        """The same address, read as another element type."""
        return Pointer(self.f, self.ir, element_type)

    def load(
        self,
        index: Value | int = 0,
        lanes: int = 1,
        *,
        mask: Value | None = None,
        otherwise: Value | None = None,
        align: int | None = None,
    ) -> Value:
        """Element ``index``, or the ``lanes`` elements from it. Masked-off lanes touch no memory and read 0.

        Args:
            index: first element.
            lanes: how many; 1 gives a scalar.
            mask: ``<lanes x i1>`` from `Function.mask_below`.
            otherwise: value of masked-off lanes instead of 0.
            align: alignment in bytes that the caller guarantees; that of one element by default.
        """
        where = self.at(index)
        if lanes == 1 and mask is None:
            align = align or size_of(self.element_type)
            return Value(self.f, self.f.irb.load(where.ir, typ=self.element_type, align=align))
        kind = ir.VectorType(self.element_type, lanes)
        if mask is None:
            loaded = self.f.irb.load(where.ir, typ=kind, align=align or size_of(self.element_type))
            return Value(self.f, loaded)
        rest = otherwise.ir if otherwise is not None else ir.Constant(kind, None)
        return self.f.masked_load(where, kind, mask, rest, align or size_of(self.element_type))

    def stream(self, value: Value, index: Value | int = 0) -> None:
        """Write a vector past the caches; its address must be a multiple of its size, or the program ends."""
        where, module = self.at(index), self.f.module.ir
        store = self.f.irb.store(value.ir, where.ir, align=value.lanes * size_of(self.element_type))
        store.set_metadata("nontemporal", module.add_metadata([ir.Constant(I32, 1)]))

    def store(
        self, value: Value, index: Value | int = 0, *, mask: Value | None = None, align: int | None = None
    ) -> None:
        """Write ``value`` (scalar or vector) at element ``index``; masked-off lanes touch no memory."""
        where = self.at(index)
        align = align or size_of(self.element_type)
        if mask is None:
            self.f.irb.store(value.ir, where.ir, align=align)
        else:
            self.f.masked_store(where, value, mask, align)

    def broadcast(self, index: Value | int, lanes: int) -> Value:
        """Element ``index`` in every lane."""
        return self.f.broadcast(self.load(index), lanes)

    def prefetch(self, index: Value | int = 0, *, write: bool = False, locality: int = 3) -> None:
        """Ask for the cache line of element ``index``; ``locality`` 3 = first level … 0 = no reuse."""
        flags = [ir.Constant(I32, int(write)), ir.Constant(I32, locality), ir.Constant(I32, 1)]
        self.f.intrinsic("llvm.prefetch.p0", ir.VoidType(), self.at(index).ir, *flags)


def _is_int(element: Any) -> bool:
    return isinstance(element, ir.IntType)
