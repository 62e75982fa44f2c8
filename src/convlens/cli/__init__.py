"""The command line: one file per command, each turning flags into one record and one call.

To add a command ``convlens some-name``, add the file ``cli/some_name.py``; nothing else is registered.

* Its first docstring line is the one-line help of the command list; it is read without importing the file.
* It defines ``run``, a function with Typer parameters (``Annotated[str, typer.Argument(help=...)]``), whose
  docstring is the command's ``--help``; or ``app``, a `typer.Typer`, when the command has sub-commands.
* At module level it imports only light things (typer, `convlens.cli._output`); torch, numpy and the rooms
  it calls are imported inside the function, because ``--help`` must answer at once.
* It raises errors of `convlens.errors`; the boundary in `convlens.cli._app` prints them as one paragraph and
  ends with exit code 1. Wrong usage (`typer.BadParameter`) ends with 2, Ctrl-C with 130.
* What a program reads goes to stdout, everything else to stderr; with ``--json``, stdout holds exactly one
  JSON document (`convlens.cli._output.print_json`).

Files whose name starts with ``_`` are helpers, not commands.
"""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Run the command line with this process's arguments and end the process with its exit code."""
    # Importing makes a million objects, of which none is garbage: the usual search costs 0.1 s, at the end 0.2 s.
    gc.set_threshold(50_000, 20, 100)
    from convlens.cli._app import run_command_line

    code = run_command_line()
    gc.freeze()
    raise SystemExit(code)
