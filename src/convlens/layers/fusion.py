"""Modules whose layers form chains: found in a Sequential's order, elsewhere with torch.fx, and run by `Chain`.

In eval mode a whole module is a `program` where it can be one; chains are for what that leaves.

Each module is traced by itself, its children being leaves, so one that cannot be traced hinders no other. A traced
forward replaces the written one in eval mode only, after both have given the same result, and only while the
module holds what it held when it was traced.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from convlens.layers import program
from convlens.layers.chains import Chain, chain_of, is_watched, starts_a_chain
from convlens.layers.program.trace import Snapshot
from convlens.ops.core import is_plain

__all__ = ["chains_in", "forget", "fuse", "fusing_class", "is_fused", "unfuse"]

_MARK = "_convlens_fusing"
"""Attribute of the classes made here."""

_lock = threading.RLock()
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


class _Plan:
    """How a module's forward is computed: steps in order, or a traced graph that had to prove itself."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.held = _held(module)
        self.chains: list[Chain] = []
        self.steps: list[Callable[[Any], Any]] = []
        self.graph: Any = None
        self.unstable = False
        """Whether the forward changes the module: it is always run as written then."""
        self.proven: dict[tuple[int, torch.dtype], bool] = {}
        if _is_sequence(type(module)):
            self._follow(list(module._modules.values()))  # children() gives a shared one once
        else:
            self._trace(module)

    def _follow(self, children: list[Any]) -> None:
        while children:
            chain = chain_of(children)
            if chain is not None:
                self.chains.append(chain)
            self.steps.append(children[0] if chain is None else chain)
            children = children[1 if chain is None else len(chain.steps) :]

    def _trace(self, module: torch.nn.Module) -> None:
        training = module.training
        module.training = False
        before = Snapshot(module)
        try:
            with torch.no_grad():
                graph = _Tracer().trace(module)
        except Exception:  # any code may stand in a forward: what cannot be traced stays as it is
            return
        finally:
            self.unstable = before.restore()
            module.training = training
        if self.unstable:
            return
        if _held(module) != self.held or any(node.op == "get_attr" for node in graph.nodes):
            return
        found = [(nodes, chain) for node in graph.nodes if (nodes := _followers(module, node))
                 if (chain := chain_of([module.get_submodule(str(n.target)) for n in nodes]))]  # fmt: skip
        if not found:
            return
        traced = torch.fx.GraphModule(module, graph)
        for place, (nodes, chain) in enumerate(found):
            first, last = nodes[0], nodes[len(chain.steps) - 1]
            name = f"_convlens_chain_{place}"
            traced.add_module(name, chain)
            with graph.inserting_after(last):
                fused = graph.call_module(name, first.args)
            last.replace_all_uses_with(fused)
            for node in reversed(nodes[: len(chain.steps)]):
                graph.erase_node(node)
            self.chains.append(chain)
        traced.recompile()
        self.graph = traced

    def drop(self) -> None:
        """Forget folded weights: training goes on."""
        for chain in self.chains:
            chain.drop()

    def run(self, module: torch.nn.Module, written: Callable[..., Any], x: torch.Tensor) -> Any:
        """The module's output."""
        if self.graph is None:
            for step in self.steps:
                x = step(x)
            return x
        if any(child.training for child in module.children()):
            return written(module, x)
        kind = (x.dim(), x.dtype)
        if kind not in self.proven:
            return self._prove(module, written, x, kind)
        return self.graph(x) if self.proven[kind] else written(module, x)

    def _prove(
        self, module: torch.nn.Module, written: Callable[..., Any], x: torch.Tensor, kind: tuple[int, torch.dtype]
    ) -> Any:
        """Run both once; the graph is used from now on if it gave the same. Returns the written one's result."""
        if any(inner.training or is_watched(inner) for inner in module.modules() if inner is not module):
            return written(module, x)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                traced = self.graph(x.detach().clone())
            except Exception:  # such as a branch on a type, taken wrongly while tracing
                traced = None
        out = written(module, x)
        self.proven[kind] = _alike(out, traced)
        return out


_plans: weakref.WeakKeyDictionary[torch.nn.Module, _Plan] = weakref.WeakKeyDictionary()


def _plan_of(module: torch.nn.Module) -> _Plan:
    plan = _plans.get(module)
    if plan is None or not (plan.unstable or plan.held == _held(module)):
        with _lock:  # torch.fx exchanges Module.__call__ while it traces
            plan = _plans[module] = _Plan(module)
    return plan


def _held(module: torch.nn.Module) -> list[Any]:
    """What a forward may depend on besides its input: children and plain attributes, by identity or value."""
    held: list[Any] = [(name, id(child)) for name, child in module._modules.items()]
    for name, value in vars(module).items():
        if name in _BOOKKEEPING or name.startswith("_convlens"):
            continue
        plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
        size = len(value) if isinstance(value, (list, dict, set)) else 0
        held.append((name, repr(value) if plain else id(value), size))
    return held


_BOOKKEEPING = frozenset(vars(torch.nn.Module()))


def _alike(one: Any, other: Any) -> bool:
    if type(one) is not torch.Tensor or type(other) is not torch.Tensor or one.shape != other.shape:
        return False
    if one.dtype != other.dtype or not one.is_floating_point() or one.stride() != other.stride():
        return False
    allowed = _TOLERANCE.get(one.dtype, 5e-2)
    one, other = one.detach().double(), other.double()
    return bool((one - other).norm() <= allowed * one.norm())


class _Tracer(torch.fx.Tracer):
    """Traces one module; its children are leaves."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True


def _followers(module: torch.nn.Module, node: Any) -> list[Any]:
    """Nodes from a convolution on, each called on nothing but the one before and used by nothing but the next."""
    if node.op != "call_module" or not starts_a_chain(module.get_submodule(str(node.target))):
        return []
    nodes = [node]
    while len(nodes) < 4 and len(node.users) == 1:
        (node,) = node.users
        if node.op != "call_module" or node.args != (nodes[-1],) or node.kwargs:
            break
        nodes.append(node)
    return nodes if len(nodes[0].args) == 1 and not nodes[0].kwargs else []


# --- classes ---


def _is_sequence(kind: type) -> bool:
    return issubclass(kind, torch.nn.Sequential) and _written(kind) is torch.nn.Sequential.forward


def _written(kind: type) -> Any:
    """The forward under our own."""
    return getattr(kind.forward, "_convlens_written", kind.forward)  # type: ignore[attr-defined]


@functools.cache
def _takes_one_input(kind: type) -> bool:
    """Whether ``forward(self, x)``: what is None or left out cannot be traced truly."""
    parameters = list(inspect.signature(_written(kind)).parameters.values())
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return len(parameters) == 2 and all(p.kind in plain and p.default is p.empty for p in parameters)


@functools.cache
def fusing_class(kind: type) -> type:
    """``kind`` with a forward that runs its chains."""
    written: Callable[..., Any] = kind.forward  # type: ignore[attr-defined]

    @functools.wraps(written)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # a tracer or a compiler is to see the layers, not the chains
        if torch.compiler.is_compiling() or kwargs or len(args) != 1 or type(args[0]) is not torch.Tensor:
            return written(self, *args, **kwargs)
        if not is_plain(*args) or _has_any_global_hook():
            return written(self, *args)
        if self.training:
            program.forget(self)
            return by_layers(self, args[0])
        return program.compute(self, args[0], by_layers)

    def by_layers(self: torch.nn.Module, x: torch.Tensor) -> Any:
        if not any(starts_a_chain(child) for child in self._modules.values()):
            return written(self, x)
        plan = _plan_of(self)
        if self.training:
            plan.drop()
            if plan.graph is not None:
                return written(self, x)
        return plan.run(self, written, x) if plan.chains else written(self, x)

    forward._convlens_written = _written(kind)  # type: ignore[attr-defined]
    members = {"forward": forward, _MARK: True, "__doc__": kind.__doc__, "__module__": kind.__module__}
    members["__reduce_ex__"] = functools.partialmethod(_reduce, kind)
    derived = type(kind.__name__, (kind,), members)
    derived.__qualname__ = kind.__qualname__
    return derived


def _reduce(module: Any, kind: type, protocol: int) -> tuple[Any, ...]:
    """How a module of a fusing class is copied and pickled: as its own class, derived again on arrival."""
    reduced: Any = kind.__reduce_ex__(module, max(2, protocol))  # type: ignore[call-arg]
    build, (first, *arguments), *rest = reduced
    return (_rebuilt, (build, kind if first is type(module) else first, *arguments), *rest)


def _rebuilt(build: Callable[..., Any], *arguments: Any) -> Any:
    module = build(*arguments)
    kind: type = type(module)
    module.__class__ = fusing_class(kind)
    return module


def _has_own_pickling(kind: type) -> bool:
    if isinstance(inspect.getattr_static(kind, "__reduce_ex__"), functools.partialmethod):
        return False  # ours
    return any(getattr(kind, name) is not getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))


def is_fused(module: torch.nn.Module) -> bool:
    """Whether `fuse` took this module."""
    return _MARK in vars(type(module))


def fuse(module: torch.nn.Module) -> None:
    """Give ``module`` a fusing class if its layers form chains."""
    kind: type = type(module)
    if is_fused(module) or is_watched(module) or parametrize.is_parametrized(module) or _has_own_pickling(kind):
        return
    if not any(starts_a_chain(inner) for inner in module.modules() if inner is not module):
        return
    if _is_sequence(kind) or _takes_one_input(kind):
        module.__class__ = fusing_class(kind)


def unfuse(module: torch.nn.Module) -> None:
    """Undo `fuse`; the plan is kept, see `forget`."""
    if is_fused(module):
        module.__class__ = type(module).__bases__[0]


def forget(modules: Iterable[torch.nn.Module]) -> None:
    """Drop the plans of modules and with them the folded weights."""
    for module in modules:
        _plans.pop(module, None)
        program.forget(module)


def chains_in(module: torch.nn.Module) -> list[Chain]:
    """The chains of a module that `fuse` took."""
    if not is_fused(module) or not any(starts_a_chain(child) for child in module.children()):
        return []
    return list(_plan_of(module).chains)
