"""Rounds and blocks of timed calls, by counting them: no clock is asserted on."""

from __future__ import annotations

from convlens.planner.timing import Timing, samples
from convlens.planner.trial import _is_clear


def _counted(log: list[str], name: str):
    return lambda: log.append(name)


def test_calls_are_taken_in_turn():
    log: list[str] = []
    taken = samples({"a": _counted(log, "a"), "b": _counted(log, "b")}, repeats=3, budget_s=10)
    assert log == ["a", "b"] * 4
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}


def test_a_block_repeats_short_calls_and_counts_one_figure_a_round():
    log: list[str] = []
    taken = samples({"a": _counted(log, "a")}, repeats=3, budget_s=10, block_s=1e-4)
    assert len(taken["a"]) == 3
    assert len(log) >= 2 + 3 * 2


def test_engines_with_threads_of_their_own_come_last():
    log: list[str] = []
    samples(
        {"guest": _counted(log, "guest"), "ours": _counted(log, "ours")}, repeats=1, minimum=1, apart={"guest"}
    )
    assert log[:2] == ["ours", "guest"]


def test_a_race_is_clear_beyond_noise_only():
    fast = Timing(100.0, 95.0, 105.0, 5)
    assert _is_clear({"fast": fast, "slow": Timing(150.0, 140.0, 160.0, 5)})
    assert not _is_clear({"fast": fast, "near": Timing(110.0, 106.0, 115.0, 5)})
    assert not _is_clear({"fast": fast, "noisy": Timing(150.0, 100.0, 200.0, 5)})
