"""A run to serve, and planning put back after servers changed it."""

import pytest

from convlens import planner
from unit_serving import write_run


@pytest.fixture(autouse=True)
def ordinary_planning():
    yield
    planner.set_batch_invariant(False)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")
