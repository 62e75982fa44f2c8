"""The search: spaces, methods, going on after a kill, noise, and a test part that stays closed."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("optuna", reason="needs optuna: pip install 'convlens[tune]'")

from convlens.errors import RecipeError, TrainingError
from convlens.training import read_recipe, session
from convlens.training import search as search_module
from convlens.training.search import Range, SearchResult, parse_space, search

SPACE = {"learning_rate": Range(low=1e-3, high=1e-1, log=True), "batch_size": Range(choices=(16, 32))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning-rate=0.001:0.1:log", Range(low=0.001, high=0.1, log=True)),
        ("epochs=2:5", Range(low=2, high=5, whole=True)),
        ("optimizer=sgd,adamw", Range(choices=("sgd", "adamw"))),
        ("nesterov=true,false", Range(choices=(True, False))),
    ],
)
def test_spaces_as_text(text, expected):
    assert list(parse_space([text]).values()) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate",
        "learning_rate=1:0.1",
        "learning_rate=0:1:log",
        "learning_rate=a:b",
        "epochs=1:2:3",
        "x=1,2",
        "optimizer=sgd,adam",
        "dropout=0.5:2",
    ],
)
def test_impossible_spaces_are_named(text):
    with pytest.raises(RecipeError, match=r"--search"):
        parse_space([text])


def test_grid_values():
    np.testing.assert_allclose(Range(low=1, high=1000, log=True).grid(), [1, 10, 100, 1000])
    assert Range(low=1, high=2, whole=True).grid() == [1, 2]


@pytest.mark.parametrize("method", ["tpe", "random", "grid", "coarse-to-fine"])
def test_every_method_finds_settings(recipe, tmp_path, method):
    found = search(recipe.with_settings(epochs=1), tmp_path, space=SPACE, trials=9, method=method, seeds=0)
    assert len(found.trials) + found.pruned == (8 if method == "grid" else 9)
    assert found.dev_accuracy == max(trial["dev_accuracy"] for trial in found.trials)
    assert 0 < found.baseline < 1
    assert found.noise is None
    best = read_recipe(tmp_path / "best.toml")
    assert {name: best[name] for name in found.best} == dict(found.best)


def test_a_killed_search_goes_on(recipe, tmp_path, monkeypatch):
    original, calls = search_module._train_once, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(search_module, "_train_once", dies)
    with pytest.raises(KeyboardInterrupt):
        search(recipe.with_settings(epochs=1), tmp_path, space=SPACE, trials=5, seeds=0)
    found = search(recipe.with_settings(epochs=1), tmp_path, space=SPACE, trials=5, seeds=0)
    assert len(calls) == 6
    assert len(found.trials) == 4


def test_the_test_part_stays_closed(recipe, tmp_path, monkeypatch, small_digits):
    poisoned = np.array(small_digits.inputs)
    poisoned[small_digits.splits["test"]] = 255
    other = dataclasses.replace(small_digits, inputs=poisoned)
    first = search(recipe.with_settings(epochs=1), tmp_path / "a", space=SPACE, trials=2, seeds=0)
    monkeypatch.setattr(session.data, "open", lambda source, options=None: other)
    second = search(recipe.with_settings(epochs=1), tmp_path / "b", space=SPACE, trials=2, seeds=0)
    assert first.trials == second.trials


def test_noise_tells_a_gain_from_luck(recipe, tmp_path):
    found = search(recipe.with_settings(epochs=1), tmp_path, space=SPACE, trials=1, seeds=2)
    assert len(found.seeds) == 2
    assert found.noise >= 0
    clear = SearchResult(tmp_path, {}, 0.9, 0.5, (0.9, 0.91, 0.89), (), 0, {})
    assert clear.is_gain
    assert not dataclasses.replace(clear, baseline=0.89).is_gain
    assert dataclasses.replace(clear, seeds=(0.9,)).is_gain is None


def test_data_without_a_dev_part(recipe, tmp_path, monkeypatch, small_digits):
    splits = {**small_digits.splits, "dev": small_digits.splits["dev"][:0]}
    monkeypatch.setattr(
        session.data, "open", lambda source, options=None: dataclasses.replace(small_digits, splits=splits)
    )
    with pytest.raises(TrainingError, match="needs a dev part"):
        search(recipe, tmp_path)
