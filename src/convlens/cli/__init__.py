"""The command line: one file per command, each turning flags into one record and one call."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    raise SystemExit(2)
