"""Residual networks, for pictures large and small, for signals and for volumes.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016; Wang, Yan, Oates: Time series
classification from scratch with deep neural networks, IJCNN 2017; Tran et al.: A closer look at
spatiotemporal convolutions for action recognition, CVPR 2018.
"""

from __future__ import annotations

from torch import Tensor, nn

from convlens import layers
from convlens.errors import ArgumentError
from convlens.models import initialise
from convlens.models.blocks import Residual, conv_norm_relu, global_average
from convlens.models.network import Network

__all__ = ["resnet18", "resnet1d", "resnet20", "resnet34", "resnet3d_18", "resnet50", "resnet56"]


def resnet18(in_channels: int, num_classes: int, input_size: tuple[int, ...], stem: str = "large") -> Network:
    """Two-layer blocks, 2-2-2-2: 11,689,512 weights for 1000 classes, 1.81 G multiply-adds at 224.

    At 224×224: stem 64×56×56, then 64×56×56, 128×28×28, 256×14×14, 512×7×7, global mean, dense.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any; windows are padded, so that even 1×1 passes.
        stem: ``"large"`` (7×7 stride 2, then pooling) as published, or ``"small"`` (3×3) for sides under
            about 64.
    """
    return _resnet((2, 2, 2, 2), in_channels, num_classes, stem)


def resnet34(in_channels: int, num_classes: int, input_size: tuple[int, ...], stem: str = "large") -> Network:
    """Two-layer blocks, 3-4-6-3: 21,797,672 weights for 1000 classes, 3.66 G multiply-adds at 224.

    Arguments as in `resnet18`.
    """
    return _resnet((3, 4, 6, 3), in_channels, num_classes, stem)


def resnet50(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], stem: str = "large", stride_in: str = "3x3"
) -> Network:
    """Three-layer bottlenecks, 3-4-6-3: 25,557,032 weights for 1000 classes, 4.09 G multiply-adds at 224.

    Args:
        in_channels: channels of the input.
        num_classes: length of the output.
        input_size: any.
        stem: as in `resnet18`.
        stride_in: which layer of a bottleneck subsamples: ``"3x3"``, today's way ("1.5": receptive field 427), or
            ``"1x1"``, the paper's (receptive field 483, 3.86 G multiply-adds; it skips 3 pixels of 4).
    """
    if stride_in not in ("3x3", "1x1"):
        raise ArgumentError("stride_in", "'3x3' or '1x1'", repr(stride_in))
    return _resnet((3, 4, 6, 3), in_channels, num_classes, stem, bottleneck=True, stride_in=stride_in)


def resnet3d_18(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """Volumes and video, two-layer blocks of 3×3×3: 33,371,472 weights for 3 channels and 400 classes.

    At 16×112×112: stem (3×7×7, stride 1×2×2) 64×16×56×56, then 64, 128×8×28×28, 256×4×14×14, 512×2×7×7, mean.
    """
    stem = conv_norm_relu(3, in_channels, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3))
    stages = _stages(3, (2, 2, 2, 2), 64)
    return _finish(3, [nn.Sequential(*stem), *stages], 512, in_channels, num_classes)


def resnet20(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """The small-picture net, 3 blocks per stage: 269,722 weights (0.27 M) for 3 channels and 10 classes.

    At 32×32: 16×32×32, 32×16×16, 64×8×8, global mean, dense. Shortcuts have no weights: where a stage begins they
    take every second pixel and add channels of zeros (the paper's option A).
    """
    return _small_picture_resnet(3, in_channels, num_classes)


def resnet56(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """The small-picture net, 9 blocks per stage: 853,018 weights (0.85 M) for 3 channels and 10 classes."""
    return _small_picture_resnet(9, in_channels, num_classes)


def resnet1d(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """Signals: three blocks of windows 8, 5, 3 with 64, 128, 128 channels; the length never changes."""
    blocks: list[nn.Module] = []
    channels = in_channels
    for width in (64, 128, 128):
        body: list[nn.Module] = []
        seen = channels
        for window in (8, 5, 3):
            body += conv_norm_relu(1, seen, width, window, padding="same")
            seen = width
        body.pop()  # the last ReLU comes after the sum
        # The paper's code normalises the shortcut even where the channels already agree.
        match: list[nn.Module] = [layers.Conv1d(channels, width, 1, bias=False)] if channels != width else []
        shortcut = nn.Sequential(*match, nn.BatchNorm1d(width))
        blocks.append(Residual(nn.Sequential(*body), shortcut, nn.ReLU(inplace=True)))
        channels = width
    return _finish(1, blocks, 128, in_channels, num_classes)


def _resnet(
    depths: tuple[int, ...],
    in_channels: int,
    num_classes: int,
    stem: str,
    bottleneck: bool = False,
    stride_in: str = "3x3",
) -> Network:
    if stem not in ("large", "small"):
        raise ArgumentError("stem", "'large' or 'small'", repr(stem))
    large = [*conv_norm_relu(2, in_channels, 64, 7, 2, 3), layers.MaxPool2d(3, 2, 1)]
    first = nn.Sequential(*(large if stem == "large" else conv_norm_relu(2, in_channels, 64, 3, 1, 1)))
    stages = _stages(2, depths, 64, bottleneck, stride_in)
    return _finish(2, [first, *stages], 2048 if bottleneck else 512, in_channels, num_classes)


def _stages(
    ndim: int, depths: tuple[int, ...], channels: int, bottleneck: bool = False, stride_in: str = "3x3"
) -> list[nn.Module]:
    """One ``nn.Sequential`` of blocks per stage; all but the first halve every side and double the width."""
    stages: list[nn.Module] = []
    width = channels
    for stage, depth in enumerate(depths):
        blocks: list[nn.Module] = []
        for place in range(depth):
            stride = 2 if stage and not place else 1
            if bottleneck:
                blocks.append(_bottleneck(channels, width, stride, stride_in))
            else:
                blocks.append(_two_layers(ndim, channels, width, stride))
            channels = 4 * width if bottleneck else width
        stages.append(nn.Sequential(*blocks))
        width *= 2
    return stages


def _two_layers(ndim: int, channels: int, width: int, stride: int) -> Residual:
    body = nn.Sequential(
        *conv_norm_relu(ndim, channels, width, 3, stride, 1), *conv_norm_relu(ndim, width, width, 3, 1, 1)[:2]
    )
    return Residual(body, _projection(ndim, channels, width, stride), nn.ReLU(inplace=True))


def _bottleneck(channels: int, width: int, stride: int, stride_in: str) -> Residual:
    outer, inner = (stride, 1) if stride_in == "1x1" else (1, stride)
    body = nn.Sequential(
        *conv_norm_relu(2, channels, width, 1, outer),
        *conv_norm_relu(2, width, width, 3, inner, 1),
        *conv_norm_relu(2, width, 4 * width, 1)[:2],
    )
    return Residual(body, _projection(2, channels, 4 * width, stride), nn.ReLU(inplace=True))


def _projection(ndim: int, channels: int, width: int, stride: int) -> nn.Module | None:
    """A 1×1 convolution where the shape changes (the paper's option B), nothing where it does not."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(*conv_norm_relu(ndim, channels, width, 1, stride)[:2])


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel, and channels of zeros after the input's own: a shortcut without weights."""

    kernel_size = 1

    def __init__(self, stride: int, extra_channels: int) -> None:
        super().__init__()
        self.stride, self.extra_channels = stride, extra_channels

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, c, h, w)`` → ``(batch, c + extra_channels, ⌈h/stride⌉, ⌈w/stride⌉)``."""
        kept = input[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, 0, self.extra_channels))


def _small_picture_resnet(depth: int, in_channels: int, num_classes: int) -> Network:
    parts: list[nn.Module] = [nn.Sequential(*conv_norm_relu(2, in_channels, 16, 3, 1, 1))]
    channels = 16
    for width in (16, 32, 64):
        blocks: list[nn.Module] = []
        for _ in range(depth):
            stride = 1 if channels == width else 2
            body = nn.Sequential(
                *conv_norm_relu(2, channels, width, 3, stride, 1), *conv_norm_relu(2, width, width, 3, 1, 1)[:2]
            )
            shortcut = PadShortcut(stride, width - channels) if stride > 1 else None
            blocks.append(Residual(body, shortcut, nn.ReLU(inplace=True)))
            channels = width
        parts.append(nn.Sequential(*blocks))
    return _finish(2, parts, 64, in_channels, num_classes)


def _finish(ndim: int, parts: list[nn.Module], channels: int, in_channels: int, num_classes: int) -> Network:
    classifier = nn.Sequential(*global_average(ndim), nn.Linear(channels, num_classes))
    network = Network(nn.Sequential(*parts), classifier, in_channels=in_channels, ndim=ndim)
    initialise.he(network, last=classifier[-1])
    return network
