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
