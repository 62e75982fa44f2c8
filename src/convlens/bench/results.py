"""Results on paper: a table for the terminal, JSON with machine and versions, a chart as SVG."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from convlens import planner
from convlens.bench.layers import LayerRow, geometric_means
from convlens.bench.nets import NetRow, net_means
from convlens.errors import ArgumentError

__all__ = [
    "chart", "document", "environment", "net_document", "net_table", "read_nets", "table", "write", "write_nets",
]  # fmt: skip

_LIBRARIES = ("convlens", "torch", "llvmlite", "numpy", "onnxruntime", "openvino")


def environment() -> dict[str, Any]:
    """The machine and the versions that a figure was taken with."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    roofline = planner.machine()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": planner.processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": found,
        "peak_gflops": round(roofline.gflops, 1),
        "copy_gbytes_per_s": round(roofline.gbytes, 1),
        "precision": planner.get_precision(),
    }


def document(rows: Sequence[LayerRow]) -> dict[str, Any]:
    """Everything about a run of `measure_layers`, as plain values."""
    return {
        "benchmark": "layers",
        "environment": environment(),
        "geometric_mean_ratio": geometric_means(rows),
        "rows": [row.to_json() for row in rows],
    }


def table(rows: Sequence[LayerRow]) -> Table:
    """The rows as a Rich table; a ratio above 1 means that we are faster than the best peer."""
    shown = Table(title="time of the best peer ÷ ours (median, quartiles)")
    for column in ("layer", "direction", "best peer", "planned"):
        shown.add_column(column)
    for column in ("peer ms", "ours ms", "ratio", "quartiles", "best kernel", "GF/s", "% of peak"):
        shown.add_column(column, justify="right")
    for row in rows:
        lower, middle, upper = row.ratio
        best = "–" if row.best_ratio is None else f"{row.best_ratio:.2f}"
        shown.add_row(
            row.name,
            row.direction,
            row.peer,
            row.planned,
            f"{row.peer_us.median_us / 1e3:.3g}",
            f"{row.planned_us.median_us / 1e3:.3g}",
            f"[{'green' if middle >= 1 else 'red'}]{middle:.2f}[/]",
            f"{lower:.2f}–{upper:.2f}",
            best,
            f"{row.gflops:.0f}",
            f"{row.percent_of_peak:.0f}",
        )
    for direction, mean in geometric_means(rows).items():
        shown.add_row("[b]geometric mean[/b]", direction, "", "", "", "", f"[b]{mean:.2f}[/b]")
    return shown


def net_document(rows: Sequence[NetRow]) -> dict[str, Any]:
    """Everything about a run of `measure_nets`, as plain values."""
    batches = sorted({row.batch for row in rows})
    return {
        "benchmark": "nets",
        "environment": environment(),
        "geometric_mean_ratio": net_means(rows),
        "geometric_mean_ratio_by_batch": {
            str(batch): net_means([row for row in rows if row.batch == batch]) for batch in batches
        },
        "rows": [row.to_json() for row in rows],
    }


def net_table(rows: Sequence[NetRow]) -> Table:
    """Networks as a Rich table; a ratio above 1 means that we are faster than that peer."""
    engines = sorted({name for row in rows for name in row.ratios} - {"torch"})
    shown = Table(title="time of a peer ÷ ours (median, quartiles)")
    for column in ("network", "batch", "way"):
        shown.add_column(column)
    for column in ("ours ms", "GF/s", "best torch", *engines):
        shown.add_column(column, justify="right")
    for row in rows:
        cells = [_ratio_cell(row.ratios.get(name)) for name in ("torch", *engines)]
        shown.add_row(
            row.name, str(row.batch), row.way, f"{row.ours_us.median_us / 1e3:.3g}", f"{row.gflops:.0f}", *cells
        )
    means = net_means(rows)
    cells = [f"[b]{means[name]:.2f}[/b]" for name in ("torch", *engines) if name in means]
    shown.add_row("[b]geometric mean[/b]", "", "", "", "", *cells)
    return shown


def _ratio_cell(ratio: tuple[float, float, float] | None) -> str:
    if ratio is None:
        return "–"
    lower, middle, upper = ratio
    return f"[{'green' if middle >= 1 else 'red'}]{middle:.2f}[/] {lower:.2f}–{upper:.2f}"


def read_nets(folder: Path) -> list[NetRow]:
    """Rows of an earlier run in ``folder``, to go on with; none where there is no nets.json.

    Raises:
        ArgumentError: they come from another machine, other libraries or another number of threads, or the file
            is none of ours.
    """
    path = folder / "nets.json"
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, rows = found["environment"], [NetRow.from_json(row) for row in found["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError("append", "a nets.json that this command wrote", f"{path} ({error})") from error
    now = environment()
    for what in ("processor", "cores", "threads", "versions", "precision"):
        if before.get(what) != now[what]:
            fix = "write to another folder, or leave out --append"
            raise ArgumentError("append", f"rows taken with {what} {now[what]}", str(before.get(what)), fix)
    return rows


def write_nets(rows: Sequence[NetRow], folder: Path) -> tuple[Path, Path]:
    """Write ``nets.json`` and ``nets.svg`` into ``folder``; returns their paths."""
    bars = [
        (f"{row.name} batch {row.batch}, {name}", middle)
        for row in rows
        for name, (_, middle, _) in row.ratios.items()
    ]
    return _write(net_document(rows), bars, folder, "nets")


def chart(bars: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars of ratios by name, with a line at 1: a standalone SVG."""
    height, left, width = 18, 220, 620
    widest = max([ratio for _, ratio in bars] + [1.0])
    scale = width / widest
    total = height * len(bars) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{total}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Time of a peer divided by ours; above 1 we are faster</title>",
        f'<rect width="{left + width + 60}" height="{total}" fill="white"/>',
    ]
    for place, (name, ratio) in enumerate(bars):
        top = 20 + place * height
        colour = "#2a9d8f" if ratio >= 1 else "#c8553d"
        lines.append(
            f'<text x="{left - 6}" y="{top + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{top + 2}" width="{ratio * scale:.1f}" height="{height - 4}" fill="{colour}"/>'
            f'<text x="{left + ratio * scale + 4:.1f}" y="{top + 12}">{ratio:.2f}×</text>'
        )
    at_one = left + scale
    lines.append(f'<line x1="{at_one:.1f}" x2="{at_one:.1f}" y1="14" y2="{total - 16}" stroke="#333"/></svg>')
    return "\n".join(lines)


def write(rows: Sequence[LayerRow], folder: Path, stem: str = "layers") -> tuple[Path, Path]:
    """Write ``stem.json`` and ``stem.svg`` into ``folder``; returns their paths."""
    return _write(document(rows), [(f"{row.name} {row.direction}", row.ratio[1]) for row in rows], folder, stem)


def _write(
    values: dict[str, Any], bars: Sequence[tuple[str, float]], folder: Path, stem: str
) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    data, picture = folder / f"{stem}.json", folder / f"{stem}.svg"
    data.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    picture.write_text(chart(bars), encoding="utf-8")
    return data, picture
