"""The command line's frame: help without heavy imports, exit codes, errors as one paragraph."""

import errno
import subprocess
import sys

import pytest

from convlens.cli import _app, _output
from convlens.errors import PathError


def _raise(error):
    class Command:
        def main(self, *args, **kwargs):
            raise error

    return Command


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PathError("no such path: x"), 1, "no such path: x"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "No space is left on the disk (runs/a)"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            1,
            "No permission to use this path (/root/x)",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error."),
        (MemoryError(), 1, "--batch-size"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_errors_become_one_paragraph_and_an_exit_code(monkeypatch, capsys, error, code, text):
    monkeypatch.setattr(_app, "_root_command", _raise(error))
    assert _app.run_command_line([]) == code
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") <= 1


def test_help_lists_every_command_and_imports_nothing_heavy():
    script = (
        "import sys; from convlens.cli._app import run_command_line as r; code = r(['--help']);"
        "heavy = {'torch', 'numpy', 'sklearn', 'pydantic', 'PIL'} & set(sys.modules); assert not heavy, heavy;"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in _app.command_names():
        assert name in done.stdout


def test_an_unknown_command_suggests_the_nearest(capsys, monkeypatch):
    monkeypatch.setattr(_app, "command_names", lambda: ("train", "runs"))
    assert _app.run_command_line(["trian"]) == 2
    assert "'train'" in capsys.readouterr().err


def test_version(capsys):
    assert _app.run_command_line(["--version"]) == 0
    assert capsys.readouterr().out.startswith("convlens ")


def test_json_has_no_nan(capsys):
    _output.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": ("é",)})
    assert (
        capsys.readouterr().out
        == '{\n  "a": null,\n  "b": [\n    null,\n    1.5\n  ],\n  "c": [\n    "é"\n  ]\n}\n'
    )
