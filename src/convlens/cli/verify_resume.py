"""Prove that stopping and resuming a run changes no bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console


def run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, finished or not.")],
    json: JsonFlag = False,
) -> None:
    """Prove that stopping and resuming a run changes no bit.

    Trains again from the run's last checkpoint but one to its last, with a stop half-way, and compares every
    bit of weights, optimizer, averages and random state. The run itself is not changed. Exit code 1 where
    anything differs.
    """
    from convlens.training.verify import verify_resume

    found = verify_resume(run)
    if json:
        print_json({**asdict(found), "identical": found.identical})
    else:
        way = f"from step {found.from_step} to {found.to_step}, stopped and resumed at {found.stopped_at}"
        if found.identical:
            text = f"Identical: all {found.tensors} tensors agree bit for bit after training again {way}."
        else:
            text = f"Different after training again {way}: {', '.join(found.different[:8])}."
        result_console().print(text, soft_wrap=True)
    if not found.identical:
        raise typer.Exit(1)
