"""The layer set: 42 convolutions of real nets, from `layers.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from convlens.errors import ArgumentError
from convlens.window import ConvProblem

__all__ = ["LayerCase", "layer_cases"]


@dataclass(frozen=True, slots=True)
class LayerCase:
    """A named convolution; ``problem`` is its forward pass, float32, contiguous, on the CPU."""

    name: str
    problem: ConvProblem


def layer_cases(names: Iterable[str] = ()) -> list[LayerCase]:
    """The cases called ``names``, or all of them.

    Raises:
        ArgumentError: a name that is not in the set.
    """
    text = files("convlens.bench").joinpath("layers.csv").read_text(encoding="utf-8")
    cases = {row["name"]: _case(row) for row in csv.DictReader(text.splitlines())}
    wanted = list(names) or list(cases)
    for name in wanted:
        if name not in cases:
            raise ArgumentError("names", f"layers among {', '.join(cases)}", repr(name))
    return [cases[name] for name in wanted]


def _case(row: dict[str, str]) -> LayerCase:
    kernel = _sizes(row["kernel"])
    axes = len(kernel)

    def every_axis(column: str) -> tuple[int, ...]:
        return (int(row[column]),) * axes

    problem = ConvProblem(
        direction="forward",
        batch=int(row["batch"]),
        in_channels=int(row["in_channels"]),
        input_size=_sizes(row["input_size"]),
        out_channels=int(row["out_channels"]),
        kernel_size=kernel,
        stride=every_axis("stride"),
        padding=tuple((pad, pad) for pad in every_axis("padding")),
        dilation=every_axis("dilation"),
        groups=int(row["groups"]),
    )
    return LayerCase(row["name"], problem)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))
