"""Blocks against their composition: what is measured, what is remembered, what is chosen."""

import pytest

from convlens.planner import COMPOSED, COMPOSED_BY_VENDOR, fastest_block, fused, settings
from convlens.planner.store import Store
from convlens.planner.timing import Timing
from convlens.window import ConvProblem, Epilogue

PROBLEM = ConvProblem(
    "forward", 4, 1, (12, 12), 6, (5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), epilogue=Epilogue(True, "relu", 2)
)


@pytest.mark.parametrize(
    "times, chosen, measured",
    [
        ({"block": 10, COMPOSED_BY_VENDOR: 16, COMPOSED: 5}, "block", [{"block", COMPOSED_BY_VENDOR}]),
        (
            {"block": 10, COMPOSED_BY_VENDOR: 14, COMPOSED: 5},
            COMPOSED,
            [{"block", COMPOSED_BY_VENDOR}, {"block", COMPOSED}],
        ),
        (
            {"block": 10, COMPOSED_BY_VENDOR: 8, COMPOSED: 12},
            "block",
            [{"block", COMPOSED_BY_VENDOR}, {"block", COMPOSED}],
        ),
        ({"block": 10, COMPOSED: 5}, COMPOSED, [{"block", COMPOSED}]),
    ],
    ids=["beyond doubt", "in doubt", "the vendor's alone is never chosen", "no vendor's"],
)
def test_a_composition_is_planned_only_where_it_may_win(times, chosen, measured, tmp_path, monkeypatch):
    seen = []

    def interleaved(calls, **options):
        seen.append(set(calls))
        return {name: Timing(times[name], times[name], times[name], 5) for name in calls}

    monkeypatch.setattr(fused, "interleaved", interleaved)
    store = Store(tmp_path / "plans.sqlite")
    ways = dict.fromkeys(times, lambda: None)
    monkeypatch.setattr(settings, "_current", settings.Settings())
    assert fastest_block(PROBLEM, lambda problem: ways, store=store) == chosen
    assert seen == measured
    assert fastest_block(PROBLEM, lambda problem: ways, store=store) == chosen
    assert seen == measured  # the second answer was remembered
