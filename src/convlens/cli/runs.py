"""List the training runs with their results."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console


def run(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of runs.")] = Path("runs"),
    json: JsonFlag = False,
) -> None:
    """List the training runs with their results."""
    from convlens.training import list_runs

    found = list_runs(folder)
    if json:
        print_json([asdict(summary) for summary in found])
        return
    out = result_console()
    if not found:
        out.print("No runs here yet. Make one with: convlens train digits")
        return
    from rich.table import Table

    table = Table("run", "data", "model", "status", box=None, pad_edge=False)
    for name in ("epochs", "seconds", "dev", "test", "looks"):
        table.add_column(name, justify="right")
    for item in found:
        table.add_row(
            item.run,
            item.data or "",
            item.model or "",
            item.status,
            str(item.epochs),
            "" if item.seconds is None else f"{item.seconds:.1f}",
            _percent(item.dev_accuracy),
            _percent(item.test_accuracy),
            str(item.test_evaluations),
        )
    out.print(table)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
