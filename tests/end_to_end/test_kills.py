"""A handful of the kills that ``kill_and_resume.py`` makes by the hundred."""

import sys

import pytest

from end_to_end import kill_and_resume


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_runs_end_with_the_same_bits(tmp_path):
    hits, _ = kill_and_resume.check(tmp_path, kills=3, seed=1)
    assert hits >= 3
