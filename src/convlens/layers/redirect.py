"""Functional calls (``F.conv2d`` inside a ``forward``) sent to `convlens.ops`, and finding who makes them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from convlens import ops

__all__ = ["Redirect", "functions_called", "redirecting"]

_NAMES = tuple(
    f"{kind}{ndim}d"
    for kind in (
        "conv",
        "conv_transpose",
        "max_pool",
        "avg_pool",
        "lp_pool",
        "max_unpool",
        "adaptive_avg_pool",
        "adaptive_max_pool",
    )
    for ndim in (1, 2, 3)
)
WORTHWHILE = frozenset(
    name
    for name in (*_NAMES, *(f"max_pool{ndim}d_with_indices" for ndim in (1, 2, 3)))
    if not name.startswith(("adaptive", "max_unpool"))
)
"""Functions that ours may compute itself; for the others ours is torch's, and watching every call costs time."""
_DEEPEST = 6


def _with_indices(own: Callable[..., Any], position: int) -> Callable[..., Any]:
    """``own``, called as torch calls its ``*_with_indices`` functions."""

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["return_indices"] = True
        return own(*args[:position], **kwargs)

    return call


@functools.cache
def _table() -> dict[Any, Callable[..., Any]]:
    """Torch's functions, under each of their names, and ours."""
    table: dict[Any, Callable[..., Any]] = {}
    for name in _NAMES:
        own = getattr(ops, name)
        for home in (F, torch, torch._C._nn):
            theirs = getattr(home, name, None)
            if theirs is not None:
                table[theirs] = own
        position = 6 if name.startswith("max_pool") else 2
        for home in (F, torch, torch._C._nn):
            theirs = getattr(home, f"{name}_with_indices", None)
            if theirs is not None:
                table[theirs] = _with_indices(own, position)
    return table


class Redirect(TorchFunctionMode):
    """While this is entered, torch's convolution and pooling functions are `convlens.ops`'."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ours in place of ``func``, or ``func``."""
        return _table().get(func, func)(*args, **(kwargs or {}))


def _is_redirecting() -> bool:
    stack = range(torch._C._len_torch_function_stack())
    return any(isinstance(torch._C._get_function_stack_at(place), Redirect) for place in stack)


def redirecting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` with its functional calls redirected, those of its children too."""

    @functools.wraps(forward)
    def redirected(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # under torch.compile the functions stay torch's: the compiler sees those through
        if torch.compiler.is_compiling() or _is_redirecting():
            return forward(self, *args, **kwargs)
        with Redirect():
            return forward(self, *args, **kwargs)

    return redirected


def functions_called(module: torch.nn.Module) -> frozenset[str]:
    """Names of torch's convolution and pooling functions that ``module``'s own code mentions.

    Its ``forward``, the methods, functions and closures that this reaches outside torch, and functions kept as
    attributes are read, not run; children are not entered.
    """
    kind = type(module)
    found: set[str] = set()
    seen: set[int] = set()
    for start in (kind.forward, *_kept_functions(vars(module).values())):
        _read(start, kind, found, seen, 0)
    return frozenset(found)


def _kept_functions(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)):
            yield value


def _read(item: Any, kind: type, found: set[str], seen: set[int], depth: int) -> None:
    """Collect into ``found`` what ``item`` and what it calls mention."""
    while isinstance(item, functools.partial):
        item = item.func
    item = getattr(item, "__func__", item)
    own = _table().get(item) if item.__hash__ else None
    if own is not None:
        found.add(getattr(item, "__name__", own.__name__))
    if depth > _DEEPEST or id(item) in seen or not isinstance(item, types.FunctionType):
        return
    seen.add(id(item))
    if (item.__module__ or "").split(".")[0] in ("torch", "functools", "inspect", "convlens"):
        return _read_closure(item, kind, found, seen, depth)
    names = set(_names_of(item.__code__))
    found |= names & ({*_NAMES} | WORTHWHILE)
    for called in _called(item, kind, names):
        _read(called, kind, found, seen, depth + 1)
    return _read_closure(item, kind, found, seen, depth)


def _read_closure(item: types.FunctionType, kind: type, found: set[str], seen: set[int], depth: int) -> None:
    for cell in item.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # a cell not filled yet
            continue
        if isinstance(content, (types.FunctionType, types.BuiltinFunctionType, functools.partial)):
            _read(content, kind, found, seen, depth + 1)


def _names_of(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of(constant)


def _called(item: types.FunctionType, kind: type, names: set[str]) -> Iterator[Any]:
    """Functions that the names may stand for: globals, members of modules among them, methods."""
    outside = [item.__globals__[name] for name in names if name in item.__globals__]
    modules = [m for m in outside if isinstance(m, types.ModuleType) and not m.__name__.startswith("torch")]
    yield from _kept_functions(outside)
    for name in names:
        for module in modules:
            yield from _kept_functions([getattr(module, name, None)])
        # the code of a module's children is theirs, so only plain methods count
        yield from _kept_functions([_plain_member(kind, name)])


def _plain_member(kind: type, name: str) -> Any:
    if name in ("forward", "__call__") or hasattr(torch.nn.Module, name):
        return None
    for base in kind.__mro__:
        if name in vars(base):
            member = vars(base)[name]
            return getattr(member, "__func__", member)
    return None
