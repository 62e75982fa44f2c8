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

    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True, min_width=max(len(item.run) for item in found))
    for name in ("data", "model", "status"):
        table.add_column(name)
    for name in ("epochs", "seconds", "dev", "test", "looks"):
        table.add_column(name, justify="right")
    for item in found:
        table.add_row(
            item.run,
            item.data or "",
            item.model or "",
            item.status.partition(":")[0],
            str(item.epochs),
            "" if item.seconds is None else f"{item.seconds:.1f}",
            _percent(item.dev_accuracy),
            _percent(item.test_accuracy),
            str(item.test_evaluations),
        )
    out.print(table)
    for item in found:
        if item.status.startswith("damaged"):
            out.print(f"{item.run}: {item.status}", markup=False, soft_wrap=True)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
