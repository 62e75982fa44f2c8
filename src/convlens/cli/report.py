"""Write the report of a run: one HTML file that opens from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, status_console

__all__ = ["run"]


def run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a model file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file. [default: RUN/report.html]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write curves, confusion, filters, feature maps, evidence, costs and settings of RUN into one HTML file."""
    from convlens.explorer import write_report

    written = write_report(run, out)
    if as_json:
        print_json({"report": str(written), "bytes": written.stat().st_size})
    else:
        status_console().print(f"wrote {written}", soft_wrap=True)
