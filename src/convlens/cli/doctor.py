"""Find what is wrong with a data set, each finding with the edit that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console

_MARKS = {"error": "red", "warning": "yellow", "note": "cyan"}


def run(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A known name or a path to a data set.")],
    json: JsonFlag = False,
) -> None:
    """Find what is wrong with a data set, each finding with the edit that mends it."""
    from convlens.cli.data import open_for_looking
    from convlens.data.doctor import examine

    dataset = open_for_looking(data, None, None, "skip")
    findings = examine(dataset)
    if json:
        print_json({"data": dataset.source, "findings": [finding.model_dump() for finding in findings]})
        return
    out = result_console()
    out.print(repr(dataset), markup=False, soft_wrap=True)
    if not findings:
        out.print("Nothing found.")
    for finding in findings:
        out.print(f"[{_MARKS[finding.severity]}]{finding.severity}[/]: {finding.what}", soft_wrap=True)
        out.print(f"  {finding.detail}", markup=False, soft_wrap=True)
        for item in finding.items:
            out.print(f"    {item}", markup=False, soft_wrap=True)
        if finding.count > len(finding.items) > 0:
            out.print(f"    … {finding.count - len(finding.items)} more", markup=False)
        out.print(f"  Fix: {finding.fix}.", markup=False, soft_wrap=True)
