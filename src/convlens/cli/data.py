"""Look at a data set: what it holds, and what the net will see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, result_console

if TYPE_CHECKING:
    from convlens.data import Dataset

__all__ = ["app", "open_for_looking"]

app = typer.Typer(no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="DATA", help="A known name or a path.")]
Size = Annotated[str | None, typer.Option(help="Spatial size, such as 64 or 64x48.")]
Fit = Annotated[str | None, typer.Option(help="crop, pad or stretch.")]
OnBadFile = Annotated[str, typer.Option(help="skip or fail.")]


@app.callback()
def look() -> None:
    """Look at a data set: what it holds, and what the net will see."""


@app.command()
def info(
    data: Source, size: Size = None, fit: Fit = None, on_bad_file: OnBadFile = "skip", json: JsonFlag = False
) -> None:
    """Say what a data set holds: samples, classes, split, form, what was left out."""
    dataset = open_for_looking(data, size, fit, on_bad_file)
    described = _described(dataset)
    if json:
        print_json(described)
        return
    out = result_console()
    out.print(f"{dataset.source}: {dataset!r}", markup=False, soft_wrap=True)
    out.print(f"split: {dataset.report.split_rule}", markup=False)
    for note in dataset.report.notes:
        out.print(note, markup=False, soft_wrap=True)
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for part in dataset.splits:
        table.add_column(part, justify="right")
    for name, counts in described["classes"].items():
        table.add_row(name, *(str(counts[part]) for part in dataset.splits))
    out.print(table)
    for item in dataset.report.skipped:
        out.print(f"left out: {item.path}: {item.reason}", markup=False, soft_wrap=True)


@app.command()
def preview(
    data: Source,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("preview.png"),
    samples: Annotated[int, typer.Option(min=1, max=64, help="Rows: training samples.")] = 8,
    versions: Annotated[int, typer.Option(min=0, max=32, help="Columns: the same sample in so many epochs.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Another number shows others.")] = 0,
    size: Size = None,
    fit: Fit = None,
    json: JsonFlag = False,
) -> None:
    """Write a picture of what the net will see: samples as stored, then augmented."""
    from convlens.data.augment import default_augmentation
    from convlens.data.preview import preview as draw
    from convlens.errors import StorageError

    dataset = open_for_looking(data, size, fit, "skip")
    augmentation = default_augmentation(dataset.preprocessing, dataset.class_names)
    sheet = draw(dataset, augmentation, rows=samples, versions=versions, seed=seed)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise StorageError(f"{out}: the picture cannot be written ({error}).") from None
    changes = augmentation.model_dump(exclude_defaults=True)
    if json:
        print_json({"out": str(out), "width": sheet.width, "height": sheet.height, "augmentation": changes})
        return
    words = ", ".join(f"{name} {value}" for name, value in changes.items()) or "none"
    result_console().print(f"{out}: {samples} samples, {versions} versions each ({words})", markup=False)


@app.command()
def shards(
    data: Source,
    out: Annotated[Path, typer.Option(help="Folder for the tar files.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Samples per tar file.")] = 1000,
    json: JsonFlag = False,
) -> None:
    """Write a set of pictures as WebDataset shards, for many machines."""
    from convlens.data.shards import write_shards

    dataset = open_for_looking(data, None, None, "skip")
    written = write_shards(dataset, out, per_shard)
    if json:
        print_json({"out": str(out), "samples": len(dataset), "shards": [path.name for path in written]})
        return
    result_console().print(f"{out}: {len(dataset)} samples in {len(written)} shards", markup=False)


def open_for_looking(data: str, size: str | None, fit: str | None, on_bad_file: str) -> Dataset:
    """Open a data set from flags, with progress on the error stream."""
    from convlens import data as room
    from convlens.errors import RecipeError

    values: dict[str, Any] = {"on_bad_file": on_bad_file}
    if size is not None:
        try:
            values["size"] = tuple(
                int(part) for part in size.lower().replace("×", "x").replace(",", "x").split("x")
            )
        except ValueError:
            raise RecipeError(f"--size: expected numbers such as 64 or 64x48, received {size!r}.") from None
    if fit is not None:
        values["fit"] = fit
    return room.open(data, progress=True, **values)


def _described(dataset: Dataset) -> dict[str, Any]:
    counts = {part: dataset.class_counts(part).tolist() for part in dataset.splits}
    return {
        "source": dataset.source,
        "kind": dataset.kind,
        "samples": len(dataset),
        "shape": list(dataset.preprocessing.shape),
        "bytes": dataset.nbytes,
        "multilabel": dataset.multilabel,
        "split": {part: len(numbers) for part, numbers in dataset.splits.items()},
        "classes": {
            name: {part: counts[part][number] for part in dataset.splits}
            for number, name in enumerate(dataset.class_names)
        },
        "preprocessing": dataset.preprocessing.model_dump(),
        "fingerprint": dataset.fingerprint,
        "report": dataset.report.model_dump(),
    }
