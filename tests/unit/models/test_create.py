"""The register: names, arguments, refusals."""

import json

import pytest
import torch

from convlens import models
from convlens.errors import ArgumentError, ShapeError


def test_names_are_sorted_and_unique():
    assert models.names() == sorted(set(models.names()))
    assert {"lenet5", "lenet5-1998", "net39"} <= set(models.names())


@pytest.mark.parametrize("name", models.names())
def test_every_name_builds_with_its_defaults_and_gives_logits(name):
    entry = models.info(name)
    with torch.device("meta"):
        logits = models.create(name).eval()(torch.empty(2, entry.in_channels, *entry.input_size))
    assert logits.shape == (2, entry.num_classes)


@pytest.mark.parametrize("name", models.names())
def test_every_name_takes_many_bands_and_few_classes_and_is_built_again_by_its_config(name):
    with torch.device("meta"):
        network = models.create(name, in_channels=17, num_classes=3).eval()
        logits = network(torch.empty(2, 17, *models.info(name).input_size))
        assert logits.shape == (2, 3)
        again = models.create(**json.loads(json.dumps(network.config)))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}


@pytest.mark.parametrize("name", models.names())
def test_smallest_legal_size_runs_and_one_less_is_refused(name):
    ndim = models.info(name).ndim
    with torch.device("meta"):
        smallest = models.smallest_size(name)
        network = models.create(name, input_size=smallest).eval()
        assert network.features(torch.empty(1, network.in_channels, *smallest)).numel() > 0
        for axis in range(ndim):
            if smallest[axis] > 1:
                size = tuple(n - (i == axis) for i, n in enumerate(smallest))
                with pytest.raises(ShapeError, match="input_size: expected a spatial size of .* or more"):
                    models.create(name, input_size=size)


def test_spelling_of_names_does_not_matter():
    assert models.info("LeNet_5").name == "lenet5"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ArgumentError, match="did you mean 'lenet5'"):
        models.create("lenet6")


def test_an_unknown_option_is_refused_with_the_accepted_ones():
    with pytest.raises(ArgumentError, match=r"options of lenet5-1998 \(output\)"):
        models.create("lenet5-1998", depth=3)


@pytest.mark.parametrize("argument", ["in_channels", "num_classes"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_counts_must_be_whole_and_positive(argument, value):
    with pytest.raises(ArgumentError, match=argument):
        models.create("lenet5", **{argument: value})


def test_input_size_must_have_the_axes_of_the_net():
    with pytest.raises(ShapeError, match="each of the 2 axes.*c3d-small"):
        models.create("lenet5", input_size=(28, 28, 28))


def test_the_wrong_number_of_channels_axes_or_pixels_is_a_shape_error():
    network = models.create("lenet5")
    with pytest.raises(ShapeError, match="expected 1 channels"):
        network(torch.zeros(1, 3, 28, 28))
    with pytest.raises(ShapeError, match="4 axes"):
        network(torch.zeros(28, 28))
    with pytest.raises(ShapeError, match="28×28 it was built for"):
        network(torch.zeros(1, 1, 32, 32))
