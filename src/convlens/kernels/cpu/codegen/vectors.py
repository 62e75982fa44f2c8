"""Vector instructions of the builder: masks, fused multiply-add, shuffles, transposes, bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from convlens.kernels.cpu.codegen.values import BF16, F32, F64, I16, I32, Pointer, Value

__all__ = ["VectorInstructions"]


class VectorInstructions:
    """Mixed into `Function`."""

    if TYPE_CHECKING:
        irb: Any
        target: Any
        intrinsic: Any
        index: Any
        like: Any

    # --- making vectors --------------------------------------------------------------------------------

    def zeros(self, lanes: int, element: Any = F32) -> Value:
        """``lanes`` zeros."""
        return Value(self, ir.Constant(ir.VectorType(element, lanes), None))

    def splat(self, number: float, lanes: int, element: Any = F32) -> Value:
        """A constant in every lane."""
        number = float(number) if element is F32 else int(number)
        return Value(self, ir.Constant(ir.VectorType(element, lanes), [number] * lanes))

    def broadcast(self, scalar: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        kind = ir.VectorType(scalar.type, lanes)
        one = self.irb.insert_element(ir.Constant(kind, ir.Undefined), scalar.ir, ir.Constant(I32, 0))
        picks = ir.Constant(ir.VectorType(I32, lanes), None)
        return Value(self, self.irb.shuffle_vector(one, ir.Constant(kind, ir.Undefined), picks))

    def iota(self, lanes: int) -> Value:
        """``0, 1, … lanes-1`` as 32-bit integers."""
        return Value(self, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))

    def mask_below(self, count: Value | int, lanes: int) -> Value:
        """``<lanes x i1>``: lane i is on where ``i < count``; any count, also negative or huge."""
        wanted: Value = self.index(count)
        clipped = self.select(wanted < lanes, wanted, self.index(lanes))
        clipped = self.select(clipped > 0, clipped, self.index(0))
        narrow = Value(self, self.irb.trunc(clipped.ir, I32))
        return self.iota(lanes) < self.broadcast(narrow, lanes)

    def mask_from(self, first: Value | int, lanes: int) -> Value:
        """``<lanes x i1>``: lane i is on where ``i >= first``; any number, also negative or huge."""
        below = self.mask_below(first, lanes)
        return Value(self, self.irb.not_(below.ir))

    # --- memory ----------------------------------------------------------------------------------------

    def masked_load(self, where: Pointer, kind: Any, mask: Value, otherwise: Any, align: int) -> Value:
        """See `Pointer.load`."""
        name = f"llvm.masked.load.{_suffix(kind)}.p0"
        result: Value = self.intrinsic(name, kind, where.ir, ir.Constant(I32, align), mask.ir, otherwise)
        return result

    def masked_store(self, where: Pointer, value: Value, mask: Value, align: int) -> None:
        """See `Pointer.store`."""
        name = f"llvm.masked.store.{_suffix(value.type)}.p0"
        self.intrinsic(name, ir.VoidType(), value.ir, where.ir, ir.Constant(I32, align), mask.ir)

    def gather(self, base: Pointer, indices: Value, mask: Value | None = None) -> Value:
        """``base[indices]`` for a vector of 32- or 64-bit element indices; masked-off lanes read 0."""
        kind = ir.VectorType(base.element_type, indices.lanes)
        places = self.irb.gep(base.ir, [indices.ir], source_etype=base.element_type)
        on = (
            mask.ir
            if mask is not None
            else ir.Constant(ir.VectorType(ir.IntType(1), indices.lanes), [1] * indices.lanes)
        )
        # llvmlite types a vector-indexed address as a plain pointer
        places.type = ir.VectorType(ir.PointerType(), indices.lanes)
        name = f"llvm.masked.gather.{_suffix(kind)}.v{indices.lanes}p0"
        result: Value = self.intrinsic(name, kind, places, ir.Constant(I32, 4), on, ir.Constant(kind, None))
        return result

    def scatter(self, base: Pointer, indices: Value, value: Value, mask: Value) -> None:
        """``base[indices] = value`` where the mask is on; indices of masked-off lanes may be anything."""
        places = self.irb.gep(base.ir, [indices.ir], source_etype=base.element_type)
        places.type = ir.VectorType(ir.PointerType(), indices.lanes)
        name = f"llvm.masked.scatter.{_suffix(value.type)}.v{indices.lanes}p0"
        self.intrinsic(name, ir.VoidType(), value.ir, places, ir.Constant(I32, 4), mask.ir)

    # --- arithmetic ------------------------------------------------------------------------------------

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c`` with one rounding."""
        result: Value = self.intrinsic(f"llvm.fma.{_suffix(c.type)}", c.type, a.ir, b.ir, c.ir)
        return result

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """``a`` where ``condition``, else ``b``."""
        return Value(self, self.irb.select(condition.ir, a.ir, b.ir))

    def max(self, a: Value, b: Value | float) -> Value:
        """Elementwise maximum; a NaN in ``a`` stays, as torch's ReLU and max pooling do."""
        other: Value = self.like(b, a)
        return self.select(other > a, other, a)

    def min(self, a: Value, b: Value | float) -> Value:
        """Elementwise minimum; a NaN in ``a`` stays."""
        other: Value = self.like(b, a)
        return self.select(other < a, other, a)

    def round(self, value: Value) -> Value:
        """Nearest whole number, still as float32."""
        result: Value = self.intrinsic(f"llvm.nearbyint.{_suffix(value.type)}", value.type, value.ir)
        return result

    def power_of_two(self, exponent: Value) -> Value:
        """``2 ** exponent`` for whole float32 numbers from -126 to 127; anything for NaN."""
        bits = self.irb.fptosi(exponent.ir, _like(exponent, I32))
        return self.bitcast((Value(self, bits) + 127) << 23, F32)

    def sum(self, value: Value) -> Value:
        """Sum of the lanes, by halves."""
        while value.lanes > 1:
            half = value.lanes // 2
            low, high = self.shuffle(value, value, range(half)), self.shuffle(value, value, range(half, 2 * half))
            value = low + high
        if isinstance(value.type, ir.VectorType):
            value = Value(self, self.irb.extract_element(value.ir, ir.Constant(I32, 0)))
        return value

    def any(self, mask: Value) -> Value:
        """True where any lane of a mask is on."""
        whole = self.irb.bitcast(mask.ir, ir.IntType(mask.lanes))
        return Value(self, self.irb.icmp_unsigned("!=", whole, ir.Constant(ir.IntType(mask.lanes), 0)))

    # --- shuffles --------------------------------------------------------------------------------------

    def shuffle(self, a: Value, b: Value, picks: Sequence[int]) -> Value:
        """Lanes ``picks`` of ``a`` followed by ``b``; -1 leaves a lane undefined."""
        kind = ir.VectorType(I32, len(picks))
        chosen = [ir.Constant(I32, p if p >= 0 else ir.Undefined) for p in picks]
        return Value(self, self.irb.shuffle_vector(a.ir, b.ir, ir.Constant(kind, chosen)))

    def compress(self, value: Value, mask: Value) -> Value:
        """The lanes whose mask is on, moved to the front; the others are undefined."""
        undefined = ir.Constant(value.type, ir.Undefined)
        name = f"llvm.experimental.vector.compress.{_suffix(value.type)}"
        result: Value = self.intrinsic(name, value.type, value.ir, mask.ir, undefined)
        return result

    def extract(self, value: Value, lane: int) -> Value:
        """One lane as a scalar."""
        return Value(self, self.irb.extract_element(value.ir, ir.Constant(I32, lane)))

    def transpose(self, rows: Sequence[Value]) -> list[Value]:
        """Transpose a square of 32-bit elements held in registers: 4×4, 8×8 or 16×16.

        Unpacks within 128-bit blocks first, then moves whole blocks: only shuffles that need no index register.
        """
        n = len(rows)
        blocks = []  # blocks[g][j]: in block q, column 4q+j of rows 4g..4g+3
        for g in range(0, n, 4):
            a, b, c, d = rows[g : g + 4]
            low = [self._unpack(a, b, 0, 1), self._unpack(c, d, 0, 1)]
            high = [self._unpack(a, b, 2, 1), self._unpack(c, d, 2, 1)]
            pairs = (low, low, high, high)
            blocks.append([self._unpack(p[0], p[1], 2 * (j % 2), 2) for j, p in enumerate(pairs)])
        columns: list[Value] = list(rows)
        for j in range(4):
            for q, column in enumerate(self._transpose_blocks([group[j] for group in blocks])):
                columns[4 * q + j] = column
        return columns

    def _unpack(self, a: Value, b: Value, first: int, width: int) -> Value:
        """Interleave ``width`` elements at a time from ``first`` on, within every block of four."""
        n, picks = a.lanes, []
        for block in range(0, n, 4):
            if width == 1:
                picks += [block + first, n + block + first, block + first + 1, n + block + first + 1]
            else:
                picks += [block + first, block + first + 1, n + block + first, n + block + first + 1]
        return self.shuffle(a, b, picks)

    def _transpose_blocks(self, groups: list[Value]) -> list[Value]:
        """Block q of every group, joined, for each q."""
        if len(groups) == 1:
            return groups
        n = groups[0].lanes
        if len(groups) == 2:
            a, b = groups
            return [self.shuffle(a, b, [*range(s, s + 4), *range(n + s, n + s + 4)]) for s in (0, 4)]
        a, b, c, d = groups
        even, odd = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
        halves = [
            (self.shuffle(a, b, pick + [n + p for p in pick]), self.shuffle(c, d, pick + [n + p for p in pick]))
            for pick in (even, odd)
        ]
        joined = []
        for q in range(4):
            left, right = halves[q % 2]
            pick = even if q < 2 else odd
            joined.append(self.shuffle(left, right, pick + [n + p for p in pick]))
        return joined

    # --- float64 ---------------------------------------------------------------------------------------

    def to_f64(self, value: Value) -> Value:
        """Widen a float32 vector or scalar, exactly."""
        return Value(self, self.irb.fpext(value.ir, _like(value, F64)))

    def to_f32(self, value: Value) -> Value:
        """Round a float64 vector or scalar to float32."""
        return Value(self, self.irb.fptrunc(value.ir, _like(value, F32)))

    # --- bytes -----------------------------------------------------------------------------------------

    def from_bytes(self, value: Value) -> Value:
        """Unsigned bytes as float32."""
        wide = self.irb.zext(value.ir, _like(value, I32))
        return Value(self, self.irb.sitofp(wide, _like(value, F32)))

    # --- bfloat16 --------------------------------------------------------------------------------------

    def to_bf16(self, value: Value) -> Value:
        """Round a float32 vector to bfloat16 (nearest, ties to even)."""
        if self.target.has_bf16:
            return Value(self, self.irb.fptrunc(value.ir, ir.VectorType(BF16, value.lanes)))
        # elsewhere LLVM would call a routine per element: round the bits, and keep NaN a NaN
        bits = self.bitcast(value, I32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40
        halves = self.select(value.differs(value), quiet, rounded)
        narrow = Value(self, self.irb.trunc(halves.ir, ir.VectorType(I16, value.lanes)))
        return self.bitcast(narrow, BF16)

    def from_bf16(self, value: Value) -> Value:
        """Widen bfloat16 to float32, exactly."""
        bits = self.irb.bitcast(value.ir, ir.VectorType(I16, value.lanes))
        wide = self.irb.shl(
            self.irb.zext(bits, ir.VectorType(I32, value.lanes)),
            ir.Constant(ir.VectorType(I32, value.lanes), [16] * value.lanes),
        )
        return Value(self, self.irb.bitcast(wide, ir.VectorType(F32, value.lanes)))

    def split_bf16(self, value: Value, parts: int = 2) -> list[Value]:
        """``value`` as a sum of bfloat16 vectors, largest first: 2 parts keep 16 bits of it, 3 parts all 24."""
        pieces = []
        for part in range(parts):
            pieces.append(self.to_bf16(value))
            if part + 1 < parts:
                value = value - self.from_bf16(pieces[-1])
        return pieces

    def bitcast(self, value: Value, element: Any) -> Value:
        """The same bits as another element type of the same total width."""
        from convlens.kernels.cpu.codegen.values import size_of

        lanes = value.lanes * size_of(value.element) // size_of(element)
        kind = ir.VectorType(element, lanes) if isinstance(value.type, ir.VectorType) else element
        return Value(self, self.irb.bitcast(value.ir, kind))

    def interleave(self, a: Value, b: Value) -> Value:
        """``a0 b0 a1 b1 …``, twice as long."""
        n = a.lanes
        return self.shuffle(a, b, [lane + side for lane in range(n) for side in (0, n)])


def _like(value: Value, element: Any) -> Any:
    """The type of ``value`` with another element type."""
    return ir.VectorType(element, value.lanes) if isinstance(value.type, ir.VectorType) else element


def _suffix(kind: Any) -> str:
    """LLVM's mangling of a type in intrinsic names."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_suffix(kind.element)}"
    return str(kind.intrinsic_name)
