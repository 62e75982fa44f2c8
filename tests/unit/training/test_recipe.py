"""`Recipe`: errors that name what is accepted, files that read back equal."""

import tomllib

import pytest

from convlens.errors import RecipeError
from convlens.training.recipe import Recipe, read_recipe, seconds_of, shipped_recipes, write_recipe
from convlens.training.toml import dump_toml


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"learning_rat": 1}, "unknown setting 'learning_rat'. Did you mean 'learning_rate'?"),
        ({"zzz": 1}, "Settings are: "),
        ({"learning_rate": -1}, "learning_rate: expected greater than 0, received -1."),
        ({"learning_rate": float("nan")}, "learning_rate: expected"),
        (
            {"optimizer": "adam"},
            "optimizer: expected one of sgd, rmsprop, adamw, muon, received 'adam'. Did you mean 'adamw'?",
        ),
        ({"device": "gpu"}, "device: expected one of auto, cpu, cuda, cuda:N, mps, received 'gpu'."),
        ({"epochs": "many"}, "epochs: expected a valid integer"),
        ({"epochs": 0}, "epochs: expected greater than or equal to 1, received 0."),
        ({"time_budget": "soon"}, "time_budget: expected a duration such as 90s, 5m or 1h30m, received 'soon'."),
        ({"optimizer": "sgd", "momentum": 0}, "nesterov: expected momentum > 0 with it, received momentum 0."),
        ({"data_options": {"fitt": "crop"}}, "unknown setting 'data_options.fitt'. Did you mean 'fit'?"),
        (
            {"data_options": {"fit": "croop"}},
            "data_options.fit: expected one of crop, pad, stretch, received 'croop'.",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_is_accepted(settings, text):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_settings(settings)
    assert text in str(caught.value)


def test_two_problems_are_both_named():
    with pytest.raises(RecipeError, match=r"epochs.*momentum"):
        Recipe.from_settings({"epochs": 0, "momentum": 2})


def test_a_recipe_file_reads_back_equal(tmp_path):
    recipe = Recipe(
        data='odd "path"\\ü',
        epochs=3,
        learning_rate=1e-5,
        nesterov=False,
        model_options={"a b": 1, "c": "x\x7f\n"},
        data_options={"size": (32, 24), "split": (0.5, 0.25, 0.25)},
    )
    file = tmp_path / "recipe.toml"
    file.write_text(write_recipe(recipe), encoding="utf-8")
    assert Recipe.from_settings(read_recipe(file)) == recipe


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"epochs = [", "not a TOML file"), (b"\xff\xfe", "cannot be read"), (b"epochs = 0", "epochs: expected")],
)
def test_a_bad_recipe_file_is_named(tmp_path, content, text):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=text) as caught:
        read_recipe(file)
    assert str(file) in str(caught.value)


def test_a_missing_recipe_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5m", 90), ("2h", 7200)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "5x", "m", "-3s", "1m1h"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        seconds_of(text)


def test_defaults_depend_on_the_optimizer():
    assert Recipe(optimizer="sgd").peak_learning_rate == 0.05
    assert Recipe(optimizer="sgd").weight_decay_in_use == 0.0005
    assert Recipe(optimizer="sgd", learning_rate=0.2, weight_decay=0).peak_learning_rate == 0.2
    assert Recipe(optimizer="sgd", weight_decay=0).weight_decay_in_use == 0


def test_toml_leaves_none_out():
    assert tomllib.loads(dump_toml({"a": None, "b": {"c": None, "d": [1, "x"]}, "e": {}})) == {
        "b": {"d": [1, "x"]}
    }


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipes_that_come_along_are_whole_and_say_what_they_reach(name):
    settings = read_recipe(name)
    assert Recipe.from_settings(settings).data is None and settings == read_recipe(shipped_recipes()[name])
    head = shipped_recipes()[name].read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines()) and "%" in head


def test_a_recipe_that_does_not_come_along_is_answered_with_those_that_do():
    with pytest.raises(RecipeError, match="promoters"):
        read_recipe("promotors")
