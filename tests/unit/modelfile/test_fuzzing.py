"""A small share of the fuzzed inputs; the whole is ``python tests/fuzzing.py``."""

from __future__ import annotations

import pytest

import fuzzing
from convlens import planner
from convlens.errors import ConvlensError


@pytest.mark.filterwarnings("ignore")  # Pillow has something to say about every odd file
@pytest.mark.parametrize("target", sorted(fuzzing.TARGETS))
def test_hostile_inputs_are_answered_or_refused(target):
    if target == "request":
        pytest.importorskip("fastapi")
        pytest.importorskip("prometheus_client")
    try:
        found = fuzzing.run(target, 60, seed=1)
    finally:
        planner.set_batch_invariant(False)
    assert found["wrong"] == []
    assert sum(found["results"].values()) == 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("target", "number"), [("recipe", 714), ("recipe", 6352), ("request", 2192), ("request", 2916)]
)
def test_what_the_whole_search_once_found(target, number):
    if target == "request":
        pytest.importorskip("fastapi")
        pytest.importorskip("prometheus_client")
    try:
        assert fuzzing.run(target, 1, seed=0, first=number)["wrong"] == []
    finally:
        planner.set_batch_invariant(False)


def test_the_search_can_find(monkeypatch):
    def broken(corpus, draw):
        if draw.random() < 0.5:
            raise KeyError("not ours")
        raise ConvlensError("ours")

    monkeypatch.setitem(fuzzing.TARGETS, "idx", broken)
    found = fuzzing.run("idx", 20, seed=0)
    assert 0 < len(found["wrong"]) < 20
    assert "KeyError" in found["wrong"][0]
    assert found["results"]["ConvlensError"] == 20 - len(found["wrong"])
