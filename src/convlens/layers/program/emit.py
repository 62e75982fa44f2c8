"""One action for each step of a program, bound to its kernel and the memory of its result.

A step is run on the example as its action is made, so that shapes, strides and what shares memory are seen.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.fx import Node

from convlens import planner
from convlens.kernels.contract import NativeCall, Prepared
from convlens.kernels.cpu.direct.kernel import Direct
from convlens.kernels.cpu.direct_few.block_kernel import DirectBlock
from convlens.kernels.cpu.elementwise import MOST_AXES, copied, mean
from convlens.kernels.cpu.memory import empty
from convlens.kernels.cpu.pooling.kernel import Pool
from convlens.kernels.cpu.replay import Replay
from convlens.kernels.cpu.team import one_thread
from convlens.layers.program.dense import DENSE, dense_ways
from convlens.layers.program.elements import emit_element, emit_scaling
from convlens.layers.program.lower import Call, Convolution, Dense, Pooling, Scaling, Step
from convlens.layers.program.values import Values
from convlens.planner import Bound
from convlens.window import ConvProblem, Epilogue, PoolProblem

__all__ = ["Action", "Choice", "Emitter", "Environment", "Layout", "Native", "replayed"]

Environment = list[Any]
Action = Callable[[Environment], None]
Layout = Literal["contiguous", "channels_last"]

_FORMATS: dict[tuple[int, Layout], torch.memory_format] = {
    (4, "channels_last"): torch.channels_last,
    (5, "channels_last"): torch.channels_last_3d,
}


_FEW_CHANNELS = 4
_FEW_VALUES = 1 << 15  # of an image that one thread pools before another has begun
_PLANES = "cpu.direct (from planes)"


def _operands(problem: ConvProblem, step: Convolution | Dense) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = step.weight.detach().reshape(problem.weight_shape).contiguous()
    return weight, None if step.bias is None else step.bias.detach().contiguous()


@dataclass(frozen=True, slots=True)
class Native:
    """A call of generated code; ``held`` is the source where that is the same tensor in every run."""

    call: NativeCall
    source: int
    held: torch.Tensor | None
    dest: torch.Tensor


def replayed(calls: list[Native]) -> Action:
    """All of them as one action."""
    replay = Replay()
    for one in calls:
        address = None if one.held is None else one.held.data_ptr()
        replay.add(one.call, address, one.dest.data_ptr(), (one.held, one.dest))
    run, slots = replay.ready(), [one.source for one in calls if one.held is None]
    return lambda environment: run([environment[slot].data_ptr() for slot in slots])


@dataclass(frozen=True, slots=True)
class Choice:
    """A step that several ways compute: its place among the actions and the bounds."""

    action: int
    bound: int
    problem: ConvProblem
    ways: list[Bound]


class Emitter:
    """The actions of a program in the making.

    Attributes:
        bounds: of each convolution and dense layer, in order.
        choices: of steps that several ways of one form compute, see `settle`.
        actions: what to run, in order, over an environment of values by slot.
        native: those that are calls of generated code, by their place among the actions.
        fixed: slots whose tensor is the same in every run.
    """

    def __init__(self, steps: list[Step], values: Values, layout: Layout, known: dict[Any, list[Bound]]) -> None:
        self.steps, self.values, self.layout, self.known = steps, values, layout, known
        self.bounds: list[Bound] = []
        self.choices: list[Choice] = []
        self.actions: list[Action] = []
        self.native: dict[int, Native] = {}
        self.fixed: dict[int, torch.Tensor] = {}
        self._pool = Pool()

    def emit(self) -> None:
        """Make all actions."""
        for place, step in enumerate(self.steps):
            if isinstance(step, Convolution):
                self._convolution(step, place)
            elif isinstance(step, Dense):
                self._dense(step, place)
            elif isinstance(step, Pooling):
                self._pooling(step, place)
            elif isinstance(step, Scaling):
                emit_scaling(self, step, place)
            else:
                self._call(step, place)
            self._free(place)

    def do(self, action: Action, name: str, place: int) -> None:
        """Append an action and run it on the example."""
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

    def laid_out(self, name: str, place: int) -> int:
        """Slot of a value in this program's layout, copied if it is in another."""
        values = self.values
        slot, value = values.slots[name], values.at(name)
        order = _FORMATS.get((value.dim(), self.layout), torch.contiguous_format)
        if value.is_contiguous(memory_format=order):
            return slot
        to = f"{name}:{self.layout}"
        copy = values.extra(to, place)
        out = values.buffer(to, place, tuple(value.shape), self.layout)
        if value.dim() <= MOST_AXES:
            self.native_call(copied(value, out), slot, out, to, place, copy)
            return copy

        def turn(environment: Environment) -> None:
            environment[copy] = out.copy_(environment[slot])

        self.do(turn, to, place)
        self.fixed[copy] = out
        return copy

    def _convolution(self, step: Convolution, place: int) -> None:
        x = self.values.at(step.source)
        problem = ConvProblem(
            "forward", x.shape[0], x.shape[1], tuple(x.shape[2:]), step.weight.shape[0],
            tuple(step.weight.shape[2:]), step.stride, tuple((pad, pad) for pad in step.padding),
            step.dilation, step.groups,
            layout=self.layout_of(x),
            epilogue=Epilogue(step.bias is not None, step.activation, 0, step.residual is not None),
        )  # fmt: skip
        if self._from_planes(problem, step, place):
            return
        source = self.laid_out(step.source, place)
        if step.pool is None:
            self._place(self._bound(problem, step), step, place, source, problem.output_shape)
        else:
            self._block(problem, step, step.pool, place, source)

    def _from_planes(self, problem: ConvProblem, step: Convolution, place: int) -> bool:
        """A first layer that reads contiguous images as they are, where that beats turning them beforehand."""
        values, direct = self.values, Direct()
        slot, x = values.slots[step.source], values.at(step.source)
        few = problem.layout == "channels_last" and x.shape[1] <= _FEW_CHANNELS and x.is_contiguous()
        if not few or step.pool is not None or step.residual is not None or direct.refusal(problem) is not None:
            return False
        prepared = direct.prepare_from_planes(problem, *_operands(problem, step))
        if prepared is None:
            return False
        bound = self._bound(problem, step)
        turned, out = empty(x.shape, channels_last=True), empty(problem.output_shape, channels_last=True)
        turn = copied(x, turned).prepared()

        def apart() -> None:
            bound.run(turn.run(x, turned), out if bound.writes else None, None)

        ways: dict[str, Callable[[], object]] = {_PLANES: lambda: prepared.run(x, out), "turned": apart}
        if planner.fastest_of(f"planes {planner.to_key(problem)}", ways) != _PLANES:
            self.bounds.pop()
            return False
        self.bounds[-1] = Bound(_PLANES, True, False, bound.run, None)
        to = values.buffer(step.name, place, problem.output_shape, self.layout)
        self.writing(prepared, slot, to, step.name, place)
        return True

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
                self.bounds[-1] = Bound(block.name, True, False, apart.run, None)
                self.writing(whole, source, out, step.name, place)
                return
            values.give_back(out)
            self.bounds.pop()
        values.extra(inner, place)
        values.slots[inner] = values.slots[f"{inner}@{place}"]
        plain = replace(step, name=inner, pool=None)
        self._place(self._bound(problem, plain), plain, place, source, problem.output_shape)
        self._pooling(replace(pool, source=inner), place)
        del values.slots[inner]

    def _bound(self, problem: ConvProblem, step: Convolution | Dense, others: Any = None) -> Bound:
        key = (problem, id(step.weight), id(step.bias), step.name)
        if key not in self.known:
            weight, bias = _operands(problem, step)
            self.known[key] = planner.bind(problem, weight, bias, others=others(weight, bias) if others else None)
        ways = self.known[key]
        self._open = problem, ways
        self.bounds.append(ways[0])
        return ways[0]

    def _place(self, bound: Bound, step: Convolution, place: int, source: int, shape: tuple[int, ...]) -> None:
        """The action of a bound convolution, with its destination and its residual where they belong."""
        values, run = self.values, bound.run
        slot = values.slots[step.name]
        if step.residual is None:
            if not bound.writes:
                self.do(lambda e: e.__setitem__(slot, run(e[source], None, None)), step.name, place)
                return
            self.writing(bound, source, values.buffer(step.name, place, shape, self.layout), step.name, place)
            return
        residual = self.laid_out(step.residual, place)
        if not bound.adds:
            apart = values.buffer(step.name, place, shape, self.layout) if bound.writes else None
            self.do(lambda e: e.__setitem__(slot, run(e[source], apart, e[residual])), step.name, place)
            return
        if values.may_overwrite(residual, place):
            if residual in self.fixed:
                self.writing(bound, source, self.fixed[residual], step.name, place)
                return
            self.do(lambda e: e.__setitem__(slot, run(e[source], e[residual], None)), step.name, place)
            return
        held = values.buffer(step.name, place, shape, self.layout)
        self.do(lambda e: e.__setitem__(slot, run(e[source], held.copy_(e[residual]), None)), step.name, place)
        self.fixed[slot] = held

    def native_call(
        self, call: NativeCall, source: int, dest: torch.Tensor, name: str, place: int, slot: int | None = None,
        shown: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """The action of a call of generated code that writes to ``dest``; the value is ``shown``, or ``dest``."""
        slot, shown = self.values.slots[name] if slot is None else slot, dest if shown is None else shown
        one = Native(call, source, self.fixed.get(source), dest)
        run = replayed([one])

        def write(environment: Environment) -> None:
            run(environment)
            environment[slot] = shown

        self.do(write, name, place)
        self.fixed[slot] = shown
        self.native[len(self.actions) - 1] = one

    def writing(
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

        self.do(write, name, place)
        self.fixed[slot] = shown
        if bound.native is None:
            return
        self.native[len(self.actions) - 1] = Native(bound.native, source, self.fixed.get(source), out)
        if isinstance(bound, Bound):
            problem, ways = self._open
            alike = [way for way in ways if way.native is not None and way.adds == bound.adds]
            if len(alike) > 1:
                self.choices.append(Choice(len(self.actions) - 1, len(self.bounds) - 1, problem, alike))

    def _dense(self, step: Dense, place: int) -> None:
        values = self.values
        source = self.laid_out(step.source, place)
        x, slot = values.held[source], values.slots[step.name]
        rows, outs = x.shape[0], step.weight.shape[0]
        problem = ConvProblem(
            "forward", 1, x.shape[1], (1, rows), outs, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1),
            layout="channels_last", epilogue=Epilogue(step.bias is not None, step.activation),
        )  # fmt: skip
        bound = self._bound(problem, step, lambda weight, bias: dense_ways(weight, bias, step.activation, rows))
        run = bound.run
        if bound.kernel in DENSE:
            self.do(lambda e: e.__setitem__(slot, run(e[source], None, None)), step.name, place)
            return
        if not bound.writes:

            def as_image(environment: Environment) -> None:
                image = environment[source].view(1, 1, rows, -1).permute(0, 3, 1, 2)
                environment[slot] = run(image, None, None).permute(0, 2, 3, 1).reshape(rows, outs)

            self.do(as_image, step.name, place)
            return
        out = values.buffer(step.name, place, (rows, outs), "contiguous")
        self.writing(bound, source, out, step.name, place)

    def _pooling(self, step: Pooling, place: int) -> None:
        values = self.values
        source = self.laid_out(step.source, place)
        x, slot, call = values.held[source], values.slots[step.name], step.call
        size = tuple(x.shape[2:])
        kernel, stride, padding, dilation, inside, divisor = step.window
        shown = call(x)
        axes = len(size)
        problem = PoolProblem(
            "forward", step.kind, x.shape[0], x.shape[1], size, kernel or size, stride or (1,) * axes,
            tuple((pad, pad) for pad in padding) or ((0, 0),) * axes, dilation or (1,) * axes,
            tuple(shown.shape[2:]) if kernel else (1,) * axes, inside, divisor, layout=self.layout_of(x),
        )  # fmt: skip
        out = values.buffer(step.name, place, (*x.shape[:2], *problem.output_size), self.layout)
        shape = shown.shape
        ways: dict[str, Callable[[], object]] = {"torch": lambda: call(x)}
        prepared = None
        if not kernel and step.kind == "avg":
            prepared = mean(x).prepared()
        elif self._pool.refusal(problem) is None:
            with one_thread() if x.numel() < _FEW_VALUES else contextlib.nullcontext():
                prepared = self._pool.prepare(problem)
        if prepared is not None:
            run = prepared.run
            ways = {self._pool.name: lambda: run(x, out)} | ways
        if prepared is None or planner.fastest_of(f"prepared {planner.to_key(problem)}", ways) == "torch":
            values.give_back(out)
            self.do(lambda e: e.__setitem__(slot, call(e[source])), step.name, place)
            return
        view = out.view(shape) if step.flat else out
        self.writing(prepared, source, out, step.name, place, view)

    def layout_of(self, x: torch.Tensor) -> Layout:
        """Of a value with so many axes."""
        return self.layout if x.dim() > 3 else "contiguous"

    def _call(self, step: Call, place: int) -> None:
        values = self.values
        if emit_element(self, step, place):
            return
        in_place = self._called(step, place)
        shown = values.at(step.name)
        if isinstance(shown, torch.Tensor) and values.is_static(step.name):
            self.fixed[values.slots[step.name]] = shown  # a view of memory that stays, or that memory changed
            if not in_place:
                self.actions.pop()

    def _called(self, step: Call, place: int) -> bool:
        """The action of any operator; returns whether it writes to its first operand."""
        values = self.values
        slot = values.slots[step.name]
        if step.operator is operator.getitem and isinstance(step.args[0], Node):
            source, which = values.slots[step.args[0].name], step.args[1]
            self.do(lambda e: e.__setitem__(slot, e[source][which]), step.name, place)
            return False
        twin = values.in_place(step, place)
        function, args, kwargs = twin or (step.operator, step.args, step.kwargs)
        plain = all(not isinstance(a, (list, tuple)) for a in args) and not any(
            isinstance(v, (Node, list, tuple)) for v in kwargs.values()
        )
        nodes = [(i, values.slots[a.name]) for i, a in enumerate(args) if isinstance(a, Node)]
        if plain and len(nodes) == 1 and nodes[0][0] == 0:
            first, rest = nodes[0][1], tuple(args[1:])
            self.do(lambda e: e.__setitem__(slot, function(e[first], *rest, **kwargs)), step.name, place)
            return twin is not None

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

        self.do(call, step.name, place)
        return twin is not None
