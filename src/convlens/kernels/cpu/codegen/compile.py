"""From builder to callable: verify, optimise, emit an object, remember it on disk, load it.

An entry of the cache is one line of JSON (signatures, seconds, SHA-256) and the object. It is written to a
temporary name and renamed, so that readers in other processes see whole entries; one that does not match
its checksum is thrown away and compiled again. A folder that cannot be written costs only the saving.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convlens.environment import cache_dir
from convlens.kernels.cpu.codegen.builder import Module
from convlens.kernels.cpu.codegen.target import Target, current

__all__ = ["Compiled", "CompileRecord", "compile_log", "compiled", "emit_object", "link_runtime"]

_CTYPES: dict[str, Any] = {"int": ctypes.c_int64, "f32": ctypes.c_float}
_lock = threading.RLock()
_memory: dict[tuple[Any, ...], Compiled] = {}
_log: list[CompileRecord] = []
_names = iter(range(1 << 62))


@dataclass(frozen=True, slots=True)
class CompileRecord:
    """One kernel made ready: how long it took to compile, and whether the disk already had it."""

    name: str
    parameters: str
    compile_s: float
    from_disk: bool


class Compiled:
    """Exported functions of one loaded object, as attributes: call with addresses and integers.

    ``kernel.conv(x.data_ptr(), y.data_ptr(), batch, threads())``; the GIL is released meanwhile.
    """

    def __init__(self, tracker: Any, signatures: dict[str, list[str]]) -> None:
        self._tracker = tracker  # owns the machine code
        for name, kinds in signatures.items():
            prototype = ctypes.CFUNCTYPE(None, *(_CTYPES.get(kind, ctypes.c_void_p) for kind in kinds))
            setattr(self, name, prototype(tracker[name]))

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(f"this object exports no function {name!r}")


def compiled(name: str, build: Callable[..., None], **parameters: Any) -> Compiled:
    """The object of one kernel, compiled at most once per machine.

    Args:
        name: the kernel's name, ``"cpu.depthwise"``.
        build: ``build(module, **parameters)`` fills a `Module`; only called when no cache has the object.
        parameters: constants of this object; hashable, with a ``repr`` that says all.
    """
    target = current()
    key = (name, target.key, tuple(sorted(parameters.items())))
    if (found := _memory.get(key)) is not None:
        return found
    with _lock:
        if (found := _memory.get(key)) is not None:
            return found
        entry = _from_disk(key) or _compile(name, build, parameters, target, key)
        header, image = entry
        loaded = Compiled(_load(image, header["functions"]), header["functions"])
        _memory[key] = loaded
        return loaded


def compile_log() -> tuple[CompileRecord, ...]:
    """Every kernel made ready by this process, in order, for ``convlens plan -v``."""
    return tuple(_log)


def emit_object(module: Module) -> bytes:
    """Verify, optimise (O1, vectors as written) and compile to an object file for the module's target.

    O3 took three times as long and made no kernel faster: they are written as they shall run.

    Raises:
        RuntimeError: the IR is not valid; a bug in the kernel's builder.
    """
    import llvmlite.binding as llvm

    _initialise()
    machine = _machine(module.target)
    parsed = llvm.parse_assembly(str(module.ir))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(1)
    # kernels are written unrolled and in vectors: LLVM's own attempts cost time and registers
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return bytes(machine.emit_object(parsed))


def link_runtime(text: str, imports: dict[str, int], export: str) -> int:
    """Compile a little IR against addresses of loaded functions; the address of ``export``. Never unloaded."""
    import llvmlite.binding as llvm

    _initialise()
    builder = llvm.JITLibraryBuilder().add_ir(text).export_symbol(export)
    for symbol, address in imports.items():
        builder.import_symbol(symbol, address)
    tracker = builder.link(_jit(), f"convlens-runtime-{next(_names)}")
    _forever.append(tracker)
    return int(tracker[export])


_forever: list[Any] = []


def _compile(
    name: str, build: Callable[..., None], parameters: dict[str, Any], target: Target, key: tuple[Any, ...]
) -> tuple[dict[str, Any], bytes]:
    start = time.perf_counter()
    module = Module(name, target)
    build(module, **parameters)
    image = emit_object(module)
    seconds = time.perf_counter() - start
    header = {"functions": module.signatures, "compile_s": seconds, "sha256": hashlib.sha256(image).hexdigest()}
    _log.append(CompileRecord(name, repr(parameters), seconds, from_disk=False))
    _to_disk(key, header, image)
    return header, image


def _load(image: bytes, functions: dict[str, list[str]]) -> Any:
    import llvmlite.binding as llvm

    from convlens.kernels.cpu.codegen.parallel import REGION_SYMBOL, region_address

    _initialise()
    builder = llvm.JITLibraryBuilder().add_object_img(image).import_symbol(REGION_SYMBOL, region_address())
    for symbol, address in _math_symbols().items():
        builder.import_symbol(symbol, address)
    for name in functions:
        builder.export_symbol(name)
    return builder.link(_jit(), f"convlens-{next(_names)}")


@cache
def _math_symbols() -> dict[str, int]:
    """Functions that LLVM may call on its own: memory moves, and those of the maths library."""
    libraries = [ctypes.CDLL(None)] if os.name == "posix" else [ctypes.CDLL("msvcrt")]
    found = {}
    for symbol in ("memset", "memcpy", "memmove", "fmaf", "expf", "logf"):
        for library in libraries:
            with contextlib.suppress(AttributeError):
                found[symbol] = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0
    return {symbol: address for symbol, address in found.items() if address}


@cache
def _initialise() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@cache
def _machine(target: Target) -> Any:
    import llvmlite.binding as llvm

    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="small"
    )


@cache
def _jit() -> Any:
    import llvmlite.binding as llvm

    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), jit=True
    )
    return llvm.create_lljit_compiler(machine, use_jit_link=True)


# --- the cache on disk -----------------------------------------------------------------------------------


def _entry_path(key: tuple[Any, ...]) -> Path:
    digest = hashlib.sha256(f"{_sources()} {key!r}".encode()).hexdigest()[:40]
    return cache_dir() / "kernels" / _version_key() / f"{digest}.o"


@cache
def _version_key() -> str:
    """Folder of this convlens, llvmlite, LLVM and cpu: another version starts afresh beside it."""
    import llvmlite.binding as llvm

    from convlens.kernels.cpu.codegen.target import host

    llvm_version = ".".join(map(str, llvm.llvm_version_info))
    features = hashlib.sha256(host().features.encode()).hexdigest()[:8]
    return f"{_own_version()}-llvmlite{version('llvmlite')}-llvm{llvm_version}-{host().cpu}-{features}"


def _own_version() -> str:
    try:
        return version("convlens")
    except ModuleNotFoundError:  # a source tree that is not installed
        return "source"


@cache
def _sources() -> str:
    """Fingerprint of the code that writes kernels: an edited builder never meets an old object."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _from_disk(key: tuple[Any, ...]) -> tuple[dict[str, Any], bytes] | None:
    path = _entry_path(key)
    try:
        line, _, image = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    try:
        header = json.loads(line)
        whole = header["sha256"] == hashlib.sha256(image).hexdigest()
        record = CompileRecord(key[0], repr(dict(key[2])), float(header["compile_s"]), from_disk=True)
        whole = whole and all(isinstance(kinds, list) for kinds in header["functions"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    _log.append(record)
    return header, image


def _to_disk(key: tuple[Any, ...], header: dict[str, Any], image: bytes) -> None:
    path = _entry_path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n" + image)
        os.replace(temporary, path)
    except OSError:  # a full disk, or a reader that holds the file open (Windows)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
