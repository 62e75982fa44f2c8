"""The learning-rate finder: finds the edge of a known problem, leaves network and random state alone."""

import pytest
import torch

from convlens.errors import TrainingError
from convlens.models import create
from convlens.training import Recipe, train
from convlens.training import rate_finder as rate_finder_module
from convlens.training.batches import BatchSource
from convlens.training.rate_finder import find_learning_rate


def test_the_advised_rate_trains_and_nothing_else_changed(small_digits):
    torch.manual_seed(0)
    network = create("lenet5", 1, 10, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    recipe = Recipe(batch_size=16, optimizer="sgd")
    found = find_learning_rate(recipe, network, BatchSource(small_digits, ("train",), torch.device("cpu")))
    assert 1e-4 < found.advised < 1
    assert list(found.rates) == sorted(found.rates)
    assert min(found.losses) < 0.8 * found.losses[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_loss_that_never_falls_gives_no_advice(small_digits, monkeypatch):
    monkeypatch.setattr(rate_finder_module, "LOWEST", 1e3)
    monkeypatch.setattr(rate_finder_module, "HIGHEST", 1e6)
    source = BatchSource(small_digits, ("train",), torch.device("cpu"))
    with pytest.raises(TrainingError, match="never fell"):
        find_learning_rate(Recipe(batch_size=16, optimizer="sgd"), create("lenet5", 1, 10, 16), source)


def test_the_found_rate_is_written_to_the_recipe(recipe, tmp_path):
    result = train(recipe.with_settings(find_rate=True), tmp_path / "run")
    assert result.recipe.learning_rate is not None
    assert result.run.recipe.learning_rate == result.recipe.learning_rate
    assert not result.run.recipe.find_rate
