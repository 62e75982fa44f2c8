"""The split: stratified, by content, stable under added files, groups whole; statistics; balance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.data.balance import balanced_order
from convlens.data.splits import FREE, content_digests, default_fractions, split_samples
from convlens.data.statistics import channel_statistics
from convlens.errors import DataError


def digests(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)


def part_of(splits: dict[str, np.ndarray], count: int) -> np.ndarray:
    side = np.full(count, -1)
    for number, name in enumerate(("train", "dev", "test")):
        side[splits[name]] = number
    return side


def test_fractions_of_small_and_large_data() -> None:
    assert default_fractions(500) == (0.6, 0.2, 0.2)
    assert default_fractions(2_000_000) == (0.98, 0.01, 0.01)
    sizes = [100, 20_000, 200_000, 2_000_000]
    assert sorted(default_fractions(n)[0] for n in sizes) == [default_fractions(n)[0] for n in sizes]


@settings(max_examples=40, deadline=None)
@given(per_class=st.lists(st.integers(1, 400), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_every_sample_in_one_part_and_every_class_near_its_quota(per_class: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    splits, _ = split_samples(labels, digests(len(labels), seed), fractions=(0.6, 0.2, 0.2))
    assert (np.sort(np.concatenate(list(splits.values()))) == np.arange(len(labels))).all()
    for label, size in enumerate(per_class):
        for part in ("dev", "test"):
            have = int((labels[splits[part]] == label).sum())
            assert abs(have - 0.2 * size) <= max(1.0, 0.25 * 0.2 * size + 1)
        assert (labels[splits["train"]] == label).any()
        if size >= 3:
            assert (labels[splits["test"]] == label).any()


def test_added_samples_move_none_of_the_old_ones() -> None:
    keys, labels = digests(3000), np.arange(3000) % 2
    before = part_of(split_samples(labels[:2000], keys[:2000])[0], 2000)
    after = part_of(split_samples(labels, keys)[0], 3000)
    np.testing.assert_array_equal(before, after[:2000])


def test_growing_beyond_a_step_only_releases_to_train() -> None:
    keys, labels = digests(12_000), np.arange(12_000) % 2
    before = part_of(split_samples(labels[:8000], keys[:8000])[0], 8000)
    after = part_of(split_samples(labels, keys)[0], 12_000)[:8000]
    assert (after[before == 0] == 0).all()
    assert set(after[before == 2].tolist()) == {0, 2}


def test_equal_contents_stay_together() -> None:
    keys = np.repeat(digests(500), 3, axis=0)
    side = part_of(split_samples(np.arange(1500) % 2, keys)[0], 1500).reshape(500, 3)
    assert (side == side[:, :1]).all()


def test_groups_stay_together_even_when_joined_by_a_duplicate() -> None:
    keys = digests(600)
    groups = [f"patient {n // 6}" for n in range(600)]
    keys[6 * 10] = keys[6 * 11]  # one content in patients 10 and 11
    splits, _ = split_samples(np.arange(600) % 3, keys, group_names=groups)
    side = part_of(splits, 600).reshape(100, 6)
    assert (side == side[:, :1]).all()
    assert side[10, 0] == side[11, 0]
    assert 60 <= len(splits["test"]) <= 180


def test_given_parts_are_respected() -> None:
    given_parts = np.array([0] * 400 + [2] * 100, np.int8)
    splits, rule = split_samples(np.arange(500) % 2, digests(500), given=given_parts)
    np.testing.assert_array_equal(splits["test"], np.arange(400, 500))
    assert 60 <= len(splits["dev"]) <= 100
    assert "dev out of train" in rule
    alone, _ = split_samples(np.arange(500) % 2, digests(500), given=np.full(500, FREE, np.int8))
    assert len(alone["test"])


def test_another_seed_gives_another_split() -> None:
    keys, labels = digests(500), np.arange(500) % 2
    assert not np.array_equal(
        split_samples(labels, keys, seed=1)[0]["test"], split_samples(labels, keys)[0]["test"]
    )


def test_unusual_fractions() -> None:
    splits, _ = split_samples(np.arange(1000) % 2, digests(1000), fractions=(0.05, 0.05, 0.9))
    assert 20 <= len(splits["train"]) <= 90
    assert len(split_samples(np.arange(100) % 2, digests(100), fractions=(1.0, 0.0, 0.0))[0]["train"]) == 100


def test_multi_label_samples_are_split() -> None:
    labels = np.random.default_rng(0).integers(0, 2, (300, 4), np.uint8)
    splits, _ = split_samples(labels, digests(300))
    assert sum(map(len, splits.values())) == 300


def test_folds_test_every_sample_once_and_keep_classes_and_groups_together() -> None:
    labels = np.repeat([0, 1, 2], [53, 53, 17])
    names = [f"group {number // 2}" for number in range(len(labels))]
    tested = []
    for fold in range(1, 11):
        splits, rule = split_samples(
            labels, digests(len(labels)), group_names=names, fractions=(0.8, 0.1, 0.1), fold=(fold, 10)
        )
        side = part_of(splits, len(labels))
        assert (side >= 0).all() and all(len(set(side[n : n + 2])) == 1 for n in range(0, 122, 2))
        assert len(np.unique(labels[splits["train"]])) == 3 and len(splits["dev"]) > 3
        assert 10 <= len(splits["test"]) <= 16 and f"fold {fold} of 10" in rule
        tested.append(splits["test"])
    assert sorted(np.concatenate(tested)) == list(range(len(labels)))


def test_folds_of_a_source_with_its_own_test_part_are_refused() -> None:
    given_side = np.array([0, 0, 0, 2], np.int8)
    with pytest.raises(DataError, match="leave --fold out"):
        split_samples(np.array([0, 1, 0, 1]), digests(4), given=given_side, fold=(1, 2))


def test_content_digests_tell_contents_apart() -> None:
    rows = np.zeros((3, 2, 2), np.uint8)
    rows[1, 0, 0] = 1
    found = content_digests(rows)
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_statistics_are_those_of_numpy(dtype: type) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (50, 3, 5, 4)).astype(dtype)
    chosen = np.arange(0, 50, 3)
    mean, std = channel_statistics(inputs, chosen, 1 / 255)
    expected = inputs[chosen].astype(np.float64) / 255
    np.testing.assert_allclose(mean, expected.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(std, expected.std(axis=(0, 2, 3)), rtol=1e-7)


def test_statistics_far_from_zero_and_constant() -> None:
    far = (1e6 + np.random.default_rng(0).normal(size=(4000, 1, 700))).astype(np.float64)
    _, std = channel_statistics(far, np.arange(4000), 1.0)
    assert std[0] == pytest.approx(far.std(), rel=1e-4)
    assert channel_statistics(np.full((5, 1, 3), 9, np.uint8), np.arange(5), 1.0) == ((9.0,), (1.0,))
    assert channel_statistics(np.full((5, 1, 3), 9, np.uint8), np.arange(0), 1.0) == ((0.0,), (1.0,))


def test_balanced_order_meets_classes_equally_and_every_sample_in_time() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    orders = [balanced_order(labels, 3, epoch) for epoch in range(4)]
    for order in orders:
        assert np.bincount(labels[order]).tolist() in ([34, 33, 33], [33, 34, 33], [33, 33, 34])
    assert len(set(np.concatenate(orders).tolist())) == 100
    np.testing.assert_array_equal(orders[2], balanced_order(labels, 3, 2))
    assert not np.array_equal(orders[2], balanced_order(labels, 4, 2))
