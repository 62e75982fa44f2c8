"""`fronts`: the functions for one, two and three axes, made from the one that is told their number.

A family such as ``conv1d``, ``conv2d``, ``conv3d`` has one signature and one documentation, written once; each
front has its own name, signature and docstring for those who look at it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["fronts"]

P = ParamSpec("P")
R = TypeVar("R")


def fronts(
    template: Callable[Concatenate[int, P], R], name: str, one: str, three: str
) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """The fronts of ``template``, which takes the number of axes first.

    Args:
        template: computes for any number of axes; its docstring is that of the front for two.
        name: what the fronts are called, less the ending: ``"conv"`` for ``conv1d``.
        one, three: first lines of the other two docstrings.

    Returns:
        The fronts for one, two and three axes.
    """
    signature = inspect.signature(template, eval_str=True)
    first, *rest = signature.parameters.values()
    module, annotations = template.__module__, dict(template.__annotations__)
    del annotations[first.name]

    def front(ndim: int, text: str | None) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return template(ndim, *args, **kwargs)

        call.__name__ = call.__qualname__ = f"{name}{ndim}d"
        call.__module__, call.__doc__, call.__annotations__ = module, text, annotations
        shown: Any = call
        shown.__signature__ = signature.replace(parameters=rest)
        return call

    return front(1, one), front(2, template.__doc__), front(3, three)
