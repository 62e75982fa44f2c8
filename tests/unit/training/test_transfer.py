"""Transfer: what is loaded, adapted and fresh; frozen layers keep every bit; rates by layer."""

import dataclasses

import pytest
import torch
from torch import nn

from convlens.errors import RecipeError
from convlens.modelfile.card import read_model
from convlens.models import create
from convlens.training import Interrupted, Recipe, session, train
from convlens.training.optimizers import build_optimizer
from convlens.training.transfer import Freezing, layers_of, load_initial
from convlens.training.verify import verify_resume


@pytest.fixture
def trained(recipe, tmp_path):
    return train(recipe, tmp_path / "source").run.path


@pytest.fixture
def other_classes(small_digits, monkeypatch):
    """The same pictures with the two classes even and odd."""
    even = dataclasses.replace(small_digits, labels=small_digits.labels % 2, class_names=("even", "odd"))
    monkeypatch.setattr(session.data, "open", lambda source, options=None: even)
    return even


def test_same_names_and_shapes_are_loaded_the_rest_stays_fresh(trained):
    network = create("lenet5", 1, 2, 16)
    found = load_initial(network, trained)
    assert found.initialised == ("classifier.output.weight", "classifier.output.bias")
    assert set(found.unused) == set(found.initialised)
    state, _ = read_model(trained)
    assert all(torch.equal(network.state_dict()[name], state[name]) for name in found.loaded)
    assert str(found).startswith("loaded 8 tensors; fresh: classifier.output.weight")


def test_another_number_of_channels_keeps_the_sums_of_grey_pictures(trained):
    grey, colour = create("lenet5", 1, 10, 16), create("lenet5", 3, 10, 16)
    load_initial(grey, trained)
    assert load_initial(colour, trained).adapted == ("features.conv1.weight",)
    picture = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(
        colour.eval()(picture.expand(2, 3, 16, 16)), grey.eval()(picture), rtol=1e-4, atol=1e-5
    )


def test_a_net_that_fits_nowhere(trained):
    with pytest.raises(RecipeError, match="nothing in .* fits this network"):
        load_initial(nn.Sequential(nn.Linear(2, 2)), trained)


@pytest.mark.parametrize(("which", "moving"), [("head", 1), ("last:2", 2), ("all", 5)])
def test_only_the_chosen_layers_change(recipe, trained, tmp_path, other_classes, which, moving):
    result = train(recipe.with_settings(init=str(trained), train_layers=which, ema=0.5), tmp_path / "run")
    before, after = read_model(trained)[0], read_model(result.run.path)[0]
    layers = [name for name, _ in layers_of(create("lenet5", 1, 2, 16))]
    same = [name for name in layers if before[f"{name}.weight"].equal(after[f"{name}.weight"])]
    assert same == layers[: len(layers) - moving]


def test_gradual_unfreezing_and_its_resume(recipe, trained, tmp_path, other_classes, monkeypatch):
    from unit.training.test_resume import StopAt

    gradual = recipe.with_settings(
        init=str(trained), train_layers="head", unfreeze_epochs=1, epochs=3, layer_decay=0.5
    )
    whole = train(gradual, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        train(gradual, tmp_path / "run", events=StopAt(patch, 8))
    train(gradual, tmp_path / "run", resume=True)
    first, second = read_model(whole.run.path)[0], read_model(tmp_path / "run")[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert verify_resume(whole.run.path).identical


def test_which_layers_train_when():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    freezing = Freezing(network, "head", unfreeze_epochs=2)
    trained = []
    for epoch in range(6):
        freezing.apply(epoch)
        trained.append([name for name, parameter in network.named_parameters() if parameter.requires_grad])
    assert [sorted({name[0] for name in names}) for names in trained] == [["4"]] * 2 + [["3", "4"]] * 2 + [
        ["0", "1", "3", "4"]
    ] * 2
    assert len(freezing.ever_trained()) == 8
    assert network[1].training
    Freezing(network, "last:2").apply(0)
    assert not network[1].training
    with pytest.raises(RecipeError, match="at most last:3"):
        Freezing(network, "last:4")


def test_earlier_layers_get_smaller_rates():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = build_optimizer(Recipe(layer_decay=0.1), list(network.parameters()))
    scales = [group["rate_scale"] for group in optimizer.param_groups]
    assert scales == pytest.approx([0.01, 0.01, 0.1, 0.1, 1, 1])


def test_impossible_layers_are_named():
    with pytest.raises(RecipeError, match="train_layers: expected one of all, head, last:N, received 'tail'"):
        Recipe.from_settings({"train_layers": "tail"})
