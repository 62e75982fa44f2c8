"""Choosing among ways to compute a step by their time within the program, where caches are as they will be.

By itself a layer finds its weights in the nearest cache and its input in the same core's. A program that runs for
some milliseconds is run a few times with each step's first way, then with each one's second, …, and every step is
timed by itself.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from convlens import planner
from convlens.layers.program.emit import Action, Choice, Emitter, Environment, replayed
from convlens.planner import Bound, to_key
from convlens.planner.timing import Timing

__all__ = ["choose_in_place"]

_LONGEST_S = 0.005
_RUNS = 15


def choose_in_place(emitter: Emitter, environment: Environment) -> None:
    """Exchange what is slower within the program, in ``emitter``; ``environment`` holds its input."""
    actions = [
        replayed([emitter.native[at]]) if at in emitter.native else action
        for at, action in enumerate(emitter.actions)
    ]
    if not emitter.choices or min(_run(actions, environment) for _ in range(3)) > _LONGEST_S:
        return
    groups: dict[str, list[Choice]] = {}
    for choice in emitter.choices:
        groups.setdefault(f"{to_key(choice.problem)} {[way.kernel for way in choice.ways]}", []).append(choice)
    taken: dict[str, dict[str, Timing]] = {}

    def times(key: str) -> dict[str, Timing]:
        if not taken:
            taken.update(_measured(groups, actions, emitter, environment))
        return taken[key]

    for key, choices in groups.items():
        ways = choices[0].ways
        names = [way.kernel for way in ways]
        best = planner.fastest_in_place(choices[0].problem, names, partial(times, key))
        for choice in choices:
            _exchange(emitter, choice, choice.ways[names.index(best)])


def _exchange(emitter: Emitter, choice: Choice, way: Bound) -> None:
    if way.native is None:
        raise AssertionError("a choice is among calls of generated code")
    emitter.native[choice.action] = replace(emitter.native[choice.action], call=way.native)
    emitter.bounds[choice.bound] = way


def _run(actions: list[Action], environment: Environment) -> float:
    start = time.perf_counter()
    for action in actions:
        action(environment)
    return time.perf_counter() - start


def _measured(
    groups: dict[str, list[Choice]], actions: list[Action], emitter: Emitter, environment: Environment
) -> dict[str, dict[str, Timing]]:
    """Time of each way of each group, all of a group's steps together, in microseconds."""
    samples: dict[str, dict[str, list[float]]] = {key: {} for key in groups}
    most = max(len(choice.ways) for choice in emitter.choices)
    for turn in range(_RUNS * most):
        number, current = turn % most, list(actions)
        timed: dict[int, tuple[str, str]] = {}
        for key, choices in groups.items():
            for choice in choices:
                way = choice.ways[number % len(choice.ways)]
                if way.native is None:
                    continue
                timed[choice.action] = key, way.kernel
                if number % len(choice.ways):
                    current[choice.action] = replayed([replace(emitter.native[choice.action], call=way.native)])
        spent: dict[tuple[str, str], float] = {}
        for at, action in enumerate(current):
            start = time.perf_counter()
            action(environment)
            if at in timed:
                spent[timed[at]] = spent.get(timed[at], 0.0) + time.perf_counter() - start
        if turn < most:  # the first round warms up
            continue
        for (key, kernel), seconds in spent.items():
            samples[key].setdefault(kernel, []).append(1e6 * seconds)
    return {key: {kernel: Timing.of(values) for kernel, values in found.items()} for key, found in samples.items()}
