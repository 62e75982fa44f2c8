"""Train a network on DATA; ends with its test accuracy and a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, status_console
from convlens.cli._recipe_flags import recipe_from, with_recipe_flags

if TYPE_CHECKING:
    from rich.console import Console

    from convlens.training import Result


@with_recipe_flags
def run(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="digits, or a path: class folders of images, IDX files …"),
    ] = None,
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="Settings: mnist-99 or another recipe that comes along, or a file (TOML); flags override it.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory. [default: runs/DATA-MODEL-N]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or the newest unfinished one of DATA.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write report.html into the run at the end.")] = True,
    json: JsonFlag = False,
    settings: dict[tuple[str, ...], Any],
) -> None:
    """Train a network on DATA; ends with its test accuracy and a model file.

    Everything not given is chosen from the data, the network and the machine, and printed.
    Ctrl-C saves and says how to go on.
    """
    from convlens.cli._train_display import TrainDisplay
    from convlens.environment import rank_and_world
    from convlens.training import Interrupted, RunDirectory, train
    from convlens.training.recipe import Recipe

    console = status_console()
    wanted = recipe_from(data, recipe, settings)
    if resume and out is not None:
        wanted = _of_the_run(RunDirectory.open(out).recipe, wanted, data, bool(recipe or settings), Recipe)
    if wanted.data is None:
        raise typer.BadParameter("missing: digits, or a path to your data", param_hint="DATA")
    display = TrainDisplay(console)
    try:
        result = train(wanted, out, resume=resume, events=display)
    except Interrupted as interrupted:
        again = f"convlens train {_quoted(wanted.data)} --out {_quoted(display.run)} --resume"
        console.print(f"{interrupted} Go on with:\n  {again}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if rank_and_world()[0]:
        return  # the first of the processes writes and prints
    reported = report and _write_report(result, console)
    if json:
        print_json(_document(result))
    else:
        _print_result(result, reported)


def _of_the_run(stored: Any, wanted: Any, data: str | None, flags: bool, kind: Any) -> Any:
    """The settings to resume with: the run's own; a flag or DATA that contradicts them is wrong usage."""
    asked = wanted.model_dump(exclude_unset=True) if flags else {}
    if data is not None:
        asked["data"] = data
    known = stored.model_dump()
    different = [name for name, value in asked.items() if name != "data_options" and known.get(name) != value]
    if different:
        parts = ", ".join(f"{name} was {known.get(name)!r}" for name in different)
        raise typer.BadParameter(f"--resume goes on with the run's own settings ({parts}); leave these out.")
    return stored


def _write_report(result: Result, console: Console) -> bool:
    """Write the run's report; a run is a success without it, so what hinders it is only told."""
    from convlens.errors import ConvlensError
    from convlens.explorer import write_report

    try:
        with console.status("writing report.html"):
            write_report(result.run.path, None)
    except ConvlensError as error:
        console.print(f"No report.html: {error}", markup=False, soft_wrap=True)
        return False
    return True


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def _document(result: Result) -> dict[str, Any]:
    return {
        "run": str(result.run.path),
        "model": result.card.architecture["name"],
        "data": result.card.data,
        "epochs": result.card.training["epochs"],
        "seconds": result.seconds,
        "dev_accuracy": result.best.get("dev_accuracy"),
        "test_accuracy": result.card.test_accuracy,
        "test_samples": result.test.samples,
        "diagnosis": result.card.diagnosis,
    }


def _print_result(result: Result, reported: bool) -> None:
    from rich.console import Console as StandardConsole

    from convlens.training.diagnosis import Finding, paragraph

    out = StandardConsole(highlight=False, soft_wrap=True)
    card = result.card
    if result.test.samples:
        wrong = round(result.test.samples * (1 - result.test.accuracy))
        out.print(
            f"\n[bold green]Test accuracy {100 * result.test.accuracy:.2f} %[/] "
            f"({wrong} of {result.test.samples} wrong) after {result.seconds:.1f} s of training"
        )
    else:
        out.print(f"\n[bold]Trained in {result.seconds:.1f} s[/]; there is no test part to judge it by")
    out.print(paragraph(Finding(**finding) for finding in card.diagnosis["findings"]), markup=False)
    run = _quoted(str(result.run.path))
    what = "open report.html in a browser" if reported else "model.safetensors is the model"
    out.print(f"Run: [bold]{result.run.path}[/]  ({what})")
    out.print("\nNext:")
    example = "photo.png" if card.preprocessing.kind == "image" else "FILE"
    out.print(f"  convlens predict {run} {example}", markup=False)
    out.print(f"  convlens summary {run}", markup=False)
    out.print("  convlens runs", markup=False)
