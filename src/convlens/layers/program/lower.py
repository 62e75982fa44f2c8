"""From operators to steps: a convolution with its batch norm, residual and activation is one of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

__all__ = ["Call", "Convolution", "Dense", "Pooling", "Scaling", "Step", "constants", "lower", "used"]

aten = torch.ops.aten

_ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.silu.default: "silu",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
}
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_NORMS = {
    aten.native_batch_norm.default: (5,),
    aten._native_batch_norm_legit.default: (5,),
    aten._native_batch_norm_legit_no_training.default: (),
}


_MAX_POOLS = (aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
_ADAPTIVE = (aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
_AVG_POOLS = (aten.avg_pool2d.default, aten.avg_pool3d.default)


def _each(number: Any, axes: int) -> tuple[int, ...]:
    """One number an axis."""
    if isinstance(number, int):
        return (number,) * axes
    return tuple(number) * axes if len(number) == 1 else tuple(number)


def _window(given: Sequence[Any], axes: int, inside: bool = True, divisor: int = 0) -> tuple[Any, ...]:
    """`Pooling.window` of an operator's arguments."""
    kernel, stride, padding, dilation = (*given, *(None, (), 0, 1)[len(given) :])[:4]
    numbers = (kernel, stride or kernel, padding, dilation)
    return (*(_each(number, axes) for number in numbers), inside, divisor)


@dataclass(slots=True)
class Convolution:
    """``activation(convolution(source) + bias + residual)``; ``source`` and ``residual`` name values."""

    name: str
    source: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    residual: str | None = None
    activation: str = "none"
    pool: Pooling | None = None
    """A max pooling of 2×2 right behind it, which one kernel may compute as well."""


@dataclass(slots=True)
class Dense:
    """``activation(source @ weight.T + bias)`` for a source of two axes."""

    name: str
    source: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str = "none"


@dataclass(slots=True)
class Scaling:
    """``activation(source * scale + shift)``, numbers for each channel: a batch norm that no convolution takes."""

    name: str
    source: str
    scale: torch.Tensor
    shift: torch.Tensor
    activation: str = "none"


@dataclass(slots=True)
class Call:
    """Any other operator; values among ``args`` and ``kwargs`` are `Node`, constants are tensors."""

    name: str
    operator: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Pooling:
    """Max or average pooling of a source with images; ``call`` computes the same by torch.

    ``window`` is ``(kernel, stride, padding, dilation, count_include_pad, divisor)``; a kernel of () is the whole
    image, of which ``flat`` then says whether its axes are dropped.
    """

    name: str
    source: str
    kind: Literal["max", "avg"]
    window: tuple[Any, ...]
    call: Callable[[torch.Tensor], torch.Tensor]
    flat: bool = False


Step = Convolution | Dense | Pooling | Scaling | Call


def _form(node: Node) -> Any:
    """Shape and type of a value, as recorded."""
    held = node.meta.get("val", node.meta.get("tensor_meta"))
    return None if held is None or isinstance(held, (tuple, list)) else (tuple(held.shape), held.dtype)


class _Lowering:
    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.done: set[Node] = set()
        self.renamed: dict[Node, Node] = {}
        self.steps: dict[Node, Step] = {}
        self.order = {node: place for place, node in enumerate(graph.graph.nodes)}

    def constant(self, value: Any) -> torch.Tensor | None:
        """The tensor that a node stands for, through transpositions; None if it is computed."""
        if isinstance(value, Node) and value.op == "get_attr":
            found: torch.Tensor = getattr(self.graph, str(value.target))
            return found
        return None

    def only_user(self, node: Node) -> Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def through_norm(self, node: Node, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """``(node, weight, bias)`` with a batch norm that follows folded in."""
        user = self.only_user(node)
        if user is None or user.args[0] is not node or (found := self.norm(user)) is None:
            return node, weight, bias
        last, scale, shift = found
        if bias is not None:
            shift = shift + bias.double() * scale
        folded = (weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
        return last, folded, shift.to(weight.dtype)

    def norm(self, node: Node) -> tuple[Node, torch.Tensor, torch.Tensor] | None:
        """A batch norm's value, and the float64 numbers that it multiplies by and adds."""
        if node.target not in _NORMS:
            return None
        gamma, beta, mean, var = (self.constant(a) for a in node.args[1:5])
        trains = [node.args[place] for place in _NORMS[node.target]]
        taken = [u for u in node.users if u.target is operator.getitem and u.args[1] == 0]
        if mean is None or var is None or any(trains) or len(taken) != 1 or len(node.users) != 1:
            return None
        eps: Any = node.args[-1]
        scale = (var.double() + eps).rsqrt()
        if gamma is not None:
            scale = scale * gamma.double()
        shift = -mean.double() * scale
        return taken[0], scale, shift if beta is None else shift + beta.double()

    def scaling(self, node: Node) -> None:
        """A batch norm by itself."""
        source = node.args[0]
        form = _form(source) if isinstance(source, Node) else None
        if form is None or form[1] != torch.float32 or len(form[0]) < 3 or (found := self.norm(node)) is None:
            return
        value, scale, shift = found
        last, activation = self.activation(value)
        self.replace(node, last, Scaling(last.name, str(source), scale.float(), shift.float(), activation))

    def residual(self, node: Node) -> tuple[Node, Node | None]:
        """What follows an addition of a value computed before, and that value."""
        user = self.only_user(node)
        if user is None or user.target is not aten.add.Tensor or user.kwargs or len(user.args) != 2:
            return node, None
        first, second = user.args
        other = second if first is node else first
        if not isinstance(other, Node) or other is node or self.constant(other) is not None:
            return node, None
        if user in self.done or user in self.steps:  # another convolution's
            return node, None
        mine, theirs = _form(node), _form(other)
        return (node, None) if mine is None or mine != theirs else (user, other)

    def activation(self, node: Node) -> tuple[Node, str]:
        user = self.only_user(node)
        if user is None or not user.args or user.args[0] is not node:
            return node, "none"
        name = _ACTIVATIONS.get(user.target, "none")
        if user.target is aten.gelu.default and user.kwargs.get("approximate", "none") == "none":
            name = "gelu"
        if user.target is aten.hardtanh.default and tuple(user.args[1:]) == (0, 6):
            name = "relu6"
        return (node, "none") if name == "none" else (user, name)

    def convolution(self, node: Node) -> None:
        arguments: Any = node.args
        source, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
        held, offset = self.constant(weight), self.constant(bias)
        if transposed or held is None or (bias is not None and offset is None) or held.dtype != torch.float32:
            return
        last, held, offset = self.through_norm(node, held, offset)
        last, residual = self.residual(last)
        last, activation = self.activation(last)
        self.replace(node, last, Convolution(
            last.name, str(source), held, offset, tuple(stride), tuple(padding), tuple(dilation), groups,
            None if residual is None else residual.name, activation,
        ))  # fmt: skip

    def dense(self, node: Node) -> None:
        bias, source, turned = node.args if node.target is aten.addmm.default else (None, *node.args)
        if not isinstance(turned, Node) or turned.target is not aten.t.default or node.kwargs:
            return
        held, offset = self.constant(turned.args[0]), self.constant(bias)
        if (
            held is None
            or held.dtype != torch.float32
            or (bias is not None and (offset is None or offset.dim() != 1))
        ):
            return
        last, activation = self.activation(node)
        self.replace(node, last, Dense(last.name, str(source), held, offset, activation))

    def pooling(self, node: Node) -> None:
        arguments: Any = node.args
        source, *rest = arguments
        form = _form(source) if isinstance(source, Node) else None
        if form is None or form[1] != torch.float32 or node.kwargs or len(form[0]) < 3:
            return
        axes, target, operands = len(form[0]) - 2, node.target, tuple(rest)
        if target in _MAX_POOLS or (target in _ADAPTIVE and set(_each(rest[0], axes)) == {1}):
            (last, *others) = node.users
            if others or last.target is not operator.getitem or last.args[1] != 0:
                return
            window = _window(rest, axes) if target in _MAX_POOLS else ((), (), (), (), True, 0)
            self.replace(node, last, Pooling(
                last.name, str(source), "max", window, lambda x: target(x, *operands)[0],
            ))  # fmt: skip
            return
        flat, window = False, tuple[Any, ...]()
        if target in _AVG_POOLS:
            defaults: tuple[Any, ...] = (None, (), 0, False, True, None)
            kernel, stride, padding, _, inside, divisor = (*operands, *defaults[len(operands) :])
            window = _window((kernel, stride, padding), axes, inside, divisor or 0)
        elif target is aten.mean.dim and sorted(d % (axes + 2) for d in rest[0]) == list(range(2, axes + 2)):
            window, flat = ((), (), (), (), True, 0), not (len(rest) > 1 and rest[1])
        else:
            return
        self.replace(node, node, Pooling(
            node.name, str(source), "avg", window, lambda x: target(x, *operands), flat,
        ))  # fmt: skip

    def replace(self, first: Node, last: Node, step: Step) -> None:
        """Put ``step`` where ``last`` stands, by when all it needs is there."""
        at = first
        while at is not last:
            self.done.add(at)
            at = self._towards(at, last)
        self.steps[last] = step

    @staticmethod
    def _towards(node: Node, last: Node) -> Node:
        return next(iter(node.users)) if len(node.users) == 1 else last


def lower(graph: GraphModule) -> tuple[list[Step], str, Any]:
    """Steps in order, the name of the input, and what is returned (values as `Node`)."""
    made = _Lowering(graph)
    (entry,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node in graph.graph.nodes:
        if node in made.done or node.op != "call_function":
            continue
        if node.target is aten.convolution.default:
            made.convolution(node)
        elif node.target in (aten.addmm.default, aten.mm.default):
            made.dense(node)
        elif node.target in _NORMS:
            made.scaling(node)
        else:
            made.pooling(node)
    steps: list[Step] = []
    result = None
    for node in graph.graph.nodes:
        if node.op == "output":
            result = node.args[0]
        elif node in made.steps:
            steps.append(made.steps[node])
        elif node.op == "call_function" and node not in made.done:
            steps.append(_call(made, node))
    return _with_pools(_needed(steps, result), result), entry.name, result


def _with_pools(steps: list[Step], result: Any) -> list[Step]:
    """Convolutions with ReLU joined with the 2×2 max pooling that alone reads them."""
    readers: dict[str, int] = {}
    for name in [name for step in steps for name in used(step)]:
        readers[name] = readers.get(name, 0) + 1
    torch.fx.node.map_arg(result, lambda value: readers.update({value.name: 2}))
    whole = {step.name: step for step in steps if isinstance(step, Convolution) and _may_pool(step)}
    joined: list[Step] = []
    taken: set[str] = set()
    for step in steps:
        if (
            isinstance(step, Pooling)
            and step.source in whole
            and readers[step.source] == 1
            and _is_two_by_two(step)
        ):
            convolution = whole[step.source]
            taken.add(step.source)
            joined.append(replace(convolution, name=step.name, pool=step))
        else:
            joined.append(step)
    return [step for step in joined if step.name not in taken]


def _may_pool(step: Convolution) -> bool:
    return step.activation == "relu" and step.residual is None and step.weight.dim() == 4 and step.groups == 1


def _is_two_by_two(step: Pooling) -> bool:
    return step.kind == "max" and step.window[:4] == ((2, 2), (2, 2), (0, 0), (1, 1))


def _call(made: _Lowering, node: Node) -> Call:
    def known(value: Node) -> Any:
        found = made.constant(value)
        return value if found is None else found

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known)
    target: Any = node.target
    if target in _VIEWS:
        return Call(node.name, torch.reshape, args, kwargs)
    return Call(node.name, target, args, kwargs)


def used(step: Step) -> set[str]:
    """Names of the values that a step reads."""
    if isinstance(step, Convolution):
        return {step.source} | ({step.residual} if step.residual else set())
    if isinstance(step, (Dense, Pooling, Scaling)):
        return {step.source}
    found: set[str] = set()
    torch.fx.node.map_arg((step.args, step.kwargs), lambda value: found.add(value.name))
    return found


def constants(step: Step) -> list[torch.Tensor]:
    """Tensors that a step holds."""
    if isinstance(step, Call):
        return [t for t in tree_leaves((step.args, step.kwargs)) if isinstance(t, torch.Tensor)]
    if isinstance(step, (Pooling, Scaling)):
        return []
    return [step.weight] if step.bias is None else [step.weight, step.bias]


def _needed(steps: list[Step], result: Any) -> list[Step]:
    """Without steps whose value nobody reads, such as the transposition of a dense layer's weight."""
    wanted: set[str] = set()
    torch.fx.node.map_arg(result, lambda value: wanted.add(value.name))
    kept: list[Step] = []
    for step in reversed(steps):
        if step.name in wanted:
            wanted |= used(step)
            kept.append(step)
    return kept[::-1]
