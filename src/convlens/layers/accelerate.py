"""`accelerate`: any model's convolutions and poolings through convlens, in place and undone by `restore`.

Three ways, chosen module by module:

- a layer that is exactly torch.nn's becomes ours by exchanging its class; all that it holds stays;
- a subclass that inherits torch.nn's computation gets a class of its own whose computation is ours;
- a module whose own code calls ``F.conv2d`` and the like gets a class whose ``forward`` redirects those calls.

After that, modules whose layers form chains (convolution, batch norm, ReLU, max pooling) run those as one
(`fusion`).

All are classes, so deepcopy, pickling, train/eval, hooks and ``isinstance`` work as before. Parametrized modules
(weight_norm, spectral_norm) have a class each, which is laid over ours instead of torch.nn's.
"""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from convlens.errors import DtypeError, UnsupportedError
from convlens.layers import convolution, folding, fusion, pooling
from convlens.layers.gain import Gain, expected_gain, measured_gain
from convlens.layers.redirect import WORTHWHILE, functions_called, redirecting

__all__ = ["Acceleration", "accelerate", "acceleration_of", "restore"]

_MARK = "_convlens_original_class"
"""Instance attribute that holds the class to go back to."""

_FAMILIES = (
    *(f"Conv{n}d" for n in (1, 2, 3)),
    *(f"ConvTranspose{n}d" for n in (1, 2, 3)),
    *(f"{kind}{n}d" for kind in ("MaxPool", "AvgPool", "LPPool", "MaxUnpool") for n in (1, 2, 3)),
    *(f"{kind}{n}d" for kind in ("AdaptiveAvgPool", "AdaptiveMaxPool") for n in (1, 2, 3)),
    "Fold",
    "Unfold",
)


@functools.cache
def _ours() -> dict[type, type]:
    """torch.nn's class and ours."""
    homes = {**vars(folding), **vars(pooling), **vars(convolution)}
    return {getattr(torch.nn, name): homes[name] for name in _FAMILIES}


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What became of one module: ``replaced`` (ours computes it), ``redirected`` (its own calls) or ``left``.

    A module has a further record, ``fused``, for each chain of its layers that runs as one.
    """

    name: str
    kind: str
    action: Literal["replaced", "redirected", "fused", "left"]
    reason: str


def accelerate(model: torch.nn.Module, example_input: Any = None, *, report: bool = True) -> torch.nn.Module:
    """Run the convolutions and poolings of ``model`` through convlens. Works in place; `restore` undoes it.

    Outputs, gradients, parameters, state_dict keys, hooks, train and eval stay what they are. Calls of
    ``torch.nn.functional`` inside a module's own ``forward`` are redirected too.

    In eval mode without gradients weights are packed once. Changes are seen before the next call, by torch's
    version counters; what is written through ``.data`` leaves no count, so 17 numbers of each tensor are compared
    as well: a new, rescaled or pruned tensor shows, a single weight may not. Write under ``torch.no_grad()``.

    Args:
        model: any module.
        example_input: an input (a tensor, a tuple of arguments or a dict of them). If given, the model is run on
            it before and after, in eval mode, and left as it was where the outputs differ.
        report: print a table of what was replaced and what was left, with reasons, on stderr; with an example
            input also the gain that the plans promise and the one measured on it.

    Returns:
        ``model``.

    Raises:
        DtypeError: not a module.
        UnsupportedError: outputs differ on ``example_input``; the model is restored first.
    """
    if not isinstance(model, torch.nn.Module):
        raise DtypeError("model", "a torch.nn.Module", type(model).__name__)
    before = None if example_input is None else _outputs(model, example_input)
    _accelerate_all(model)
    if before is not None:
        _outputs(model, example_input)  # a shape that comes again gets its program
        difference = _largest_difference(before, _outputs(model, example_input))
        if difference is not None:
            restore(model)
            raise UnsupportedError("model", "equal outputs before and after", difference, "leave it as it is")
    if report:
        _print_table(acceleration_of(model))
        if example_input is not None:
            _print_gain(*_gains(model, example_input))
    return model


def _accelerate_all(model: torch.nn.Module) -> None:
    modules = list(model.modules())
    for module in modules:
        _accelerate_one(module)
    for module in modules:
        if _hindrance(module) is None:
            fusion.fuse(module)


def _restore_classes(model: torch.nn.Module) -> None:
    for module in model.modules():
        fusion.unfuse(module)
        original = vars(module).pop(_MARK, None)
        if original is None:
            continue
        if "parametrizations" in module._modules and parametrize.is_parametrized(module):
            module.__class__ = _laid_over(type(module), original)
        else:
            module.__class__ = original


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Undo `accelerate`: every module gets its own class back. Returns ``model``."""
    if not isinstance(model, torch.nn.Module):
        raise DtypeError("model", "a torch.nn.Module", type(model).__name__)
    _restore_classes(model)
    fusion.forget(model.modules())
    return model


def acceleration_of(model: torch.nn.Module) -> list[Acceleration]:
    """What `accelerate` has made of each module that convolves or pools, or why it leaves it."""
    found = []
    for name, module in model.named_modules():
        original = vars(module).get(_MARK)
        if original is not None:
            action, how = _description(original)
            found.append(Acceleration(name, original.__name__, action, how))
        elif reason := _reason_to_leave(module):
            found.append(Acceleration(name, _unparametrized(type(module)).__name__, "left", reason))
        for chain in fusion.chains_in(module):
            found.append(Acceleration(name, type(module).__name__, "fused", chain.described()))
    return found


def _description(original: type) -> tuple[Literal["replaced", "redirected"], str]:
    if original in _ours():
        return "replaced", "exactly torch.nn's layer"
    if _inherited_from(original) is not None:
        return "replaced", "inherits torch.nn's computation"
    return "redirected", "calls torch's functions in its forward"


def _accelerate_one(module: torch.nn.Module) -> None:
    if _MARK in vars(module) or _hindrance(module) is not None:
        return
    parametrized = parametrize.is_parametrized(module)
    original = _unparametrized(type(module)) if parametrized else type(module)
    target = _ours().get(original) or _inheriting_class(original)
    if target is None and not _is_libraries(original) and functions_called(module) & WORTHWHILE:
        target = _redirected_class(original)
    if target is None:
        return
    module.__class__ = _laid_over(type(module), target) if parametrized else target
    vars(module)[_MARK] = original


# --- reasons to leave a module ---


def _is_libraries(kind: type) -> bool:
    """Whether a class is torch's or ours, so that its code need not be read."""
    return kind.__module__.split(".")[0] in ("torch", "convlens")


def _hindrance(module: torch.nn.Module) -> str | None:
    """What keeps a module as it is, whatever it computes."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript holds compiled code"
    if kind.__module__.startswith("torch.ao."):
        return "quantised: its arithmetic is another"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy: run one batch through it first, then accelerate"
    if isinstance(module, torch.fx.GraphModule):
        return "a traced graph: accelerate the model before tracing it"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if any(name in vars(module) for name in ("flip", "algorithm", "compute")):
        return "it has attributes of its own named flip, algorithm or compute"
    return None


def _reason_to_leave(module: torch.nn.Module) -> str | None:
    """Why an untouched module was left; None for one that neither convolves nor pools."""
    kind = type(module)
    concerned = isinstance(module, (*_ours(), LazyModuleMixin)) or _QUANTISED.search(kind.__module__) is not None
    if kind.__module__.startswith("convlens."):
        return None
    called = frozenset() if _is_libraries(kind) else functions_called(module)
    if not concerned and not called:
        return None
    if hindrance := _hindrance(module):
        return hindrance
    if called and not called & WORTHWHILE:
        return f"calls only {', '.join(sorted(called))}, which convlens hands to torch as well"
    return (
        "not accelerated yet"
        if called or type(module) in _ours()
        else "its own computation, without torch's functions"
    )


_QUANTISED = re.compile(r"^torch\.ao\..*(conv|pool)")


# --- classes ---


def _unparametrized(kind: type) -> type:
    """The class under a parametrized one."""
    return kind.__bases__[0] if kind.__name__.startswith("Parametrized") and len(kind.__bases__) == 1 else kind


def _laid_over(parametrized: type, base: type) -> type:
    """A parametrized class like ``parametrized`` with another base."""
    members = {
        name: member for name, member in vars(parametrized).items() if name not in ("__dict__", "__weakref__")
    }
    return type(parametrized.__name__, (base,), members)


def _inherited_from(kind: type) -> type | None:
    """The torch.nn layer whose computation ``kind`` inherits untouched."""
    if _is_libraries(kind) or any(hasattr(kind, name) for name in ("flip", "algorithm", "compute")):
        return None
    computing = ("forward", "_conv_forward", "_output_padding")
    for theirs in _ours():
        if issubclass(kind, theirs) and all(
            getattr(kind, name, None) is getattr(theirs, name, None) for name in computing
        ):
            return theirs
    return None


@functools.cache
def _inheriting_class(kind: type) -> type | None:
    """``kind`` with torch.nn's computation exchanged for ours."""
    theirs = _inherited_from(kind)
    if theirs is None:
        return None
    own = _ours()[theirs]
    taken = ("forward", "_conv_forward", "_missing", "compute", "ndim", "flip", "algorithm", "padding_mode")
    members = {name: inspect.getattr_static(own, name) for name in taken if hasattr(own, name)}
    if issubclass(theirs, torch.nn.modules.conv._ConvNd) and not theirs.__name__.startswith("ConvTranspose"):
        del members["forward"]  # which calls _conv_forward
    return _derived(kind, members)


@functools.cache
def _redirected_class(kind: type) -> type:
    """``kind`` with the functional calls of its forward redirected."""
    return _derived(kind, {"forward": redirecting(kind.forward)})  # type: ignore[attr-defined]


def _derived(kind: type, members: dict[str, Any]) -> type:
    own_pickling = any(
        getattr(kind, name) is not getattr(object, name) for name in ("__reduce__", "__reduce_ex__")
    )
    if not own_pickling:
        members = {**members, "__reduce_ex__": functools.partialmethod(_reduce, kind)}
    derived = type(kind.__name__, (kind,), {**members, "__doc__": kind.__doc__, "__module__": kind.__module__})
    derived.__qualname__ = kind.__qualname__
    return derived


def _reduce(module: Any, kind: type, protocol: int) -> tuple[Any, ...]:
    """How a module of a derived class is copied and pickled: as its own class, derived again on arrival."""
    reduced: Any = object.__reduce_ex__(module, max(2, protocol))
    _, (_, *arguments), *rest = reduced
    return (_rebuilt, (kind, *arguments), *rest)


def _rebuilt(kind: type, *arguments: Any) -> Any:
    module = kind.__new__(kind, *arguments)
    module.__class__ = _inheriting_class(kind) or _redirected_class(kind)
    return module


# --- the check and the table ---


def _outputs(model: torch.nn.Module, example_input: Any) -> list[torch.Tensor]:
    """Floating-point outputs in eval mode, from one state of the random numbers."""
    leaves = tree_leaves(_run(model, example_input))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _run(model: torch.nn.Module, example_input: Any) -> Any:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if isinstance(example_input, dict):
                return model(**example_input)
            if isinstance(example_input, tuple):
                return model(*example_input)
            return model(example_input)
    finally:
        for module, training in modes.items():
            module.training = training


def _gains(model: torch.nn.Module, example_input: Any) -> tuple[Gain | None, Gain]:
    run = functools.partial(_run, model, example_input)
    expected = expected_gain(model, run)
    measured = measured_gain(run, before=lambda: _restore_classes(model), after=lambda: _accelerate_all(model))
    return expected, measured


_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


def _largest_difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> str | None:
    """What is different, in words; None where outputs agree but for the order of summation."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return f"shapes {[tuple(t.shape) for t in after]} after {[tuple(t.shape) for t in before]}"
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        old, new = old.double().nan_to_num(), new.double().nan_to_num()
        allowed = _TOLERANCE.get(before[place].dtype, 5e-2)
        error = float((new - old).norm() / old.norm().clamp(min=1e-30))
        if error > allowed:
            return f"output {place} with a relative difference of {error:.2g} (at most {allowed:g})"
    return None


def _print_table(rows: list[Acceleration]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "action", "module", "how many", "which", "why", title="convlens.accelerate", title_justify="left"
    )
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.action, row.kind, row.reason), []).append(row.name or "(the model)")
    for (action, kind, reason), names in sorted(
        groups.items(), key=lambda group: (group[0][0] == "left", group[0])
    ):
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        table.add_row(action, kind, str(len(names)), shown, reason)
    console = Console(stderr=True)
    console.print(table if rows else "convlens.accelerate: this model neither convolves nor pools.")


def _print_gain(expected: Gain | None, measured: Gain) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if expected is not None:
        console.print(f"expected gain of the convolutions, by their plans: {expected}")
    console.print(
        f"measured gain of the whole, eval mode, median of {measured.rounds} interleaved runs: {measured}"
    )
