"""accelerate on networks that others wrote, where installed; benchmarks/third_party.py has them all."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW = {
    "timm": ("timm/regnetx_002", "timm/resnetv2_50x1_bit", "timm/ghostnet_050"),
    "torchvision": (
        "torchvision/squeezenet1_1",
        "torchvision/mobilenet_v3_small",
        "torchvision/shufflenet_v2_x0_5",
    ),
    "monai": ("monai/unet2d",),
    "segmentation_models_pytorch": ("smp/Unet",),
}


@pytest.fixture(scope="module")
def third_party():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("third_party")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), [(lib, name) for lib, names in FEW.items() for name in names])
def test_outputs_and_gradients_stay(third_party, library, name):
    try:
        third_party.load_family(library)
    except Exception as error:  # torchvision without its compiled part raises more than ImportError
        pytest.skip(f"{library} cannot be imported: {error}")
    (case,) = [case for case in third_party.FAMILIES[library]() if case[0] == name]
    third_party.check(*case[1:])


def test_the_comparison_can_fail(third_party):
    import torch

    a = [torch.ones(3)]
    assert third_party.distance(a, a) == 0
    assert third_party.distance([torch.full((3,), 1.1)], a) == pytest.approx(0.1, rel=1e-3)
    assert third_party.distance([torch.ones(2)], a) == float("inf")
    assert third_party.distance([torch.tensor([1.0, float("nan"), 1.0])], a) == float("inf")
