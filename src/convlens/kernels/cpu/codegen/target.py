"""What the host can do: vector lanes, AMX tiles, cache sizes; narrower targets can be forced in tests."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

__all__ = ["Target", "current", "forced", "host", "neon"]

_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to compile for.

    Attributes:
        triple: LLVM target triple.
        cpu: LLVM cpu name.
        features: LLVM feature string, ``"+avx2,-avx512f"``.
        lanes: float32 values in one vector register: 16 (AVX-512), 8 (AVX2), 4 (SSE, NEON).
        registers: vector registers that a block may use.
        has_amx: bfloat16 tile products (amx-tile and amx-bf16) may be used by this process.
        has_bf16: hardware conversion of float32 vectors to bfloat16.
        l1_bytes: first-level data cache of one core.
        l2_bytes: second-level cache of one core.
    """

    triple: str
    cpu: str
    features: str
    lanes: int
    registers: int
    has_amx: bool
    has_bf16: bool
    l1_bytes: int
    l2_bytes: int

    def narrowed(self, lanes: int) -> Target:
        """The same x86 machine restricted to 8 (AVX2) or 4 (SSE4) lanes, without tiles."""
        cpu = {8: "x86-64-v3", 4: "x86-64-v2"}[lanes]
        return replace(self, cpu=cpu, features="", lanes=lanes, registers=16, has_amx=False, has_bf16=False)

    def without_amx(self) -> Target:
        """The same machine without tiles: the vector twins of the tile kernels."""
        return replace(self, has_amx=False)

    @property
    def key(self) -> str:
        """Everything that object code depends on."""
        return (
            f"{self.triple} {self.cpu} {self.features} {self.lanes} {self.has_amx} {self.l1_bytes} {self.l2_bytes}"
        )


def neon() -> Target:
    """A generic 64-bit Arm with NEON, for compiling (not running) elsewhere."""
    return Target("aarch64-unknown-linux-gnu", "generic", "+neon", 4, 32, False, False, 64 << 10, 1 << 20)


@cache
def host() -> Target:
    """The machine this process runs on."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    wide = x86 and features.get("avx512f") and features.get("avx512bw") and features.get("avx512vl")
    lanes = 16 if wide else 8 if x86 and features.get("avx2") and features.get("fma") else 4
    l1_bytes, l2_bytes = _cache_bytes()
    return Target(
        triple=llvm.get_process_triple(),
        cpu=llvm.get_host_cpu_name(),
        features=features.flatten(),
        lanes=lanes,
        registers=32 if lanes == 16 or not x86 else 16,
        has_amx=bool(wide and features.get("amx-tile") and features.get("amx-bf16") and _tiles_permitted()),
        has_bf16=bool(wide and features.get("avx512bf16")),
        l1_bytes=l1_bytes,
        l2_bytes=l2_bytes,
    )


_override: list[Target] = []


def current() -> Target:
    """The target that kernels are compiled for: the host, unless `forced`."""
    return _override[-1] if _override else host()


@contextlib.contextmanager
def forced(target: Target) -> Iterator[Target]:
    """Compile for ``target`` inside the block (tests of narrower vectors); not for several threads."""
    _override.append(target)
    try:
        yield target
    finally:
        _override.pop()


def _tiles_permitted() -> bool:
    """Ask Linux for the tile registers' state; the permission is the process's and is inherited."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def _cache_bytes() -> tuple[int, int]:
    """First-level data and second-level cache of core 0, in bytes; modest guesses where unknown."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[level] = int(size[:-1]) << 10
    return found.get("1", 32 << 10), found.get("2", 512 << 10)
