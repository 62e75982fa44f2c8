"""Plans written to a file and pinned again."""

from __future__ import annotations

import json

import pytest

from convlens import planner
from convlens.errors import ArgumentError
from convlens.window import ConvProblem

PROBLEM = ConvProblem("forward", 1, 1, (5, 5), 1, (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))


@pytest.fixture(autouse=True)
def nothing_pinned():
    planner.unpin()
    yield
    planner.unpin()


def test_round_trip(tmp_path):
    made = planner.plan(PROBLEM)
    planner.save_plans(tmp_path / "plans.json")
    planner.unpin()
    assert planner.load_plans(tmp_path / "plans.json") == 1
    assert planner.plan(PROBLEM).kernel == made.kernel


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other", "plans": {}}', '{"format": "convlens plans 1"}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(ArgumentError, match="convlens plans 1"):
        planner.load_plans(tmp_path / "plans.json")


def test_a_key_that_is_no_problem_is_refused(tmp_path):
    document = {"format": "convlens plans 1", "plans": {"nonsense": "vendor"}}
    (tmp_path / "plans.json").write_text(json.dumps(document))
    with pytest.raises(ArgumentError, match="to_key"):
        planner.load_plans(tmp_path / "plans.json")
