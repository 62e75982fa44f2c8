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

    Real inputs go through training's evaluation, predict, the server and the exported file; unless labels are
    equal and probabilities agree to 1e-4, nothing is kept.
    """
    from convlens.export import FORMATS, export
    from convlens.export.files import OPSET
    from convlens.training.route import evaluation_route

    if to not in FORMATS:
        raise typer.BadParameter(f"--to: expected one of {', '.join(FORMATS)}, received {to!r}")
    routes = {"training's evaluation": evaluation_route(run)}
    console = status_console()
    try:
        from convlens.serving.route import server_route
    except ImportError as error:
        console.print(
            f"The server was not asked: {error.name} is missing (pip install 'convlens\\[serve]').", soft_wrap=True
        )
    else:
        routes["the server"] = server_route(run)
    done = export(run, to, out, int8, routes)  # type: ignore[arg-type]
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "format": done.format,
                "opset": OPSET if done.format == "onnx" else None,
                "bytes": done.path.stat().st_size,
                "inputs": done.inputs,
                "routes": list(done.routes),
                "largest_gap": done.largest_gap,
                "labels_changed": done.labels_changed,
                "accuracy_cost": done.accuracy_cost,
                "accuracy_samples": None if done.accuracy is None else done.accuracy[2],
            }
        )
        return
    opset = f", opset {OPSET}" if done.format == "onnx" else ""
    console.print(f"wrote {done.path} ({done.path.stat().st_size:,} bytes{opset})", soft_wrap=True, markup=False)
    if done.labels_changed is None:
        agreed = f"{done.inputs} inputs: {', '.join(done.routes)} agree to {done.largest_gap:.1e}"
        console.print(agreed, soft_wrap=True, markup=False)
        return
    console.print(f"8-bit weights changed {done.labels_changed:.1%} of the labels", markup=False)
    if done.accuracy is not None:
        before, after, samples = done.accuracy
        console.print(
            f"accuracy {before:.2%} became {after:.2%} on {samples} samples of the dev part", markup=False
        )
