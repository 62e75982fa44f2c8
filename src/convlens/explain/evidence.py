"""Where in the input the evidence for a class lies: Grad-CAM and integrated gradients, through Captum.

Selvaraju et al.: Grad-CAM, ICCV 2017. Sundararajan, Taly, Yan: Axiomatic attribution for deep networks, ICML 2017.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convlens.errors import ArgumentError, MissingExtraError
from convlens.explain.capture import capture, named_layer, quiet

__all__ = ["Evidence", "class_evidence", "evidence_layer"]

_STEPS = 32
_AT_ONCE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Evidence:
    """How much each place of the input speaks for a class.

    Attributes:
        method: ``"grad_cam"`` or ``"integrated_gradients"``.
        layer: the layer that Grad-CAM looked at; "" for integrated gradients.
        target: number of the class.
        heat: float32, the input's spatial size. Grad-CAM: ≥ 0, largest value 1 (all 0 where nothing speaks
            for the class). Integrated gradients: signed, summed over channels.
    """

    method: str
    layer: str
    target: int
    heat: npt.NDArray[np.float32]


def evidence_layer(model: nn.Module, input: Tensor) -> str:
    """The layer that Grad-CAM looks at: the last convolution whose maps have places, and what follows at its size.

    Raises:
        ArgumentError: no layer of the net keeps a spatial extent.
    """
    with torch.no_grad(), quiet(model):
        _, caught = capture(model, input[:1])
    axes = input.ndim - 2
    spatial = [
        layer
        for layer in caught.values()
        if layer.output.ndim == input.ndim and max(layer.output.shape[2:]) > 1 and "#" not in layer.name
    ]
    if not spatial:
        raise ArgumentError("model", f"a layer with {axes} spatial axes", "none has more than one place")
    last = max((place for place, layer in enumerate(spatial) if "Conv" in layer.kind), default=None)
    if last is None:
        return spatial[-1].name
    # what follows the last convolution at its own size, its norm, shortcut and activation, belongs to its answer:
    # before a ReLU a unit that says nothing would speak with its negative value
    after = [layer for layer in spatial[last:] if layer.output.shape == spatial[last].output.shape]
    return after[-1].name


def class_evidence(
    model: nn.Module,
    input: Tensor,
    target: int | None = None,
    method: str = "grad_cam",
    layer: str | None = None,
) -> Evidence:
    """Explain one prediction.

    Args:
        model: a classifier, ``(1, channels, *size)`` → ``(1, classes)``; 1, 2 or 3 spatial axes.
        input: one normalised input ``(1, channels, *size)``.
        target: class number; default the predicted one.
        method: ``"grad_cam"`` or ``"integrated_gradients"`` (32 steps from the mean input, in bounded memory).
        layer: for Grad-CAM; chosen by `evidence_layer` by default.

    Raises:
        MissingExtraError: Captum is not installed.
        ArgumentError: another method, layer or shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum's own imports of deprecated names
            from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
    except ImportError as error:
        raise MissingExtraError("captum", "explain", "class evidence") from error
    if method not in ("grad_cam", "integrated_gradients"):
        raise ArgumentError("method", "'grad_cam' or 'integrated_gradients'", repr(method))
    if len(input) != 1:
        raise ArgumentError("input", "one input, (1, channels, *size)", tuple(input.shape))
    with quiet(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="captum")
        if target is None:
            with torch.no_grad():
                target = int(model(input).argmax())
        if method == "grad_cam":
            name = layer or evidence_layer(model, input)
            attribution = LayerGradCam(model, named_layer(model, name)).attribute(
                input, target=target, relu_attributions=True
            )
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[input.ndim - 2]
            wide = LayerAttribution.interpolate(attribution.detach(), tuple(input.shape[2:]), mode)
            heat = wide[0].mean(0)
            largest = float(heat.max())
            heat = heat / largest if largest > 0 else heat
        else:
            name = ""
            at_once = max(1, _AT_ONCE_BYTES // (input.numel() * 4))
            attribution = IntegratedGradients(model).attribute(
                input, target=target, n_steps=_STEPS, internal_batch_size=min(at_once, _STEPS)
            )
            heat = attribution.detach()[0].sum(0)
    return Evidence(method, name, target, heat.float().cpu().numpy())
