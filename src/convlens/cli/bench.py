"""Measure speed against PyTorch and other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console, status_console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure speed against PyTorch and other engines, side by side in one process."""


@app.command()
def layers(
    names: Annotated[list[str] | None, typer.Argument(help="Layers to measure; all 42 by default.")] = None,
    direction: Annotated[
        str, typer.Option(help="forward, backward (both gradients), or both.", metavar="DIRECTION")
    ] = "both",
    repeats: Annotated[int, typer.Option(min=3, help="Rounds at most.")] = 30,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds of rounds for each row at most.")] = 3.0,
    compile: Annotated[bool, typer.Option(help="Also measure torch.compile (some seconds a layer).")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for layers.json and layers.svg.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time each layer of the set against the best form of torch (and onnxruntime, openvino if installed)."""
    ways = {"both": ("forward", "backward"), "forward": ("forward",), "backward": ("backward",)}
    if direction not in ways:
        raise typer.BadParameter(f"expected forward, backward or both, received {direction!r}")
    import torch

    from convlens.bench import results
    from convlens.bench.cases import layer_cases
    from convlens.bench.layers import measure_layers

    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    status = status_console()
    for row in measure_layers(
        layer_cases(names or ()), ways[direction], repeats=repeats, budget_s=budget, compiled=compile
    ):
        rows.append(row)
        status.print(f"{row.name} {row.direction}: {row.ratio[1]:.2f}× the best peer ({row.planned})")
    if out is not None:
        for path in results.write(rows, out):
            status.print(f"wrote {path}")
    if as_json:
        print_json(results.document(rows))
    else:
        result_console().print(results.table(rows))
