"""Show what every layer computes, costs and sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="Name of a network, run directory or model file.")
    ],
    input: Annotated[
        str | None, typer.Option("--input", metavar="C,H,W", help="Shape of one input. [default: as built]")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes, for a network by name.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what every layer computes, costs and sees.

    For each layer: output shape, weights, multiply-adds (MACs), bytes touched, and the receptive field: how
    much of the input one unit sees, and how far apart neighbouring units' fields lie.
    """
    import convlens
    from convlens.errors import PathError

    shape = _shape(input)
    if Path(model).exists():
        network = convlens.load(model).model
    else:
        if not model.startswith("timm/") and model not in convlens.models.names():
            raise PathError(
                f"{model}: no such run or model file, nor a network of that name "
                f"({', '.join(convlens.models.names())}, timm/NAME)."
            )
        size = shape[1:] if shape else None
        network = convlens.models.create(model, shape[0] if shape else None, classes, size)
    found = convlens.summary(network, shape)
    if json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise typer.BadParameter(
            f"expected channels and sizes such as 3,224,224, received {text!r}", param_hint="--input"
        )
    return shape
