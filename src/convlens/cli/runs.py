"""List the training runs with their results."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console

if TYPE_CHECKING:
    from convlens.training.rundir import RunSummary


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
    heading = ("run", "data", "model", "status", "epochs", "seconds", "dev", "test")
    rows = [heading, *(_cells(item) for item in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    for row in rows:
        cells = [
            f"{cell:<{w}}" if column < 4 else f"{cell:>{w}}"
            for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        out.print("  ".join(cells).rstrip(), style="bold" if row is heading else "", markup=False, soft_wrap=True)
    for item in found:
        if item.status.startswith("damaged"):
            out.print(f"{item.run}: {item.status}", markup=False, soft_wrap=True)


def _cells(item: RunSummary) -> tuple[str, ...]:
    seconds = "" if item.seconds is None else f"{item.seconds:.1f}"
    status = item.status.partition(":")[0]
    accuracies = _percent(item.dev_accuracy), _percent(item.test_accuracy)
    return (item.run, item.data or "", item.model or "", status, str(item.epochs), seconds, *accuracies)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
