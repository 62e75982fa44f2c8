"""Every network against the counts its paper, or its best-known implementation, publishes."""

import pytest
import torch

from convlens import models
from convlens.errors import ArgumentError


def weights(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(name, *arguments, **options):
    with torch.device("meta"):
        return models.create(name, *arguments, **options)


PUBLISHED = [
    ("alexnet", 3, 1000, {}, 60_965_224),
    ("alexnet-2014", 3, 1000, {}, 61_100_840),
    ("convnet-m", 3, 10, {}, 628_290),
    ("convnet-s", 1, 10, {}, 70_330),
    ("convnext-tiny", 3, 1000, {}, 28_589_128),
    ("fcn1d", 1, 2, {}, 264_962),
    ("googlenet", 3, 1000, {}, 6_998_552),
    ("googlenet", 3, 1000, {"auxiliary": True}, 13_378_280),
    ("mobilenet-v1", 3, 1000, {}, 4_231_976),
    ("mobilenet-v2", 3, 1000, {}, 3_504_872),
    ("nin", 3, 1000, {}, 7_595_176),
    ("nin32", 3, 10, {}, 966_986),
    ("resnet18", 3, 1000, {}, 11_689_512),
    ("resnet20", 3, 10, {}, 269_722),
    ("resnet34", 3, 1000, {}, 21_797_672),
    ("resnet3d-18", 3, 400, {}, 33_371_472),
    ("resnet50", 3, 1000, {}, 25_557_032),
    ("resnet50", 3, 1000, {"stride_in": "1x1"}, 25_557_032),
    ("resnet56", 3, 10, {}, 853_018),
    ("vgg11", 3, 1000, {}, 132_863_336),
    ("vgg16", 3, 1000, {}, 138_357_544),
    ("vgg16", 3, 1000, {"batch_norm": True}, 138_365_992),
    ("vgg19", 3, 1000, {}, 143_667_240),
]


@pytest.mark.parametrize("name, channels, classes, options, published", PUBLISHED)
def test_weights_are_the_published_count(name, channels, classes, options, published):
    assert weights(on_meta(name, channels, classes, **options)) == published


def test_a3_alexnets_first_layer_has_34944_weights():
    assert weights(on_meta("alexnet").features[0]) == 34_944


def test_googlenet_gives_auxiliary_logits_only_while_training():
    network = on_meta("googlenet", 3, 7, auxiliary=True)
    picture = torch.empty(2, 3, 64, 64, device="meta")
    outputs = network(picture)
    assert [tuple(part.shape) for part in outputs] == [(2, 7)] * 3
    assert network.eval()(picture).shape == (2, 7)


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet50", {"stride_in": "5x5"}),
        ("resnet18", {"stem": "huge"}),
        ("mobilenet-v1", {"width": 0.0}),
        ("mobilenet-v2", {"width": -1.0}),
        ("convnet-s", {"width": 0.0}),
        ("convnet-m", {"width": -2.0}),
        ("vgg16", {"dropout": 1.5}),
        ("convnext-tiny", {"stochastic_depth": -0.1}),
    ],
)
def test_impossible_options_are_refused_by_name(name, options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        on_meta(name, **options)


def test_small_stem_keeps_the_resolution():
    network = on_meta("resnet18", input_size=32, stem="small")
    assert network.features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 512, 4, 4)
