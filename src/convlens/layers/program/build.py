"""Steps bound to a shape: a layout for the whole chain, kernel and packed weights of each convolution, memory.

Everything is decided while the steps run once on an example, so that shapes, strides and what shares memory with
what are seen, not derived.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from convlens import planner
from convlens.kernels.contract import NativeCall, Prepared
from convlens.kernels.cpu.direct_few.block_kernel import DirectBlock
from convlens.kernels.cpu.memory import empty, sharing_workspaces
from convlens.kernels.cpu.pooling.kernel import Pool
from convlens.kernels.cpu.replay import Replay
from convlens.layers.program.lower import Call, Convolution, Dense, Pooling, Step
from convlens.layers.program.values import Values
from convlens.layers.program.watch import Samples
from convlens.planner import FINISHES, Bound
from convlens.window import ConvProblem, Epilogue, PoolProblem

__all__ = ["Built", "build"]

Environment = list[Any]
Action = Callable[[Environment], None]
Layout = Literal["contiguous", "channels_last"]

_FORMATS: dict[tuple[int, Layout], torch.memory_format] = {
    (4, "channels_last"): torch.channels_last,
    (5, "channels_last"): torch.channels_last_3d,
}


class Built:
    """Actions over an environment of values, ready to run again and again (one thread at a time).

    Attributes:
        kernels: name of each convolution's kernel, in order.
    """

    def __init__(
        self, steps: list[Step], entry: str, result: Any, layout: Layout, known: dict[Any, Bound]
    ) -> None:
        self.layout = layout
        self.steps, self.entry, self.result = steps, entry, result
        self.known = known
        self.kernels: list[str] = []
        self.flags: list[torch.Tensor] = []
        self.actions: list[Action] = []
        self._native: dict[int, _Native] = {}  # actions that are calls of generated code, by place
        self._fixed: dict[int, torch.Tensor] = {}  # slots whose tensor is the same in every run
        self.values = Values(steps, entry, result)
        self._pool = Pool()

    def prepare(self, x: torch.Tensor, like: list[torch.Tensor]) -> None:
        """Decide everything by running once on ``x``; ``like`` has the shapes and strides to be returned."""
        values = self.values
        values.enter(self.entry, x)
        for place, step in enumerate(self.steps):
            if isinstance(step, Convolution):
                self._convolution(step, place)
            elif isinstance(step, Dense):
                self._dense(step, place)
            elif isinstance(step, Pooling):
                self._pooling(step, place)
            else:
                self._call(step, place)
            self._free(place)
        self.actions = self._joined()
        self.environment: Environment = [self._fixed.get(slot) for slot in range(len(values.held))]
        self._exits(like)
        values.held.clear()
        self._blind = not {"vendor", "packed"}.isdisjoint(self.kernels)
        self._alarm = Samples(self.flags, every=True)

    def run(self, x: torch.Tensor) -> Any:
        """The result for another input like the one it was prepared on; `spoilt` says whether it is good."""
        environment = self.environment
        environment[0] = x
        for action in self.actions:
            action(environment)
        result = self.leave(environment)
        environment[0] = None
        return result

    def spoilt(self) -> bool:
        """Whether a kernel met numbers that it cannot compute with in the last run; forgets it."""
        if self._alarm.same():
            return False
        for flag in self.flags:
            flag.zero_()
        self._alarm.same()
        return True

    def takes(self, x: torch.Tensor) -> bool:
        """Whether an input may be run: oneDNN's fused ReLU turns NaN to 0, so none may come in there."""
        return not self._blind or math.isfinite(x.sum().item())

    def settle(self) -> None:
        """Let go of what was only needed to decide."""
        self.known, self.steps = {}, []

    def _joined(self) -> list[Action]:
        """The actions, with each run of calls of generated code as one."""
        joined: list[Action] = []
        for native, run in itertools.groupby(range(len(self.actions)), self._native.__contains__):
            if native:
                joined.append(_replay([self._native[at] for at in run]))
            else:
                joined += [self.actions[at] for at in run]
        return joined

    # --- steps ---

    def _do(self, action: Action, name: str, place: int) -> None:
        self.actions.append(action)
        self.values.run(action, name, place)

    def _free(self, place: int) -> None:
        """Let go of values that no later step reads."""
        slots = self.values.released(place)
        if slots:

            def free(environment: Environment) -> None:
                for slot in slots:
                    environment[slot] = None

            self.actions.append(free)

    def _laid_out(self, name: str, place: int) -> int:
        """Slot of a value in this program's layout, copied if it is in another."""
        values = self.values
        slot, value = values.slots[name], values.at(name)
        order = _FORMATS.get((value.dim(), self.layout), torch.contiguous_format)
        if value.is_contiguous(memory_format=order):
            return slot
        copied = values.extra(f"{name}:{self.layout}", place)

        def copy(environment: Environment) -> None:
            environment[copied] = environment[slot].contiguous(memory_format=order)

        self._do(copy, f"{name}:{self.layout}", place)
        return copied

    def _convolution(self, step: Convolution, place: int) -> None:
        values = self.values
        source = self._laid_out(step.source, place)
        x = values.held[source]
        problem = ConvProblem(
            "forward", x.shape[0], x.shape[1], tuple(x.shape[2:]), step.weight.shape[0],
            tuple(step.weight.shape[2:]), step.stride, tuple((pad, pad) for pad in step.padding),
            step.dilation, step.groups,
            layout=self._layout_of(x),
            epilogue=Epilogue(step.bias is not None, step.activation, 0, step.residual is not None),
        )  # fmt: skip
        if step.pool is None:
            self._place(self._bound(problem, step), step, place, source, problem.output_shape)
        else:
            self._block(problem, step, step.pool, place, source)

    def _block(self, problem: ConvProblem, step: Convolution, pool: Pooling, place: int, source: int) -> None:
        """Convolution, ReLU and pooling in one kernel where that is faster, else one after the other."""
        values, inner = self.values, f"{step.name}:whole"
        batch, outs, *size = problem.output_shape
        shape = (batch, outs, *(n // 2 for n in size))
        fused = replace(problem, epilogue=replace(problem.epilogue, pool=2))
        block = DirectBlock()
        if self.layout == "contiguous" and batch and block.refusal(fused) is None:
            bias = None if step.bias is None else step.bias.detach().contiguous()
            whole = block.prepare(fused, step.weight.detach(), bias)
            apart = self._bound(problem, step)
            x, out = values.held[source], values.buffer(step.name, place, shape, self.layout)
            between = empty(problem.output_shape) if apart.writes else None
            ways: dict[str, Callable[[], object]] = {
                block.name: lambda: whole.run(x, out),
                "composed": lambda: pool.call(apart.run(x, between, None)),
            }
            if planner.fastest_of(f"prepared {planner.to_key(fused)}", ways) == block.name:
                self.kernels[-1] = block.name
                self._writing(whole, source, out, step.name, place)
                return
            values.give_back(out)
            self.kernels.pop()
        values.extra(inner, place)
        values.slots[inner] = values.slots[f"{inner}@{place}"]
        plain = replace(step, name=inner, pool=None)
        self._place(self._bound(problem, plain), plain, place, source, problem.output_shape)
        self._pooling(replace(pool, source=inner), place)
        del values.slots[inner]

    def _bound(self, problem: ConvProblem, step: Convolution | Dense, others: Any = None) -> Bound:
        key = (problem, id(step.weight), id(step.bias), step.name)
        if key not in self.known:
            weight = step.weight.detach().reshape(problem.weight_shape).contiguous()
            bias = None if step.bias is None else step.bias.detach().contiguous()
            self.known[key] = planner.bind(problem, weight, bias, others=others(weight, bias) if others else None)
        bound = self.known[key]
        self.kernels.append(bound.kernel)
        if bound.spoilt is not None:
            self.flags.append(bound.spoilt)
        return bound

    def _place(self, bound: Bound, step: Convolution, place: int, source: int, shape: tuple[int, ...]) -> None:
        """The action of a bound convolution, with its destination and its residual where they belong."""
        values, run = self.values, bound.run
        slot = values.slots[step.name]
        if step.residual is None:
            if not bound.writes:
                self._do(lambda e: e.__setitem__(slot, run(e[source], None, None)), step.name, place)
                return
            self._writing(bound, source, values.buffer(step.name, place, shape, self.layout), step.name, place)
            return
        residual = self._laid_out(step.residual, place)
        if not bound.adds:
            apart = values.buffer(step.name, place, shape, self.layout) if bound.writes else None
            self._do(lambda e: e.__setitem__(slot, run(e[source], apart, e[residual])), step.name, place)
            return
        if values.may_overwrite(residual, place):
            if residual in self._fixed:
                self._writing(bound, source, self._fixed[residual], step.name, place)
                return
            self._do(lambda e: e.__setitem__(slot, run(e[source], e[residual], None)), step.name, place)
            return
        held = values.buffer(step.name, place, shape, self.layout)
        self._do(lambda e: e.__setitem__(slot, run(e[source], held.copy_(e[residual]), None)), step.name, place)
        self._fixed[slot] = held

    def _writing(
        self, bound: Bound | Prepared, source: int, out: torch.Tensor, name: str, place: int,
        shown: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """The action of something that writes to memory of the program's own; ``shown`` is its view there."""
        slot, shown = self.values.slots[name], out if shown is None else shown
        run: Any = bound.run
        rest = (None,) if isinstance(bound, Bound) else ()

        def write(environment: Environment) -> None:
            run(environment[source], out, *rest)
            environment[slot] = shown

        self._do(write, name, place)
        self._fixed[slot] = shown
        if bound.native is not None:
            self._native[len(self.actions) - 1] = _Native(bound.native, source, self._fixed.get(source), out)

    def _dense(self, step: Dense, place: int) -> None:
        values = self.values
        source = self._laid_out(step.source, place)
        x, slot = values.held[source], values.slots[step.name]
        rows, outs = x.shape[0], step.weight.shape[0]
        problem = ConvProblem(
            "forward", 1, x.shape[1], (1, rows), outs, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1),
            layout="channels_last", epilogue=Epilogue(step.bias is not None, step.activation),
        )  # fmt: skip
        bound = self._bound(problem, step, lambda weight, bias: _dense_ways(weight, bias, step.activation, rows))
        run = bound.run
        if bound.kernel in _DENSE:
            self._do(lambda e: e.__setitem__(slot, run(e[source], None, None)), step.name, place)
            return
        if not bound.writes:

            def as_image(environment: Environment) -> None:
                image = environment[source].view(1, 1, rows, -1).permute(0, 3, 1, 2)
                environment[slot] = run(image, None, None).permute(0, 2, 3, 1).reshape(rows, outs)

            self._do(as_image, step.name, place)
            return
        out = values.buffer(step.name, place, (rows, outs), "contiguous")
        self._writing(bound, source, out, step.name, place)

    def _pooling(self, step: Pooling, place: int) -> None:
        values = self.values
        source = self._laid_out(step.source, place)
        x, slot, call = values.held[source], values.slots[step.name], step.call
        size = tuple(x.shape[2:])
        kernel, stride, padding, dilation, inside, divisor = step.window
        shown = call(x)
        axes = len(size)
        problem = PoolProblem(
            "forward", step.kind, x.shape[0], x.shape[1], size, kernel or size, stride or (1,) * axes,
            tuple((pad, pad) for pad in padding) or ((0, 0),) * axes, dilation or (1,) * axes,
            tuple(shown.shape[2:]) if kernel else (1,) * axes, inside, divisor, layout=self._layout_of(x),
        )  # fmt: skip
        out = values.buffer(step.name, place, (*x.shape[:2], *problem.output_size), self.layout)
        shape = shown.shape
        ways: dict[str, Callable[[], object]] = {"torch": lambda: call(x)}
        prepared = None
        if self._pool.refusal(problem) is None:
            prepared = self._pool.prepare(problem)
            run = prepared.run
            ways = {self._pool.name: lambda: run(x, out)} | ways
        if prepared is None or planner.fastest_of(f"prepared {planner.to_key(problem)}", ways) == "torch":
            values.give_back(out)
            self._do(lambda e: e.__setitem__(slot, call(e[source])), step.name, place)
            return
        view = out.view(shape) if step.flat else out
        self._writing(prepared, source, out, step.name, place, view)

    def _layout_of(self, x: torch.Tensor) -> Layout:
        return self.layout if x.dim() > 3 else "contiguous"

    def _call(self, step: Call, place: int) -> None:
        values = self.values
        self._called(step, place)
        shown = values.at(step.name)
        if isinstance(shown, torch.Tensor) and values.is_static(step.name):
            self._fixed[values.slots[step.name]] = shown  # a view of memory that stays, or that memory changed
            if step.operator is torch.reshape:
                self.actions.pop()

    def _called(self, step: Call, place: int) -> None:
        values = self.values
        slot = values.slots[step.name]
        if step.operator is operator.getitem and isinstance(step.args[0], Node):
            source, which = values.slots[step.args[0].name], step.args[1]
            self._do(lambda e: e.__setitem__(slot, e[source][which]), step.name, place)
            return
        function, args, kwargs = values.in_place(step, place) or (step.operator, step.args, step.kwargs)
        plain = all(not isinstance(a, (list, tuple)) for a in args) and not any(
            isinstance(v, (Node, list, tuple)) for v in kwargs.values()
        )
        nodes = [(i, values.slots[a.name]) for i, a in enumerate(args) if isinstance(a, Node)]
        if plain and len(nodes) == 1 and nodes[0][0] == 0:
            first, rest = nodes[0][1], tuple(args[1:])
            self._do(lambda e: e.__setitem__(slot, function(e[first], *rest, **kwargs)), step.name, place)
            return

        def call(environment: Environment) -> None:
            given, named = torch.fx.node.map_arg((args, kwargs), lambda n: environment[values.slots[n.name]])
            environment[slot] = function(*given, **named)

        if not kwargs and all(isinstance(a, Node) or not isinstance(a, (list, tuple)) for a in args):
            template, places = list(args), tuple(nodes)

            def call(environment: Environment) -> None:
                given = template.copy()
                for i, s in places:
                    given[i] = environment[s]
                environment[slot] = function(*given)

        self._do(call, step.name, place)

    def _exits(self, like: list[torch.Tensor]) -> None:
        """How what is returned leaves: memory of the program's own is copied, strides are those of ``like``."""
        values, result = self.values, self.result

        def take(node: Node, shown: torch.Tensor) -> Callable[[Environment], torch.Tensor]:
            slot, shape, stride = values.slots[node.name], shown.shape, shown.stride()
            if values.at(node.name).stride() != stride:
                return lambda e: torch.empty_strided(shape, stride).copy_(e[slot])
            if values.is_static(node.name):
                return lambda e: e[slot].clone()
            return lambda e: e[slot]

        takers = [take(node, shown) for node, shown in zip(_nodes(result), like, strict=True)]
        if isinstance(result, Node):
            self.leave: Callable[[Environment], Any] = takers[0]
            return
        leaves, structure = tree_flatten(result)
        del leaves
        self.leave = lambda e: tree_unflatten([taker(e) for taker in takers], structure)


def _nodes(result: Any) -> list[Node]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Node)]


@dataclass(frozen=True, slots=True)
class _Native:
    """A call of generated code; ``held`` is the source where that is the same tensor in every run."""

    call: NativeCall
    source: int
    held: torch.Tensor | None
    dest: torch.Tensor


def _replay(calls: list[_Native]) -> Action:
    replay = Replay()
    for one in calls:
        address = None if one.held is None else one.held.data_ptr()
        replay.add(one.call, address, one.dest.data_ptr(), (one.held, one.dest))
    run, slots = replay.ready(), [one.source for one in calls if one.held is None]
    return lambda environment: run([environment[slot].data_ptr() for slot in slots])


_DENSE = ("torch", "packed")
"""Ways to compute a dense layer that are no convolution."""


def _dense_ways(weight: torch.Tensor, bias: torch.Tensor | None, activation: str, rows: int) -> dict[str, Bound]:
    """Torch's own ways to compute a dense layer: its product, and oneDNN's on packed weights."""
    matrix = weight.flatten(1)
    turned, finish = matrix.t(), FINISHES.get(activation)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x if x.dim() == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)

    def product(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
        sums = torch.mm(flat(x), turned) if bias is None else torch.addmm(bias, flat(x), turned)
        return sums if finish is None else finish(sums)

    ways = {"torch": Bound("torch", False, False, product, None)}
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix, rows)
        operator = torch.ops.mkldnn._linear_pointwise.default
        fused = activation if activation == "relu" else "none"
        after = finish if fused == "none" else None

        def on_packed(x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
            sums: torch.Tensor = operator(flat(x), packed, bias, fused, [], "")
            return sums if after is None else after(sums)

        ways["packed"] = Bound("packed", False, False, on_packed, None)
    return ways


def build(
    lowered: tuple[list[Step], str, Any],
    x: torch.Tensor,
    like: list[torch.Tensor],
    layout: Layout,
    known: dict[Any, Bound],
) -> Built:
    """What `lower` gave for inputs like ``x``.

    Args:
        lowered: steps, name of the input, what is returned.
        x: an input.
        like: tensors with the shapes and strides to be returned.
        layout: of images inside.
        known: bound convolutions that another program has already.
    """
    built = Built(*lowered, layout, known)
    with sharing_workspaces():
        built.prepare(x, like)
    return built
