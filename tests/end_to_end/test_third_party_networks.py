"""accelerate on networks that others wrote, where installed; benchmarks/third_party.py has them all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "third_party.py"
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
    spec = importlib.util.spec_from_file_location("third_party", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), [(lib, name) for lib, names in FEW.items() for name in names])
def test_outputs_and_gradients_stay(third_party, library, name):
    try:
        importlib.import_module(library)
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
