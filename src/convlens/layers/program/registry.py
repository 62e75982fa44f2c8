"""Which module has which programs: made when an input of one shape comes again, dropped when anything changes."""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_leaves

from convlens import planner
from convlens.layers.chains import is_watched
from convlens.layers.program.build import Built, build
from convlens.layers.program.lower import Step, lower
from convlens.layers.program.trace import Untraceable, trace
from convlens.layers.program.watch import Watch
from convlens.planner import settings, to_key
from convlens.window import ConvProblem

__all__ = ["build_now", "compute", "forget", "program_of"]

_log = logging.getLogger(__name__)
_MOST_SHAPES = 8
_BUILD_AT = 2  # calls with one shape before a program is worth its making
_SAME = 1e-3
_lock = threading.RLock()


class _Program:
    """One module at one input shape."""

    def __init__(self, built: Built, watch: Watch) -> None:
        self.built, self.watch, self.busy = built, watch, threading.Lock()


class _State:
    """All programs of a module."""

    def __init__(self) -> None:
        self.programs: dict[Any, _Program] = {}
        self.calls: dict[Any, int] = {}
        self.refused: dict[Any, str] = {}


_states: weakref.WeakKeyDictionary[torch.nn.Module, _State] = weakref.WeakKeyDictionary()
settings.on_change(_states.clear)


def forget(module: torch.nn.Module) -> None:
    """Drop a module's programs."""
    if _states:
        _states.pop(module, None)


def program_of(module: torch.nn.Module, x: torch.Tensor) -> Built | str | None:
    """The program that inputs like ``x`` are run by, the reason why there can be none, or None."""
    state = _states.get(module)
    if state is None:
        return None
    key = _key(x)
    return state.programs[key].built if key in state.programs else state.refused.get(key)


def _key(x: torch.Tensor) -> tuple[Any, ...]:
    return (x.shape, x.stride(), torch.get_num_threads())


def _may(x: torch.Tensor) -> bool:
    """Whether an input is one that programs are for."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.dim() >= 2
        and x.numel() > 0
        and not settings.current().batch_invariant
        and not torch.is_autocast_enabled("cpu")
        and not _has_any_global_hook()
    )


def compute(
    module: torch.nn.Module, x: torch.Tensor, by_layers: Callable[[torch.nn.Module, torch.Tensor], Any]
) -> Any:
    """``module(x)`` by its program, or by its layers where there is none. Eval mode, a plain tensor.

    Modules inside one that may still become a program make none of their own.
    """
    if getattr(_inside, "depth", 0):
        return by_layers(module, x)
    state = _states.get(module)
    if state is None:
        state = _states.setdefault(module, _State())
    key = (x.shape, x.stride(), torch.get_num_threads())
    program = state.programs.get(key)
    if program is not None:
        out = _run(program, state, module, x)
    elif key in state.refused or not _may(x) or _wants_gradients(module, x):
        return by_layers(module, x)
    else:
        out = _later(module, x, by_layers, state, key)
    return _quietly(module, x, by_layers) if out is None else out


def _run(program: _Program, state: _State, module: torch.nn.Module, x: torch.Tensor) -> Any:
    """What the program computes; None where it must not or cannot."""
    # the shape was looked up; what else `_may` asks clears all programs when it changes
    if x.dtype is not torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    recording = torch.is_grad_enabled()
    if recording and _wants_gradients(module, x):
        return None
    if not program.watch.same():
        state.programs.clear()
        state.calls.clear()
        return None
    if not program.busy.acquire(blocking=False):
        return None
    try:
        built = program.built
        if not built.takes(x):
            return None
        if recording:
            with torch.no_grad():
                out = built.run(x)
        else:
            out = built.run(x)
        return None if built.spoilt() else out
    finally:
        program.busy.release()


def _quietly(
    module: torch.nn.Module, x: torch.Tensor, by_layers: Callable[[torch.nn.Module, torch.Tensor], Any]
) -> Any:
    """``by_layers``, in which inner modules make no programs."""
    _inside.depth = 1
    try:
        return by_layers(module, x)
    finally:
        _inside.depth = 0


_inside = threading.local()


def _wants_gradients(module: torch.nn.Module, x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def _later(module: torch.nn.Module, x: torch.Tensor, by_layers: Any, state: _State, key: Any) -> Any:
    """Count a shape; when it has come often enough, build."""
    seen = state.calls[key] = state.calls.get(key, 0) + 1
    if seen < _BUILD_AT or len(state.programs) >= _MOST_SHAPES or any(map(is_watched, module.modules())):
        if len(state.calls) > 64 * _MOST_SHAPES:
            state.calls.clear()
        return None
    return build_now(module, x, by_layers)


def build_now(module: torch.nn.Module, x: torch.Tensor, by_layers: Any) -> Any:
    """Make the program of inputs like ``x``; returns the layers' output, None where they were not run.

    The program is kept only if it gives what the layers give.
    """
    state = _states.setdefault(module, _State())
    key = _key(x)
    with _lock:
        if key in state.programs or not _may(x):
            return None
        out = _quietly(module, x, by_layers)
        if not all(isinstance(t, torch.Tensor) for t in tree_leaves(out)):
            state.refused[key] = "what it returns is not made of tensors"
            return out
        try:
            with torch.inference_mode(False), torch.no_grad():
                graph = trace(module, x)
                read, lowered = _read(module, graph), lower(graph)
                watch = Watch(module, read)
                if not all(bool(t.detach().sum().isfinite()) for t in read if t.is_floating_point()):
                    raise Untraceable("it has weights that are not finite")
                if not watch.covers(read):
                    raise Untraceable("it computes with tensors that are no parameters or buffers")
                example = x.detach().clone(memory_format=torch.preserve_format)
                built = _fastest(lowered, example, [t.detach() for t in tree_leaves(out)])
        except Untraceable as why:
            state.refused[key] = str(why)
            _log.debug("no program for %s: %s", type(module).__name__, why)
            return out
        except Exception as error:  # a net must not stop working because it could not be made faster
            state.refused[key] = f"{type(error).__name__}: {error}"
            _log.warning("no program for %s: %s", type(module).__name__, state.refused[key])
            return out
        with torch.no_grad():
            got = built.run(x)
            if built.spoilt() or not _alike(out, got):
                state.refused[key] = "its program computes something else"
                return out
        state.programs[key] = _Program(built, watch)
        return out


def _read(module: torch.nn.Module, graph: torch.fx.GraphModule) -> list[torch.Tensor]:
    """The module's tensors that a graph reads, and others that might change.

    A number written into the code becomes a tensor without axes that nobody else can reach.
    """
    read = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    reachable = {id(value) for inner in module.modules() for value in vars(inner).values()}
    mine = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    return [t for t in read if t.dim() or id(t) in reachable or t.untyped_storage().data_ptr() in mine]


def _fastest(lowered: tuple[list[Step], str, Any], x: torch.Tensor, like: list[torch.Tensor]) -> Built:
    """The program in the better of the two layouts, measured as a whole."""
    known: dict[Any, Any] = {}
    plain = build(lowered, x, like, "contiguous", known)
    if x.dim() < 4 or not plain.kernels:
        return plain
    last = build(lowered, x, like, "channels_last", known)
    ways = {"channels_last": last, "contiguous": plain}
    problems = "|".join(to_key(p) for p, *_ in known if isinstance(p, ConvProblem))
    key = "layout " + hashlib.sha256(f"{tuple(x.shape)} {problems}".encode()).hexdigest()
    chosen = planner.fastest_of(key, {name: (lambda way=way: way.run(x)) for name, way in ways.items()})  # type: ignore[misc]
    for built in ways.values():
        built.spoilt()
    return ways[chosen]


def _alike(out: Any, got: Any) -> bool:
    """Whether two results have one structure, shapes and strides, and values but for the order of sums."""
    old, new = tree_leaves(out), tree_leaves(got)
    if len(old) != len(new):
        return False
    for one, other in zip(old, new, strict=True):
        if not isinstance(one, torch.Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        one, other = one.detach().double(), other.double()
        if not bool((one - other).norm() <= _SAME * one.norm()):
            return False
    return True
