"""Nets for signals, genome windows and spectra: one spatial axis, and pixels with many bands."""

from __future__ import annotations

from torch import Tensor, nn

from convlens import layers
from convlens.errors import ArgumentError
from convlens.models import initialise
from convlens.models.blocks import Residual, conv_norm_relu, global_average
from convlens.models.network import Network

__all__ = ["fcn1d", "genome1d", "spectral1d", "spectral_patch", "spectral_pixel"]


def fcn1d(in_channels: int, num_classes: int, input_size: tuple[int, ...]) -> Network:
    """Three windows and a global mean: 264,962 weights for one channel and 2 classes; any length.

    Windows 8, 5, 3 with 128, 256, 128 channels; the length never changes. Wang, Yan, Oates: Time series
    classification from scratch with deep neural networks: a strong baseline, IJCNN 2017.
    """
    parts: list[nn.Module] = []
    channels = in_channels
    for width, window in ((128, 8), (256, 5), (128, 3)):
        parts += [
            layers.Conv1d(channels, width, window, padding="same"),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    classifier = nn.Sequential(*global_average(1), nn.Linear(channels, num_classes))
    return _finish(1, parts, classifier, in_channels)


def genome1d(
    in_channels: int,
    num_classes: int,
    input_size: tuple[int, ...],
    dropout: float = 0.5,
    places: int = 1,
    width: int = 64,
) -> Network:
    """Motif finder over one-hot bases (4 channels): windows of 11 bases, then of 5, then the strongest match.

    After Alipanahi et al. (DeepBind, 2015): the first layer's windows are motifs, and the maximum over positions
    asks "is it there", wherever it is. At 57 bases: 64×57, pool 3 → 19, 64×19, maximum, dropout, dense.

    Args:
        in_channels: symbols of the alphabet (4 for DNA).
        num_classes: length of the output.
        input_size: ``(length,)``, 3 or more.
        dropout: probability that a motif is dropped while training.
        places: stretches of the sequence of which each gives its own strongest match, for sequences that are
            aligned (promoters before the start of a gene), where it matters where a motif lies.
        width: motifs of each layer.
    """
    parts = [
        *conv_norm_relu(1, in_channels, width, 11, padding=5),
        layers.MaxPool1d(3),
        *conv_norm_relu(1, width, width, 5, padding=2),
    ]
    head = nn.Linear(width * places, num_classes)
    classifier = nn.Sequential(layers.AdaptiveMaxPool1d(places), nn.Flatten(), nn.Dropout(dropout), head)
    return _finish(1, parts, classifier, in_channels)


def spectral1d(in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.2) -> Network:
    """One pixel's spectrum: windows slide over the bands (``input_size`` is their number, 4 or more).

    Which band a feature lies in matters, so the classifier keeps 8 places along the spectrum instead of a global
    mean. After Hu et al.: Deep convolutional neural networks for hyperspectral image classification, 2015. At 156
    bands: 32×156, pool 78, 64×78, pool 39, 64×39, mean over 8 stretches, dense.
    """
    head = nn.Linear(64 * 8, num_classes)
    classifier = nn.Sequential(layers.AdaptiveAvgPool1d(8), nn.Flatten(), nn.Dropout(dropout), head)
    return _finish(1, _over_bands(in_channels), classifier, in_channels)


def spectral_pixel(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.2
) -> Network:
    """`spectral1d` for the pixels of a scene, whose bands (4 or more) are channels; a patch gives its mean."""
    if in_channels < 4:
        raise ArgumentError("in_channels", "4 or more bands", in_channels, "take spectral-patch for fewer")
    classifier = nn.Sequential(*global_average(2), nn.Dropout(dropout), nn.Linear(64 * 8, num_classes))
    return _finish(2, [EachSpectrum([*_over_bands(1), layers.AdaptiveAvgPool1d(8)])], classifier, in_channels)


class EachSpectrum(nn.Module):
    """``body``, a net over ``(batch, 1, bands)``, on every pixel of ``(batch, bands, height, width)``.

    The result is ``(batch, maps · places, height, width)``.
    """

    def __init__(self, body: list[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, input: Tensor) -> Tensor:
        batch, bands, height, width = input.shape
        spectra = input.permute(0, 2, 3, 1).reshape(-1, 1, bands)
        result: Tensor = self.body(spectra).reshape(batch, height, width, -1)
        return result.permute(0, 3, 1, 2)


def _over_bands(channels: int) -> list[nn.Module]:
    return [
        *conv_norm_relu(1, channels, 32, 11, padding=5),
        layers.MaxPool1d(2),
        *conv_norm_relu(1, 32, 64, 5, padding=2),
        layers.MaxPool1d(2),
        *conv_norm_relu(1, 64, 64, 3, padding=1),
    ]


def spectral_patch(
    in_channels: int, num_classes: int, input_size: tuple[int, ...], dropout: float = 0.2
) -> Network:
    """A pixel with its neighbours, the bands as channels: 1×1 compresses the bands (row B8), 3×3 look around.

    Any number of bands and any patch from 1×1 up. At 156 bands and 5×5: 64×5×5, two residual blocks, mean, dense.
    """
    parts: list[nn.Module] = conv_norm_relu(2, in_channels, 64, 1)
    for _ in range(2):
        body = nn.Sequential(*conv_norm_relu(2, 64, 64, 3, 1, 1), *conv_norm_relu(2, 64, 64, 3, 1, 1)[:2])
        parts.append(Residual(body, None, nn.ReLU(inplace=True)))
    classifier = nn.Sequential(*global_average(2), nn.Dropout(dropout), nn.Linear(64, num_classes))
    return _finish(2, parts, classifier, in_channels)


def _finish(ndim: int, parts: list[nn.Module], classifier: nn.Sequential, in_channels: int) -> Network:
    network = Network(nn.Sequential(*parts), classifier, in_channels=in_channels, ndim=ndim)
    initialise.he(network, last=classifier[-1])
    return network
