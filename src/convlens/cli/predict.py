"""Classify files with a trained model."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from itertools import islice
from json import dumps, loads
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a table: FILE.csv or FILE.parquet.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Classify files with a trained model.

    A table of signals or sequences is classified row by row, a FASTA file record by record, a hyperspectral scene
    pixel by pixel, and a table with a column `path` stands for the pictures that it names.
    A file that cannot be decoded is named on stderr and the others are still classified; the exit code is
    then 1. Under torchrun the processes share the work.

    With --out the answers become a table, .tar files (WebDataset shards) are looked into, and bad files are listed
    in FILE-bad.csv. The same command continues after a kill.
    """
    from convlens.modelfile import load
    from convlens.training.machine import device_of
    from convlens.training.team import join

    if out is not None:
        _write_table(load(run, device_of(device)), files, out, top, json)
        return
    team = join()
    predictor = load(run, device_of(device))
    share = _predict(predictor, list(_expanded(files)), top, team.rank, team.world)
    groups = sorted(group for text in team.collect(dumps(share)) for group in loads(text))
    rows = [row for _, found, _ in groups for row in found]
    bad = [error for _, _, errors in groups for error in errors]
    if team.is_first:
        if json:
            print_json(rows)
        else:
            _print_table(rows)
        for error in bad:
            status_console().print(f"convlens: {error}", style="red", markup=False, soft_wrap=True)
    if bad:
        raise typer.Exit(1)


def _write_table(predictor: Predictor, files: list[str], out: Path, top: int, json: bool) -> None:
    from convlens.data.progress import silent, visible
    from convlens.environment import rank_and_world
    from convlens.modelfile.bulk import predict_into

    if "-" in files:
        raise typer.BadParameter("a table is made of files, not of stdin", param_hint="FILE")
    share = rank_and_world()
    done = predict_into(predictor, list(_expanded(files)), out, top, share, silent if share[0] else visible)
    if not done.finished:
        status_console().print(f"process {share[0]} of {share[1]} is done, others still work", markup=False)
        return
    if json:
        listed = None if done.bad_files is None else str(done.bad_files)
        print_json({"out": str(out), "rows": done.rows, "bad": done.bad, "bad_files": listed})
        return
    status = status_console()
    status.print(f"wrote {out}: {done.rows:,} rows", soft_wrap=True, markup=False)
    if done.bad_files is not None:
        status.print(f"{done.bad:,} bad files are listed in {done.bad_files}", soft_wrap=True, markup=False)


def _predict(
    predictor: Predictor, sources: list[str], top: int, rank: int, world: int
) -> list[tuple[int, list[dict[str, Any]], list[str]]]:
    """Number, answers and errors of every group of inputs that is this process's."""
    inputs = _inputs(predictor, sources)
    done = []
    for group, members in enumerate(iter(lambda: list(islice(inputs, _AT_ONCE)), [])):
        if group % world != rank:
            continue
        decoded, names, bad = [], [], []
        for name, raw in members:
            try:
                if isinstance(raw, BadFileError):
                    raise raw
                decoded.append(predictor.preprocessing.decode(raw))
                names.append(name)
            except BadFileError as error:
                bad.append(str(error))
        done.append((group, _rows(predictor, decoded, names, top), bad))
    return done


def _inputs(predictor: Predictor, sources: list[str]) -> Iterator[tuple[str, Any]]:
    """Name and raw input of everything that the files hold; for a file that cannot be read, its error."""
    from convlens.data.contents import inputs_in

    for source in sources:
        if source == "-":
            yield source, sys.stdin.buffer.read()
            continue
        try:
            yield from inputs_in(predictor.preprocessing, Path(source))
        except BadFileError as error:
            yield source, error


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
