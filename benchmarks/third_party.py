"""`convlens.accelerate` on networks written by others, with random weights, judged against double precision.

    python benchmarks/third_party.py                        # every family that is installed
    python benchmarks/third_party.py --only timm/resnet     # names containing a word; several by commas
    python benchmarks/third_party.py --out results.json     # adds to what the file holds

Float32 results of a deep network differ from any other float32 results, so neither torch's nor ours is the truth:
the network in double precision is. An error is the L2 distance from it relative to the tensor's own size, the largest
over all outputs, or over the gradients of the inputs and every parameter. torch's error is the largest of its own three ways to
compute float32: contiguous, channels_last, and without oneDNN. Ours may be as many times that as the planner's
precision class allows a kernel (``exact`` 2, ``high`` 16), and twice that, since a ReLU that is nearly a tie falls
either way. The results hold both errors and their ratio.

For each network also: state_dict keys, a deepcopy, train mode, and `restore`, after which the classes must be the
old ones. Families that are not installed are listed as skipped. Exit status 1 if a network fails.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

import convlens
from convlens import planner

CLASSES = {"exact": 2.0, "high": 16.0}
"""Error of a kernel in units of a direct sum's, by the planner's precision class."""
NOISE = 2e-7
"""Errors below one unit in the last place are nobody's."""

Case = tuple[str, Callable[[], torch.nn.Module], dict[str, Any] | tuple[Any, ...]]

TIMM = """
resnet18 resnet26d seresnet18 resnext26ts resnetv2_50 skresnet18 ecaresnet26t resnetaa34d regnetx_002
regnety_002 regnetz_b16 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_050 mnasnet_050 tinynet_e
lcnet_050 efficientnet_lite0 tf_efficientnet_b0 tf_efficientnetv2_b0 efficientnet_es_pruned mixnet_s tf_mixnet_s
fbnetc_100 spnasnet_100 hardcorenas_a ghostnet_050 ghostnetv2_100 repghostnet_050 repvgg_a0 repvit_m0_9
mobileone_s0 densenet121 dla34 dla46_c dpn48b cspresnet50 cspdarknet53 darknet17 vgg11_bn vovnet39a
ese_vovnet19b_dw selecsls42 res2net50_26w_4s res2next50 resnest14d inception_v3 inception_v4 inception_resnet_v2
xception41 legacy_xception convnext_atto convnextv2_atto convmixer_768_32 nf_resnet26 nfnet_f0 dm_nfnet_f0
eca_nfnet_l0 hrnet_w18_small hgnet_tiny hgnetv2_b0 edgenext_xx_small poolformer_s12 poolformerv2_s12 metaformer
caformer_s18 convformer_s18 visformer_tiny coat_lite_tiny levit_128s levit_conv_128s efficientformer_l1
efficientformerv2_s0 fastvit_t8 mobilevit_xxs mobilevitv2_050 vit_tiny_patch16_224 swin_tiny_patch4_window7_224
pvt_v2_b0 tiny_vit_5m_224 starnet_s1 inception_next_atto focalnet_tiny_srf gcvit_xxtiny maxvit_pico_rw_256
coatnet_pico_rw_224 rexnet_100 rexnetr_100 semnasnet_050 bat_resnext26ts botnet26t_256 halonet26t
lambda_resnet26t eca_halonext26ts resnetblur18 nest_tiny twins_svt_small xcit_nano_12_p16_224 shvit_s1 lsnet_t
rdnet_tiny mambaout_femto tresnet_m pnasnet5large nasnetalarge volo_d1_224 davit_tiny resnetv2_50x1_bit
bit_resnext26ts sehalonet33ts gernet_s
""".split()  # noqa: SIM905 - a list of this length is easier to read as words

TORCHVISION = """
alexnet vgg11 squeezenet1_0 squeezenet1_1 resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121
googlenet inception_v3 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0
efficientnet_v2_s regnet_x_400mf regnet_y_400mf convnext_tiny swin_t swin_v2_t vit_b_32 maxvit_t
segmentation.fcn_resnet50 segmentation.deeplabv3_mobilenet_v3_large segmentation.lraspp_mobilenet_v3_large
video.r3d_18 video.mc3_18 video.r2plus1d_18 video.s3d
""".split()  # noqa: SIM905 - a list of this length is easier to read as words


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of torchvision in which every name is an empty class.

    timm imports picture transforms and data sets, which no network uses, from torchvision, whose wheels fit only
    the torch that they were built for.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class Anything(types.ModuleType):
    """See `StandIn`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class Named(type):
    """An empty class whose members are their names, as an enumeration's are."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def load_family(name: str) -> None:
    """Import a family's package, torchvision's stand-in beside it where torchvision itself is absent."""
    stand_in = StandIn()
    needed = name not in ("torchvision", "transformers") and importlib.util.find_spec("torchvision") is None
    if needed:
        sys.meta_path.append(stand_in)
    try:
        importlib.import_module(name)
    finally:
        if needed:
            sys.meta_path.remove(stand_in)
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]


def timm_cases() -> Iterator[Case]:
    import timm

    known = set(timm.list_models())
    for name in TIMM:
        if name not in known:
            continue
        config = timm.models.get_pretrained_cfg(name)
        fixed = (
            config.input_size[-1] if config is not None and getattr(config, "fixed_input_size", False) else None
        )
        side = fixed or (config.min_input_size[-1] if config is not None and config.min_input_size else 96)
        side = max(side, 96) if name.startswith(("inception", "xception", "legacy", "pnas", "nas")) else side
        size = max(side, 64) if fixed is None else fixed

        def make(name: str = name) -> torch.nn.Module:
            return timm.create_model(name, pretrained=False, num_classes=10)

        yield f"timm/{name}", make, (torch.randn(2, 3, size, size),)


def torchvision_cases() -> Iterator[Case]:
    import torchvision

    for name in TORCHVISION:
        home: Any = torchvision.models
        for part in name.split(".")[:-1]:
            home = getattr(home, part)
        builder = getattr(home, name.split(".")[-1])
        options: dict[str, Any] = {"weights": None}
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "aux_logits": False}
        if name.startswith("segmentation"):
            options |= {"weights_backbone": None}
        size = {"inception_v3": 96, "vit_b_32": 224, "maxvit_t": 224, "alexnet": 64}.get(name, 64)
        clip = (14, 224, 224) if "s3d" in name else (4, 64, 64)
        x = torch.randn(1, 3, *clip) if name.startswith("video") else None
        yield (
            f"torchvision/{name}",
            lambda builder=builder, options=options: builder(**options),
            (torch.randn(2, 3, size, size) if x is None else x,),
        )


def transformers_cases() -> Iterator[Case]:
    import transformers as hf

    pixels = {"pixel_values": torch.randn(2, 3, 64, 64)}
    small = {"num_labels": 5}
    vision: dict[str, tuple[str, str, dict[str, Any]]] = {
        "resnet": (
            "ResNetConfig",
            "ResNetForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "embedding_size": 16},
        ),
        "convnext": (
            "ConvNextConfig",
            "ConvNextForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]},
        ),
        "convnextv2": (
            "ConvNextV2Config",
            "ConvNextV2ForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]},
        ),
        "regnet": (
            "RegNetConfig",
            "RegNetForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "groups_width": 16, "embedding_size": 16},
        ),
        "mobilenet_v1": ("MobileNetV1Config", "MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}),
        "mobilenet_v2": ("MobileNetV2Config", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
        "efficientnet": (
            "EfficientNetConfig",
            "EfficientNetForImageClassification",
            {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        ),
        "poolformer": (
            "PoolFormerConfig",
            "PoolFormerForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]},
        ),
        "vit": (
            "ViTConfig",
            "ViTForImageClassification",
            {
                "image_size": 64,
                "hidden_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
            },
        ),
        "segformer": (
            "SegformerConfig",
            "SegformerForSemanticSegmentation",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 32},
        ),
        "bit": (
            "BitConfig",
            "BitForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [64, 64, 128, 128]},
        ),
    }
    for name, (config, model, options) in vision.items():
        if hasattr(hf, config) and hasattr(hf, model):
            yield (
                f"transformers/{name}",
                lambda config=config, model=model, options=options: getattr(hf, model)(
                    getattr(hf, config)(**options, **small)
                ),
                pixels,
            )
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    yield (
        "transformers/wav2vec2",
        lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**audio, conv_dim=[32] * 7, num_conv_pos_embeddings=16)),
        {"input_values": torch.randn(2, 4000)},
    )


def monai_cases() -> Iterator[Case]:
    from monai.networks import nets

    image, volume = (torch.randn(2, 1, 64, 64),), (torch.randn(1, 1, 32, 32, 32),)
    yield "monai/unet2d", lambda: nets.UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=1), image
    yield "monai/unet3d", lambda: nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1), volume
    yield "monai/dynunet", lambda: nets.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]), image
    yield "monai/segresnet", lambda: nets.SegResNet(3, 8, 1, 2), volume
    yield "monai/vnet", lambda: nets.VNet(3, 1, 2), volume
    yield "monai/basicunet", lambda: nets.BasicUNet(2, 1, 2, features=(8, 8, 16, 32, 64, 8)), image
    yield "monai/attentionunet", lambda: nets.AttentionUnet(2, 1, 2, (8, 16, 32), (2, 2)), image
    yield "monai/densenet121", lambda: nets.DenseNet121(2, 1, 3), image
    yield "monai/highresnet", lambda: nets.HighResNet(3, 1, 2), (torch.randn(1, 1, 16, 16, 16),)


def smp_cases() -> Iterator[Case]:
    import segmentation_models_pytorch as smp

    for name in ("Unet", "UnetPlusPlus", "FPN", "PSPNet", "Linknet", "DeepLabV3Plus", "PAN", "MAnet"):
        yield (
            f"smp/{name}",
            lambda name=name: getattr(smp, name)("resnet18", encoder_weights=None, classes=2),
            (torch.randn(2, 3, 128, 128),),
        )


FAMILIES = {
    "timm": timm_cases,
    "torchvision": torchvision_cases,
    "transformers": transformers_cases,
    "monai": monai_cases,
    "segmentation_models_pytorch": smp_cases,
}


def run(model: torch.nn.Module, inputs: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and gradients of every leaf, with one fixed upstream."""
    training = model.training
    model.train().train(training)  # some networks keep intermediate values of eval mode until they train again
    torch.manual_seed(0)
    if isinstance(inputs, dict):
        # transformers' audio models set requires_grad themselves, which only leaves allow
        inputs = {k: v.detach().clone().requires_grad_(k != "input_values") for k, v in inputs.items()}
        leaves = [v for v in inputs.values() if v.requires_grad]
        result = model(**inputs)
    else:
        leaves = [v.detach().clone().requires_grad_() for v in inputs]
        result = model(*leaves)
    outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    total = sum((t * torch.randn(t.shape, generator=generator)).sum() for t in outputs)
    leaves += [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [t.detach() for t in outputs], [g for g in gradients if g is not None]


def distance(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Largest relative L2 distance over a list, each relative to its own size (at least 1e-4 of the largest)."""
    if [t.shape for t in got] != [t.shape for t in want]:
        return float("inf")
    if any(not torch.equal(g.isnan(), w.isnan()) for g, w in zip(got, want, strict=True)):
        return float("inf")
    sizes = [float(w.nan_to_num().double().norm()) for w in want]
    least = 1e-4 * max(sizes, default=0.0) or 1.0
    apart = [float((g.double() - w.double()).nan_to_num().norm()) for g, w in zip(got, want, strict=True)]
    return max((a / max(size, least) for a, size in zip(apart, sizes, strict=True)), default=0.0)


def doubled(values: Any) -> Any:
    """Floating-point tensors in double precision, tuples and dictionaries of them too."""
    return tree_map(lambda v: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v, values)


def last(values: Any) -> Any:
    """Pictures in channels_last."""
    return tree_map(lambda v: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v, values)


Errors = tuple[float, float]


def torchs_errors(model: torch.nn.Module, inputs: Any, truth: tuple[list[torch.Tensor], ...]) -> dict[str, Errors]:
    """How far torch's own float32 outputs and gradients lie from double precision, way by way."""

    def error(way: torch.nn.Module, values: Any) -> Errors:
        outputs, gradients = run(way, values)
        return distance(outputs, truth[0]), distance(gradients, truth[1])

    found = {"contiguous": error(model, inputs)}
    with torch.backends.mkldnn.flags(enabled=False):
        found["without oneDNN"] = error(model, inputs)
    with contextlib.suppress(RuntimeError):  # code that views its tensors as contiguous ones
        found["channels_last"] = error(copy.deepcopy(model).to(memory_format=torch.channels_last), last(inputs))
    return found


def check(make: Callable[[], torch.nn.Module], inputs: Any) -> dict[str, Any]:
    """One network through everything; raises AssertionError with the reason."""
    torch.manual_seed(0)
    model = make().eval()
    keys = list(model.state_dict())
    classes = [type(m) for m in model.modules()]
    truth = run(copy.deepcopy(model).double(), doubled(inputs))
    ways = torchs_errors(model, inputs, truth)
    known = set(planner.used())
    convlens.accelerate(model, report=False)
    rows = convlens.layers.acceleration_of(model)
    count = {action: sum(row.action == action for row in rows) for action in ("replaced", "redirected", "left")}
    assert list(model.state_dict()) == keys, "state_dict keys changed"
    outputs, gradients = run(model, inputs)
    ours = distance(outputs, truth[0]), distance(gradients, truth[1])
    theirs = tuple(max(errors) for errors in zip(*ways.values(), strict=True))
    ratios = [mine / max(his, NOISE) for mine, his in zip(ours, theirs, strict=True)]
    kernels = collections.Counter(kernel for problem, kernel in planner.used().items() if problem not in known)
    found = {
        "output_error": ours[0],
        "gradient_error": ours[1],
        "torch_output_error": theirs[0],
        "torch_gradient_error": theirs[1],
        "output_ratio": round(ratios[0], 2),
        "gradient_ratio": round(ratios[1], 2),
        "torch": {way: list(errors) for way, errors in ways.items()},
        "kernels": dict(kernels),
        **count,
    }
    allowed = 2 * CLASSES[convlens.get_precision()]
    assert max(ratios) <= allowed, f"errors {ours} are not within {allowed} times torch's {theirs}: {found}"
    twin_outputs, _ = run(copy.deepcopy(model), inputs)
    assert distance(twin_outputs, truth[0]) <= allowed * max(theirs[0], NOISE), "a deepcopy differs"
    model.train()
    run(model, inputs)
    model.eval()
    convlens.restore(model)
    assert [type(m) for m in model.modules()] == classes, "restore left other classes"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check every network; print a line each and the total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names containing this, or one of these parted by commas")
    parser.add_argument("--every", type=int, default=1, help="every n-th network of those")
    parser.add_argument("--out", type=Path, help="add the results to this JSON file")
    parser.add_argument("--precision", choices=list(CLASSES), default="high", help="the planner's error class")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    convlens.set_precision(options.precision)
    words = options.only.split(",")
    results: dict[str, Any] = {}
    for family, cases in FAMILIES.items():
        try:
            load_family(family)
        except Exception as error:
            print(f"skipped {family}: {type(error).__name__}: {error}"[:150], flush=True)
            continue
        chosen = [case for case in cases() if any(word in case[0] for word in words)]
        for name, make, inputs in chosen[:: options.every]:
            began = time.perf_counter()
            try:
                results[name] = {"passed": True, **check(make, inputs)}
            except Exception as error:
                results[name] = {"passed": False, "reason": f"{type(error).__name__}: {error}"[:300]}
            seconds = time.perf_counter() - began
            print(f"{name:45s} {seconds:5.1f} s  {results[name]}", flush=True)
            if options.out:
                write(options.out, options.precision, results)
            gc.collect()
    passed = sum(result["passed"] for result in results.values())
    print(f"{passed} of {len(results)} networks pass (torch {torch.__version__})")
    return 0 if passed == len(results) else 1


def write(path: Path, precision: str, results: dict[str, Any]) -> None:
    """Add the results to the file."""
    held = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    held.update(results)
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "passed": sum(result["passed"] for result in held.values()),
        "networks": len(held),
    }
    path.write_text(json.dumps({**head, "results": dict(sorted(held.items()))}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
