"""Networks written by others, with random weights: family → (name, constructor, inputs). See `third_party.py`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from convlens.bench.stand_in import without_torchvision

__all__ = ["FAMILIES", "Case", "load_family"]

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


def load_family(name: str) -> None:
    """Import a family's package, torchvision's stand-in beside it where torchvision itself is absent."""
    with contextlib.nullcontext() if name in ("torchvision", "transformers") else without_torchvision():
        importlib.import_module(name)


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
            {"depths": [1, 1, 1, 1], "hidden_sizes": [64, 64, 128, 128], "num_groups": 8},
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
