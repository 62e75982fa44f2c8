"""Write a run as ONNX, a torch.export archive or safetensors, checked before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, status_console

__all__ = ["run"]


def run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a model file.")],
    to: Annotated[str, typer.Option("--to", help="onnx, torch or safetensors.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; default beside the model.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX with 8-bit weights; says what it costs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export RUN with its preprocessing inside: from uint8 pixels of any size to probabilities.

    Real inputs go through evaluation, predict and the exported file; unless labels are equal and probabilities
    agree to 1e-4, nothing is kept.
    """
    from convlens.export import FORMATS, export

    if to not in FORMATS:
        raise typer.BadParameter(f"--to: expected one of {', '.join(FORMATS)}, received {to!r}")
    done = export(run, to, out, int8)  # type: ignore[arg-type]
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "format": done.format,
                "bytes": done.path.stat().st_size,
                "inputs": done.inputs,
                "routes": list(done.routes),
                "largest_gap": done.largest_gap,
                "accuracy_cost": done.accuracy_cost,
            }
        )
        return
    console = status_console()
    console.print(f"wrote {done.path} ({done.path.stat().st_size:,} bytes)", soft_wrap=True, markup=False)
    if done.accuracy_cost is None:
        console.print(f"{done.inputs} inputs: {', '.join(done.routes)} agree to {done.largest_gap:.1e}")
    else:
        console.print(f"8-bit weights changed {done.accuracy_cost:.1%} of {done.inputs} labels")
