"""Search for good training settings; the test part stays closed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, result_console, status_console
from convlens.cli._recipe_flags import recipe_from, with_recipe_flags

if TYPE_CHECKING:
    from convlens.training.search import SearchResult


@with_recipe_flags
def run(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="What `convlens train` takes.")] = None,
    *,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="NAME=VALUES",
            help="Setting to search: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A,B,C; may be repeated. "
            "[default: learning_rate, weight_decay, dropout, label_smoothing, batch_size]",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of the whole study.")] = 20,
    method: Annotated[
        str, typer.Option(metavar="tpe|random|grid|coarse-to-fine", help="How settings are chosen.")
    ] = "tpe",
    seeds: Annotated[int, typer.Option(min=0, help="Further seeds for the best settings: the noise.")] = 3,
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna database URL shared by many machines. [default: a SQLite file in --out]"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="Settings: mnist-99 or another recipe that comes along, or a file (TOML); flags override it.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the search. [default: runs/tune-DATA]")
    ] = None,
    json: JsonFlag = False,
    settings: dict[tuple[str, ...], Any],
) -> None:
    """Search for good training settings; the test part stays closed.

    Judged on the dev part. First the recipe is trained as it is, and last the best settings with other seeds,
    so that a gain can be told from luck. A killed search goes on when the command is repeated.
    """
    from convlens.cli._train_display import TrainDisplay
    from convlens.training.search import parse_space
    from convlens.training.search import search as search_settings

    if method not in ("tpe", "random", "grid", "coarse-to-fine"):
        raise typer.BadParameter(
            f"expected tpe, random, grid or coarse-to-fine, received {method!r}", param_hint="--method"
        )
    wanted = recipe_from(data, recipe, settings)
    if wanted.data is None:
        raise typer.BadParameter("missing: digits, or a path to your data", param_hint="DATA")
    folder = out or Path("runs") / f"tune-{Path(wanted.data).name}"
    result = search_settings(
        wanted,
        folder,
        space=parse_space(search) if search else None,
        trials=trials,
        method=method,  # type: ignore[arg-type]
        storage=storage,
        seeds=seeds,
        events=TrainDisplay(status_console()),
    )
    if json:
        print_json({**asdict(result), "noise": result.noise, "is_gain": result.is_gain})
    else:
        _print(result, wanted.data)


def _print(result: SearchResult, source: str) -> None:
    import shlex

    out = result_console()
    out.print(f"\nBest dev accuracy [bold]{100 * result.dev_accuracy:.2f} %[/] with", soft_wrap=True)
    for name, value in result.best.items():
        weight = f"   (explains {100 * result.importance[name]:.0f} %)" if name in result.importance else ""
        out.print(
            f"  {name} {value:.4g}{weight}" if isinstance(value, float) else f"  {name} {value}{weight}",
            markup=False,
        )
    if result.noise is not None:
        mean = 100 * sum(result.seeds) / len(result.seeds)
        out.print(
            f"With {len(result.seeds)} other seeds: {mean:.2f} % ± {100 * result.noise:.2f} (one deviation)."
        )
    verdict = {
        True: "more than luck: above twice the noise",
        False: "within the noise: it may be luck",
        None: "unknown against the noise: give --seeds 2 or more",
    }[result.is_gain]
    out.print(f"The recipe as it is: {100 * result.baseline:.2f} %. The gain is {verdict}.", soft_wrap=True)
    out.print(f"{len(result.trials)} trials complete, {result.pruned} ended early.")
    path = shlex.quote(str(result.folder / "best.toml"))
    out.print(f"\nNext:\n  convlens train {shlex.quote(source)} --recipe {path}", markup=False, soft_wrap=True)
