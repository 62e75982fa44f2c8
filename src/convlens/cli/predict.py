"""Classify files with a trained model."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, result_console, status_console
from convlens.errors import BadFileError, DataError, PathError

if TYPE_CHECKING:
    from convlens.modelfile import Predictor

_AT_ONCE = 64


def run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory or model file.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files, folders, glob patterns, or - for one file on stdin."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show for each file.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """Classify files with a trained model.

    A file that cannot be decoded is named on stderr and the others are still classified; the exit code is
    then 1.
    """
    from convlens.modelfile import load
    from convlens.training.machine import device_of

    predictor = load(run, device_of(device))
    rows, bad = _predict(predictor, list(_expanded(files)), top)
    if json:
        print_json(rows)
    else:
        _print_table(rows)
    for error in bad:
        status_console().print(f"convlens: {error}", style="red", markup=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)


def _predict(
    predictor: Predictor, sources: list[str], top: int
) -> tuple[list[dict[str, Any]], list[BadFileError]]:
    rows: list[dict[str, Any]] = []
    bad: list[BadFileError] = []
    for start in range(0, len(sources), _AT_ONCE):
        decoded, names = [], []
        for source in sources[start : start + _AT_ONCE]:
            try:
                decoded.append(predictor.preprocessing.decode(_raw(source)))
                names.append(source)
            except BadFileError as error:
                bad.append(error)
        rows += _rows(predictor, decoded, names, top)
    return rows, bad


def _rows(predictor: Predictor, decoded: list[Any], names: list[str], top: int) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    if not decoded:
        return []
    table = predictor.probabilities(torch.from_numpy(np.stack(decoded))).numpy()
    return [
        {
            "path": name,
            "label": predictor.label_of(row),
            "probability": float(row.max()),
            "top": [{"label": label, "probability": p} for label, p in predictor.top(row, top)],
        }
        for name, row in zip(names, table, strict=True)
    ]


def _raw(source: str) -> Any:
    return sys.stdin.buffer.read() if source == "-" else Path(source)


def _expanded(patterns: list[str]) -> Iterator[str]:
    """Every file that the arguments mean: a folder stands for all files in it, a pattern for what it matches."""
    for pattern in patterns:
        path = Path(pattern)
        if pattern == "-" or path.is_file():
            yield pattern
        elif path.is_dir():
            found = sorted(
                str(file) for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")
            )
            if not found:
                raise DataError(f"{pattern}: the folder is empty.")
            yield from found
        else:
            found = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
            if not found:
                raise PathError(f"{pattern}: no such file, and no pattern that matches one.")
            yield from found


def _print_table(rows: list[dict[str, Any]]) -> None:
    out = result_console()
    width = max((len(row["path"]) for row in rows), default=0)
    for row in rows:
        others = ", ".join(f"{other['label']} {100 * other['probability']:.1f} %" for other in row["top"][1:])
        line = f"{row['path']:<{width}}  {row['label']}  {100 * row['probability']:.1f} %"
        out.print(line + (f"   ({others})" if others else ""), markup=False, soft_wrap=True)
