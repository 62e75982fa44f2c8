"""Writes docs/benchmarks.md from benchmarks/results/*.json: what was measured, where, and nothing else.

Run by the documentation build; the page is not kept in the repository.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Written by `scripts/benchmark_page.py` from `benchmarks/results/`. Columns keep the names of the result files:
a final "s" is seconds, "us" microseconds. A number holds for the machine and the versions above its table, and
for no other.
"""


def shown(value: Any) -> str:
    """One value as a cell: numbers to three or four digits."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " to ".join(map(shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return str(value).replace("|", "\\|")


def section(path: Path) -> list[str]:
    """The Markdown of one result file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"\n## {path.stem.replace('_', ' ')}\n"]
    environment = document.pop("environment", {})
    rows = document.pop("rows", None) or document.pop("results", None) or []
    if environment:
        lines.append(" · ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in environment.items()))
        lines.append("")
    plain = {key: value for key, value in document.items() if key != "benchmark"}
    lines += [f"- {key.replace('_', ' ')}: {shown(value)}" for key, value in plain.items()]
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", "| " + " | ".join(column.replace("_", " ") for column in columns) + " |"]
        lines.append("|" + " --- |" * len(columns))
        lines += ["| " + " | ".join(shown(row.get(column)) for column in columns) + " |" for row in rows]
    return lines


def main() -> None:
    """Write the page if its text changed, so that an unchanged build stays unchanged."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        parts += section(path)
    text = "\n".join(parts) + "\n"
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
