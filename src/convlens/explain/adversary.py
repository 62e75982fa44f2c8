"""Pictures a net gets wrong on purpose (part H): how small a change suffices.

Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples, ICLR 2015; the iterated form is
Madry et al., ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens.data import Preprocessing
from convlens.errors import ArgumentError
from convlens.explain.capture import quiet

__all__ = ["Adversary", "adversarial"]

_STEPS = 20
_HALVINGS = 8


@dataclass(frozen=True, slots=True)
class Adversary:
    """The smallest change found that turns a prediction.

    Attributes:
        found: whether one within the limit was found.
        original, label: predicted class before and after.
        epsilon: largest change of any stored value (a grey level of 0–255 for pictures).
        changed: the altered sample in storage units, float32 ``(channels, *size)``.
        difference: ``changed`` minus the sample.
        confidence: probability of ``label`` on the altered sample.
    """

    found: bool
    original: int
    label: int
    epsilon: float
    changed: Tensor
    difference: Tensor
    confidence: float


def adversarial(
    model: nn.Module,
    sample: Tensor,
    preprocessing: Preprocessing,
    target: int | None = None,
    limit: float | None = None,
) -> Adversary:
    """Search the smallest change (in the largest-difference norm) that makes the net answer otherwise.

    Args:
        model: a classifier.
        sample: one sample in storage form ``(channels, *size)``.
        preprocessing: normalises it; also says whether values are bounded (uint8: 0 to 255).
        target: class to reach; default any other than the predicted one.
        limit: largest change tried; default 64 grey levels, or two deviations of float samples.

    Raises:
        ArgumentError: not one sample.
    """
    if sample.ndim != len(preprocessing.size) + 1:
        raise ArgumentError("sample", f"one sample {preprocessing.shape}", tuple(sample.shape))
    bounded = preprocessing.dtype == "uint8"
    start = sample.float()
    if limit is None:
        limit = 64.0 if bounded else 2.0 * float(start.std())
    with torch.enable_grad(), quiet(model):
        original = int(model(preprocessing.normalise(start[None])).argmax())
        low, high, best = 0.0, limit, None
        for _ in range(_HALVINGS):
            tried = high if best is None else (low + high) / 2
            changed = _attack(model, start, preprocessing, original, target, tried, bounded)
            if changed is None:
                if best is None:
                    break
                low = tried
            else:
                best, high = changed, tried
        final = start if best is None else best
        probabilities = model(preprocessing.normalise(final[None])).softmax(1)[0].detach()
    label = int(probabilities.argmax())
    return Adversary(
        found=best is not None,
        original=original,
        label=label,
        epsilon=high if best is not None else limit,
        changed=final,
        difference=final - start,
        confidence=float(probabilities[label]),
    )


def _attack(
    model: nn.Module,
    start: Tensor,
    preprocessing: Preprocessing,
    original: int,
    target: int | None,
    epsilon: float,
    bounded: bool,
) -> Tensor | None:
    """Projected signed-gradient steps within ``epsilon``; the first sample that the net gets wrong, or None."""
    aim = torch.tensor([original if target is None else target])
    changed = start.clone()
    for _ in range(_STEPS):
        changed.requires_grad_(True)
        logits = model(preprocessing.normalise(changed[None]))
        answer = int(logits.argmax())
        if answer == target or (target is None and answer != original):
            return changed.detach()
        loss = F.cross_entropy(logits, aim)
        (gradient,) = torch.autograd.grad(loss, changed)
        step = gradient.sign() * (2.5 * epsilon / _STEPS)
        changed = changed.detach() + (step if target is None else -step)
        changed = torch.minimum(torch.maximum(changed, start - epsilon), start + epsilon)
        if bounded:
            changed = changed.clamp(0, 255)
    return None
