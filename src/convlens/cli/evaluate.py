"""Measure a trained model's accuracy on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console


def run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory or model file.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Labelled data of the same classes; the run's own if left out."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """Measure a trained model's accuracy on labelled data.

    Each look at the run's own test part is counted and dated in the model file: choosing among models by
    the test part makes its accuracy too good to be true. Under torchrun the processes share the work.
    """
    from convlens.environment import rank_and_world
    from convlens.modelfile.card import read_card
    from convlens.training import evaluate

    looks_before = len(read_card(run).test_evaluations)
    scores, card, part = evaluate(run, data, device)
    if rank_and_world()[0]:
        return  # the first of the processes prints
    looks = len(card.test_evaluations)
    if json:
        print_json(
            {
                "run": str(run),
                "data": data or card.data.get("source"),
                "part": part,
                "samples": scores.samples,
                "accuracy": scores.accuracy,
                "loss": scores.loss,
                "test_accuracy": scores.accuracy,
                "test_evaluations": [evaluation.model_dump() for evaluation in card.test_evaluations],
            }
        )
        return
    out = result_console()
    wrong = round(scores.samples * (1 - scores.accuracy))
    what = f"{'test part' if part == 'test' else 'all samples'} of {data or card.data.get('source')}"
    out.print(
        f"[bold green]Accuracy {100 * scores.accuracy:.2f} %[/] on the {what} "
        f"({wrong} of {scores.samples} wrong), loss {scores.loss:.4f}",
        soft_wrap=True,
    )
    if looks > looks_before:
        out.print(f"This was look number {looks} at this test part; the model file counts them.", style="dim")
