"""`convlens report`: one HTML file that needs no network and opens from disk."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from convlens.explorer.bundle import bundle, static_file
from convlens.modelfile.atomic import write_text

__all__ = ["page", "write_report"]


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a finished run; returns where.

    Args:
        run: a run directory, or a model file (then without curves).
        out: the file; default ``report.html`` in the run directory or beside the model file.

    Raises:
        PathError: no such run, or one that has not finished.
        StorageError: the file cannot be written.
    """
    from convlens.explorer.run_record import run_record
    from convlens.modelfile.card import model_path

    target = Path(out) if out is not None else model_path(run).with_name("report.html")
    write_text(target, page(run_record(run)))
    return target


def page(record: dict[str, Any]) -> str:
    """The HTML of a report, everything inside. Scripts are admitted by their hash only, so that nothing
    that a record says (a class name, a path) can run.
    """
    charts, script = _plotly(), bundle("report")
    data = json.dumps(record, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (charts, script))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    style = static_file("style.css").read_text(encoding="utf-8")
    title = escape(f"{record['title']} · convlens report")
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{style}</style></head>\n"
        '<body><a class="skip" href="#main">Skip to the content</a>\n'
        '<header id="header"></header><main id="main"></main>\n'
        "<noscript>This report draws its pictures with JavaScript, which is switched off.</noscript>\n"
        f'<script type="application/json" id="record">{data}</script>\n'
        f"<script>{charts}</script>\n<script>{script}</script>\n</body></html>\n"
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    # inside HTML a closing tag in a string would end the script
    return script.replace("</script", "<\\/script")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
