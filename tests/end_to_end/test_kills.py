"""A handful of the kills that ``kill_and_resume.py`` and ``kill_predictions.py`` make by the hundred."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from end_to_end import kill_and_resume, kill_predictions


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_runs_end_with_the_same_bits(tmp_path):
    hits, _ = kill_and_resume.check(tmp_path, kills=3, seed=1)
    assert hits >= 3


@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL are POSIX")
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_killed_predictions_end_with_the_same_table(ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    command = [sys.executable, kill_predictions.__file__, "--kills", "6", "--seed", "3", "--endings", ending]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent, check=True
    )
    (found,) = json.loads(done.stdout)
    assert (found["kills"], found["equal"]) == (6, True)
