"""Finds the command asked for, imports only that one, and turns errors into one clear paragraph."""

from __future__ import annotations

import ast
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from convlens.errors import ConvlensError

__all__ = ["EXIT_ERROR", "EXIT_INTERRUPTED", "EXIT_USAGE", "command_names", "run_command_line"]

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""What a shell reports for a program ended by Ctrl-C (128 + SIGINT)."""

_PANELS = {
    "Train": ("train", "evaluate", "predict", "tune", "runs", "verify-resume"),
    "See": ("summary", "doctor", "data", "report", "explore", "filter"),
    "Speed": ("plan", "bench"),
    "Ship": ("export", "serve", "scan"),
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names}
_ORDER = {name: place for place, name in enumerate(_PANEL_OF)}


@cache
def command_names() -> tuple[str, ...]:
    """Every command, in the order of the help page."""
    files = Path(__file__).parent.glob("[!_]*.py")
    names = sorted(file.stem.replace("_", "-") for file in files)
    return tuple(sorted(names, key=lambda name: _ORDER.get(name, len(_ORDER))))


class _LazyGroup(TyperGroup):
    """Commands are imported when they run; the list of commands reads only their first docstring line."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(command_names())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in command_names():
            return None
        return _imported(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Typer's "Did you mean" looks at `commands`.
        self.commands = {name: _listed(name) for name in command_names()}
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        listing = TyperGroup(
            name=self.name,
            commands={name: _listed(name) for name in command_names()},
            help=self.help,
            params=self.params,
            rich_markup_mode=self.rich_markup_mode,
        )
        listing.format_help(ctx, formatter)


def _listed(name: str) -> Any:
    """A stand-in that only carries the one-line help, for the list of commands."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    app = typer.Typer(add_completion=False)
    app.command(name, help=docstring.partition("\n")[0], rich_help_panel=_PANEL_OF.get(name))(lambda: None)
    return get_command(app)


def _imported(name: str) -> Any:
    module = importlib.import_module(f"convlens.cli.{name.replace('-', '_')}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name)(module.run)
    command = get_command(app)
    command.name = name
    return command


def _print_version(asked: bool) -> None:
    if asked:
        from convlens import __version__

        typer.echo(f"convlens {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Convolutional networks you can see through: train, look inside, accelerate, ship."""


def _root_command() -> Any:
    app = typer.Typer(cls=_LazyGroup, add_completion=False, no_args_is_help=True, rich_markup_mode="rich")
    app.callback()(_root)
    return get_command(app)


def run_command_line(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 an error that was explained, 2 wrong usage, 130 Ctrl-C.

    Args:
        arguments: what follows ``convlens`` on the command line; this process's own when None.
    """
    try:
        _root_command().main(None if arguments is None else list(arguments), prog_name="convlens")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_ERROR if end.code else 0
    except ConvlensError as error:
        return _explain(str(error))
    except KeyboardInterrupt:
        _explain("Interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`convlens runs | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except MemoryError:
        return _explain("Not enough memory for this. A smaller --batch-size or smaller inputs need less.")
    except OSError as error:
        return _explain(_os_error(error))
    return 0


def _explain(text: str) -> int:
    print(f"convlens: {text}", file=sys.stderr)
    return EXIT_ERROR


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space is left on the disk{where}. Free some, or write elsewhere with --out."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to use this path{where}. Choose another one, or change its permissions."
    return f"{error.strerror or error}{where}."
