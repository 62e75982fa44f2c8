"""AMX tile instructions of the builder: bfloat16 products accumulated in float32 tiles of 16×16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from convlens.kernels.cpu.codegen.values import I8, Pointer, Value

__all__ = ["TileInstructions"]

_VOID = ir.VoidType()


class TileInstructions:
    """Mixed into `Function`. Tile numbers are Python integers 0–7, baked into the instructions.

    A product multiplies A, up to 16 rows of 32 bfloat16, with B in "VNNI" layout: up to 16 rows of 16
    pairs, where row r holds rows 2r and 2r+1 of the matrix interleaved; C is 16×16 float32.
    """

    if TYPE_CHECKING:
        irb: Any
        module: Any
        name: str
        index: Any
        intrinsic: Any

    def tile_config(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Configure tiles 0, 1, … with ``(rows, bytes per row)``; call before, and `tile_release` after, use."""
        table = bytearray(64)
        table[0] = 1
        for tile, (rows, row_bytes) in enumerate(shapes):
            table[16 + 2 * tile : 18 + 2 * tile] = row_bytes.to_bytes(2, "little")
            table[48 + tile] = rows
        number = sum(name.startswith("tiles.") for name in self.module.ir.globals)
        self.intrinsic("llvm.x86.ldtilecfg", _VOID, self.module.constant(f"tiles.{number}", I8, list(table)))

    def tile_release(self) -> None:
        """Forget the tiles: a thread that keeps them makes every context switch dearer."""
        self.intrinsic("llvm.x86.tilerelease", _VOID)

    def tile_zero(self, tile: int) -> None:
        """Set a tile to zero."""
        self.intrinsic("llvm.x86.tilezero", _VOID, _number(tile))

    def tile_load(self, tile: int, where: Pointer, row_bytes: Value | int) -> None:
        """Load a tile whose rows lie ``row_bytes`` apart."""
        self.intrinsic("llvm.x86.tileloadd64", _VOID, _number(tile), where.ir, self.index(row_bytes).ir)

    def tile_store(self, tile: int, where: Pointer, row_bytes: Value | int) -> None:
        """Store a tile, rows ``row_bytes`` apart."""
        self.intrinsic("llvm.x86.tilestored64", _VOID, _number(tile), where.ir, self.index(row_bytes).ir)

    def tile_dot(self, c: int, a: int, b: int) -> None:
        """``C += A @ B`` for bfloat16 A and B."""
        self.intrinsic("llvm.x86.tdpbf16ps", _VOID, _number(c), _number(a), _number(b))


def _number(tile: int) -> Any:
    return ir.Constant(I8, tile)
