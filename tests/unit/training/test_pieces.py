"""The pieces of the loop: schedules, optimizers, batches, machine, divergence, evaluation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from convlens.errors import DeviceError, TrainingError
from convlens.training import Recipe, train
from convlens.training.batches import BatchSource, epoch_order
from convlens.training.divergence import explain_divergence, has_diverged
from convlens.training.evaluation import count_correct, loss_of, score
from convlens.training.machine import choose_machine, device_of
from convlens.training.optimizers import DirectStep, WeightAverage, build_optimizer, limit_norms
from convlens.training.regularise import add_dropout, head_of
from convlens.training.schedule import learning_rate_factor

CPU = torch.device("cpu")
_PLAIN_SGD = {"optimizer": "sgd", "momentum": 0, "nesterov": False}


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"schedule": "constant"}, {0: 1, 0.5: 1, 1: 1}),
        ({"schedule": "cosine"}, {0: 1, 0.5: 0.5, 1: 0}),
        ({"schedule": "exponential", "decay": 0.01}, {0: 1, 0.5: 0.1, 1: 0.01}),
        ({"schedule": "one-cycle"}, {0: 0.1, 0.25: 1, 1: 0.001}),
        ({"schedule": "step", "decay": 0.5, "decay_epochs": 4}, {0: 1, 0.39: 1, 0.4: 0.5, 0.8: 0.25}),
        ({"schedule": "constant", "warmup_epochs": 5}, {0: 0, 0.25: 0.5, 0.5: 1, 1: 1}),
    ],
)
def test_schedules(settings, points):
    recipe = Recipe(**settings)
    for progress, factor in points.items():
        assert learning_rate_factor(recipe, progress, 10 * progress) == pytest.approx(factor, abs=1e-12)


def test_schedules_stay_within_the_peak():
    for schedule in ("constant", "step", "exponential", "cosine", "one-cycle"):
        recipe = Recipe(schedule=schedule, warmup_epochs=1)
        factors = [learning_rate_factor(recipe, i / 200, i / 20) for i in range(-5, 230)]
        assert all(0 <= factor <= 1 for factor in factors[5:])


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"optimizer": "sgd"}, torch.optim.SGD),
        ({"optimizer": "sgd", "momentum": 0, "nesterov": False}, torch.optim.SGD),
        ({"optimizer": "rmsprop"}, torch.optim.RMSprop),
        ({"optimizer": "adamw", "weight_decay": 0.5}, torch.optim.AdamW),
    ],
)
def test_optimizers_decay_matrices_only(settings, kind):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = build_optimizer(
        Recipe(**settings), [p for p in network.parameters() if p is not network[2].weight]
    )
    assert isinstance(optimizer, kind)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p.dim() > 1 for p in decayed)
    assert len(trained) == 5


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "rmsprop"}, _PLAIN_SGD],
)
def test_a_direct_step_has_the_bits_of_the_optimizer_s_own(settings):
    def weights(direct: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = build_optimizer(Recipe(**settings), list(network.parameters()))
        update = DirectStep(optimizer)
        for number in range(8):
            optimizer.zero_grad()
            network[number // 7](torch.randn(5, 3 + number // 7)).square().sum().backward()
            if number < 6:  # afterwards some gradients are missing
                network[1](torch.randn(5, 4)).square().sum().backward()
            if number == 3:  # new tensors of state, as after a resume
                optimizer.load_state_dict(optimizer.state_dict())
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (number + 1)
            update.take() if direct else optimizer.step()
        return [*network.parameters(), *(v for state in optimizer.state.values() for v in state.values())]

    for ours, theirs in zip(weights(True), weights(False), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_a_direct_step_calls_hooks():
    parameter = nn.Parameter(torch.ones(3))
    optimizer, calls = torch.optim.AdamW([parameter], fused=True), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    update = DirectStep(optimizer)
    for _ in range(3):
        parameter.grad = torch.ones(3)
        update.take()
    assert len(calls) == 3


def test_limited_norms():
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    bias = torch.tensor([9.0])
    limit_norms([weight, bias], 1.0)
    torch.testing.assert_close(weight, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert bias.item() == 9


def test_weight_average_is_the_exponential_mean():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = WeightAverage(layer.parameters(), decay=0.5)
    expected = 0.0
    for update in range(1, 6):
        with torch.no_grad():
            layer.weight.fill_(float(update))
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    average.swap()
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 2), expected))
    average.swap()
    assert layer.weight.detach().unique().item() == 5


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(small_digits):
    source = BatchSource(small_digits, ("train",), CPU)
    batches = [labels for _, labels in source.shuffled(10, seed=3, epoch=1)]
    assert [len(batch) for batch in batches] == [10] * 9 + [6]
    assert torch.equal(torch.cat(batches), source.labels[epoch_order(96, 3, 1)])
    assert not torch.equal(epoch_order(96, 3, 1), epoch_order(96, 3, 2))
    assert not torch.equal(epoch_order(96, 3, 1), epoch_order(96, 4, 1))
    assert torch.equal(epoch_order(96, 2**62, 1), epoch_order(96, 2**62, 1))


def test_an_epoch_can_begin_anywhere(small_digits):
    source = BatchSource(small_digits, ("train",), CPU, channels_last=True)
    whole = list(source.shuffled(7, 0, 0))
    rest = list(source.shuffled(7, 0, 0, first=5))
    assert len(rest) == len(whole) - 5
    for (inputs, labels), (inputs_again, labels_again) in zip(whole[5:], rest, strict=True):
        assert torch.equal(inputs, inputs_again)
        assert torch.equal(labels, labels_again)


@pytest.mark.parametrize(("batch", "steps"), [(96, 1), (95, 1), (19, 5), (94, 2), (200, 1)])
def test_a_last_batch_of_one_is_left_out(small_digits, batch, steps):
    source = BatchSource(small_digits, ("train",), CPU)
    lengths = [len(labels) for _, labels in source.shuffled(batch, 0, 0)]
    assert len(lengths) == source.steps(batch) == steps
    assert 1 not in lengths


def test_batches_are_normalised_as_the_preprocessing_says(small_digits):
    source = BatchSource(small_digits, ("dev", "test"), CPU)
    stored = torch.cat([small_digits.tensors("dev")[0], small_digits.tensors("test")[0]])
    got = torch.cat([inputs for inputs, _ in source.ordered(32)])
    torch.testing.assert_close(got, small_digits.preprocessing.normalise(stored))


def test_multilabel_loss_and_accuracy():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    labels = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    expected = functional.binary_cross_entropy_with_logits(logits, labels.float())
    torch.testing.assert_close(loss_of(logits, labels, multilabel=True), expected)
    torch.testing.assert_close(loss_of(logits, labels, reduction="sum", multilabel=True), 2 * expected)
    assert count_correct(logits, labels, multilabel=True) == 1
    assert loss_of(logits, labels, smoothing=0.2, multilabel=True) > expected


def test_mixed_samples_have_shares_as_targets():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    shares = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    expected = -(shares * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss_of(logits, shares), expected.mean())
    torch.testing.assert_close(loss_of(logits, shares, reduction="sum"), expected.sum())
    assert count_correct(logits, shares) == 1


def test_score_counts_every_sample_and_restores_the_mode(small_digits):
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10)).train()
    source = BatchSource(small_digits, ("dev",), CPU)
    scores = score(network, source, batch_size=7)
    inputs = small_digits.preprocessing.normalise(source.inputs)
    logits = network.eval()(inputs)
    assert scores.samples == 40
    assert scores.loss == pytest.approx(functional.cross_entropy(logits, source.labels).item(), rel=1e-5)
    assert scores.accuracy == (logits.argmax(1) == source.labels).sum().item() / 40


def test_dropout_goes_before_the_head_only_while_training():
    network = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 2))
    assert head_of(network)[0] == "1"
    names = list(network.state_dict())
    add_dropout(network, 0.5)
    assert list(network.state_dict()) == names
    inputs = torch.ones(1, 4)
    assert not torch.equal(network(inputs), network(inputs))
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "mps"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(DeviceError, match=f"received '{device}'"):
        device_of(device)


def test_the_machine_says_why():
    machine = choose_machine(Recipe(device="cpu", precision="bfloat16", threads=torch.get_num_threads()))
    assert machine.reasons == ("device cpu: as asked", "precision bfloat16: as asked")
    assert machine.describe()["precision"] == "bfloat16"
    assert machine.autocast()._enabled


def test_the_layer_that_overflows_is_named():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with torch.no_grad():
        network[1].weight.fill_(3e38)
        network[0].weight.fill_(10)
    text = explain_divergence(network, torch.ones(1, 2), step=7, epoch=2)
    assert "epoch 2, step 7: layer '1' (Linear) gives outputs that are not finite" in text
    assert "the inputs themselves" in explain_divergence(network, torch.full((1, 2), math.nan), 1, 1)
    assert "loss exploded; the largest weights, up to 3e+38, are in '1.weight'" in explain_divergence(
        network, None, 1, 1
    )
    with torch.no_grad():
        network[0].bias[1] = math.nan
    assert "the weights '0.bias' are not finite" in explain_divergence(network, None, 1, 1)


def test_what_counts_as_diverged():
    assert has_diverged(math.nan, 10)
    assert has_diverged(math.inf, 10)
    assert has_diverged(100.0, 10)
    assert not has_diverged(5.0, 10)


def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(recipe, tmp_path):
    wild = recipe.with_settings(optimizer="sgd", learning_rate=100.0, schedule="constant", epochs=20)
    with pytest.raises(TrainingError, match=r"diverged in epoch \d+, step \d+: .*--learning-rate"):
        train(wild, tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_early_stop_and_time_budget_end_a_run_early(recipe, tmp_path):
    stopped = train(recipe.with_settings(epochs=200, early_stop=1, learning_rate=1e-6), tmp_path / "early")
    assert stopped.card.training["epochs"] < 200
    budget = train(recipe.with_settings(epochs=100_000, time_budget="0.3s"), tmp_path / "budget")
    assert budget.card.training["epochs"] < 100_000
    assert budget.test.samples == 40


def test_bfloat16_trains(recipe, tmp_path):
    result = train(recipe.with_settings(precision="bfloat16"), tmp_path / "run")
    assert result.card.training["precision"] == "bfloat16"
    assert math.isfinite(result.test.loss)
