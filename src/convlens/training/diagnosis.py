"""What the numbers of a run say (LECTURES.md rows I3, I4, A5): bias or variance, dead units, gradients, a squeeze.

Every finding is a record with the numbers it rests on and the edit that mends it; the paragraph after training and
``convlens doctor RUN`` print the same records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from convlens.errors import ConvlensError
from convlens.models import summary
from convlens.models.blocks import ConvBlock2d
from convlens.training.evaluation import loss_of

__all__ = [
    "Finding",
    "LayerHealth",
    "diagnose",
    "fit_findings",
    "layer_findings",
    "layer_health",
    "paragraph",
    "squeeze_findings",
    "structure_findings",
]

HIGH_ERROR = 0.10
"""A training error above this is called bias, where the lectures would compare with human error."""
DEAD_PART = 0.5
"""A layer with more dead units than this is reported."""
VANISHING, EXPLODING = 1e-4, 1e3
"""A layer's gradient as part of the median layer's, each relative to its weights."""


class Finding(BaseModel):
    """One thing that the numbers say."""

    model_config = ConfigDict(frozen=True)

    kind: Literal[
        "bias", "variance", "mismatch", "good fit", "dead units", "gradients", "squeeze",
        "receptive field", "skipped pixels", "weights",
    ]  # fmt: skip
    severity: Literal["error", "warning", "note"]
    text: str
    """What was seen, with the numbers."""
    fix: str = ""
    """The edit that mends it."""


class LayerHealth(BaseModel):
    """One layer on a batch of training samples.

    Attributes:
        layer: its name.
        weight_norm: Euclidean norm of its weights.
        gradient_norm: Euclidean norm of the loss's gradient for these weights.
        dead_part: part of its output units that are zero for every sample; None where no ReLU follows.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    weight_norm: float
    gradient_norm: float
    dead_part: float | None = None


def diagnose(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    errors: Mapping[str, float],
    counts: Mapping[str, int],
    multilabel: bool = False,
    batch_size: int | None = None,
) -> tuple[list[Finding], list[LayerHealth]]:
    """Everything that can be said about a trained network.

    Args:
        network: in evaluation mode; its gradients are cleared afterwards.
        inputs: normalised training samples.
        labels: their labels.
        errors: 1 − accuracy of ``train`` (measured without augmentation), ``dev`` and ``test``, those that exist.
        counts: samples of the same parts.
        multilabel: whether each class stands on its own.
        batch_size: samples computed at a time; default all.
    """
    health = layer_health(network, inputs, labels, multilabel, batch_size)
    squeeze = squeeze_findings(network, tuple(inputs.shape[1:]), _classes(network, inputs[:batch_size]))
    return [*fit_findings(errors, counts), *squeeze, *layer_findings(health)], health


def fit_findings(errors: Mapping[str, float], counts: Mapping[str, int]) -> list[Finding]:
    """Bias, variance and mismatch from the errors of the parts; differences within chance are not reported.

    A difference counts where it is larger than two standard errors of a difference of proportions.
    """
    found = []
    train, dev, test = (errors.get(part) for part in ("train", "dev", "test"))
    if train is not None and train > HIGH_ERROR:
        found.append(
            Finding(
                kind="bias",
                severity="warning",
                text=f"Bias: {_percent(train)} of the training samples themselves are wrong.",
                fix="train longer (--epochs), a larger network (--model), less augmentation or weight decay",
            )
        )
    if train is not None and dev is not None and _beyond_chance(train, dev, counts, "train", "dev"):
        severity: Literal["warning", "note"] = "warning" if dev - train > 0.05 else "note"
        found.append(
            Finding(
                kind="variance",
                severity=severity,
                text=f"Variance: train error {_percent(train)}, dev error {_percent(dev)}.",
                fix="more data or augmentation, --dropout 0.3, --weight-decay, or a smaller network",
            )
        )
    if dev is not None and test is not None and _beyond_chance(dev, test, counts, "dev", "test"):
        found.append(
            Finding(
                kind="mismatch",
                severity="warning",
                text=f"Mismatch: dev error {_percent(dev)}, test error {_percent(test)}, beyond chance.",
                fix="check that both come from one distribution (convlens doctor DATA), or split again",
            )
        )
    if not found:
        parts = ", ".join(
            f"{name} {_percent(errors[name])}" for name in ("train", "dev", "test") if name in errors
        )
        found.append(
            Finding(
                kind="good fit",
                severity="note",
                text=f"The parts agree: error {parts}; neither bias nor variance beyond chance.",
            )
        )
    return found


def squeeze_findings(network: nn.Module, input_shape: tuple[int, ...], classes: int) -> list[Finding]:
    """Layers through which everything must pass as fewer numbers than the classes need (row A5).

    A layer with u outputs can, through one number per sample, only order the samples along a line; two classes
    can be told apart along a line, more cannot well. Reported where a layer before the last has fewer output
    numbers than ``max(2, min(classes − 1, 3))``; a parallel path around it is not looked for.
    """
    least = max(2, min(classes - 1, 3))
    widths = [
        getattr(module, "out_channels", getattr(module, "out_features", 0))
        for module in network.modules()
        if any(weight.dim() > 1 for weight in module.parameters(recurse=False))
    ]
    if min(widths, default=0) >= least:
        return []  # no need to look at the sizes as well
    with suppress(ConvlensError, RuntimeError):
        rows = summary.summary(network, input_shape).rows
        weighted = [row for row in rows if row.weights and row.macs]
        for row in weighted[:-1]:
            numbers = math.prod(row.output_shape[1:])
            if numbers < least:
                return [
                    Finding(
                        kind="squeeze",
                        severity="error",
                        text=(
                            f"Squeeze: layer {row.name!r} turns each sample into {numbers} number"
                            f"{'s' if numbers > 1 else ''}; {classes} classes cannot be told apart behind it."
                        ),
                        fix=f"remove {row.name!r}, or give it more outputs than classes",
                    )
                ]
    return []


def structure_findings(network: nn.Module, input_shape: tuple[int, ...]) -> list[Finding]:
    """What the shape of a network says before any training: its field, pixels it skips, where its weights are.

    Args:
        network: any module that takes one tensor.
        input_shape: ``(channels, *size)`` of one sample.
    """
    found = []
    sides = input_shape[1:]
    described = summary.summary(network, input_shape)
    field = described.receptive_field
    if field and any(2 * seen < side for seen, side in zip(field, sides, strict=True)):
        found.append(
            Finding(
                kind="receptive field",
                severity="note",
                text=f"Receptive field: a unit of the last feature map sees {_times(field)} of {_times(sides)}.",
                fix="for objects larger than that, more layers, strides or dilation, or smaller inputs (--size)",
            )
        )
    for name, module in network.named_modules():
        window, stride = getattr(module, "kernel_size", None), getattr(module, "stride", None)
        if not (isinstance(window, tuple) and isinstance(stride, tuple)):
            continue
        if any(step > size for step, size in zip(stride, window, strict=True)):
            found.append(
                Finding(
                    kind="skipped pixels",
                    severity="warning",
                    text=f"Skipped pixels: {name!r} steps by {_times(stride)} with a window of {_times(window)}.",
                    fix="a window at least as large as its stride",
                )
            )
    heaviest = max(described.rows, key=lambda row: row.weights, default=None)
    if heaviest is not None and len(described.rows) > 3 and heaviest.weights > 0.7 * described.weights:
        found.append(
            Finding(
                kind="weights",
                severity="note",
                text=f"Weights: {heaviest.weights / described.weights:.0%} of all lie in {heaviest.name!r}.",
                fix="global pooling before a dense layer needs far fewer",
            )
        )
    return found


def layer_findings(health: Sequence[LayerHealth]) -> list[Finding]:
    """Dead layers, and gradients far from those of the other layers (row I4)."""
    found = []
    for layer in health:
        if layer.dead_part is not None and layer.dead_part > DEAD_PART:
            found.append(
                Finding(
                    kind="dead units",
                    severity="warning",
                    text=f"Dead units: {_percent(layer.dead_part)} of {layer.layer!r} are zero for every sample.",
                    fix="a lower --learning-rate or --warmup-epochs 1; a smaller layer would do",
                )
            )
    relative = {layer.layer: layer.gradient_norm / layer.weight_norm for layer in health if layer.weight_norm > 0}
    middle = sorted(relative.values())[len(relative) // 2] if relative else 0.0
    if middle > 0:
        for name, value in relative.items():
            if value < VANISHING * middle or value > EXPLODING * middle:
                word = "vanishing" if value < middle else "exploding"
                found.append(
                    Finding(
                        kind="gradients",
                        severity="warning",
                        text=f"Gradients: {word} in {name!r} ({value / middle:.1e} of the median layer's).",
                        fix="batch norm or shortcuts (a resnet), another activation, or --clip-norm 1",
                    )
                )
    return found


def layer_health(
    network: nn.Module, inputs: Tensor, labels: Tensor, multilabel: bool = False, batch_size: int | None = None
) -> list[LayerHealth]:
    """Weights, gradients (of the mean loss) and dead units of every layer with a weight matrix.

    Computed ``batch_size`` samples at a time: the size that a run trained with needs no new plans.
    """
    size = batch_size or len(inputs)
    dead: dict[str, Tensor] = {}
    silent: dict[str, Tensor] = {}
    layers = {name: module for name, module in network.named_modules() if _has_matrix(module)}
    handles = _watch_activations(network, layers, silent)
    was_training = network.training
    network.eval()
    try:
        network.zero_grad(set_to_none=True)
        for batch, targets in zip(inputs.split(size), labels.split(size), strict=True):
            loss = loss_of(network(batch).float(), targets, multilabel=multilabel)
            (loss * (len(batch) / len(inputs))).backward()
            dead = {name: dead.get(name, units) & units for name, units in silent.items()}
            silent.clear()
        return [
            LayerHealth(
                layer=name,
                weight_norm=float(module.weight.detach().norm()),
                gradient_norm=_norm(module.weight.grad),
                dead_part=float(dead[name].float().mean()) if name in dead else None,
            )
            for name, module in layers.items()
        ]
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad(set_to_none=True)
        network.train(was_training)


def _watch_activations(
    network: nn.Module, layers: Mapping[str, nn.Module], silent: dict[str, Tensor]
) -> list[Any]:
    """Record which units of each ReLU (or fused block with one) never fire, under the layer before it."""
    before = ""
    handles = []
    for name, module in network.named_modules():
        if name in layers:
            before = name
            if isinstance(module, ConvBlock2d):  # ends in a ReLU of its own
                handles.append(module.register_forward_hook(_silence_hook(silent, name)))
        elif isinstance(module, nn.ReLU) and before:
            handles.append(module.register_forward_hook(_silence_hook(silent, before)))
    return handles


def _silence_hook(silent: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        # a module that is used twice is judged by its first use
        silent.setdefault(name, output.detach().abs().transpose(0, 1).flatten(1).amax(dim=1) == 0)

    return hook


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() > 1


def _norm(gradient: Tensor | None) -> float:
    return float(gradient.norm()) if gradient is not None else 0.0


@torch.no_grad()
def _classes(network: nn.Module, inputs: Tensor) -> int:
    was_training = network.training
    network.eval()  # one sample is no batch for batch-norm, and its statistics must not move
    classes = int(network(inputs[:1]).shape[1])
    network.train(was_training)
    return classes


def _beyond_chance(
    first: float, second: float, counts: Mapping[str, int], first_name: str, second_name: str
) -> bool:
    """Whether ``second`` exceeds ``first`` by more than two standard errors (pooled proportions)."""
    n, m = counts.get(first_name, 0), counts.get(second_name, 0)
    if not n or not m:
        return False
    pooled = (first * n + second * m) / (n + m)
    error = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n + 1 / m))
    return second - first > 2 * error


def _times(sides: Iterable[int]) -> str:
    return "×".join(map(str, sides))


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def paragraph(findings: Iterable[Finding]) -> str:
    """The findings as one paragraph."""
    return " ".join(f"{item.text}{f' Try: {item.fix}.' if item.fix else ''}" for item in findings)
