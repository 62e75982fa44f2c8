"""The learning rate as a pure function of how far training is (LECTURES.md row I6): nothing to save or restore."""

from __future__ import annotations

import math

from convlens.training.recipe import Recipe

__all__ = ["learning_rate_factor"]

ONE_CYCLE_RISE = 0.25
"""Part of the run in which `one-cycle` raises the rate."""
ONE_CYCLE_START = 0.1
"""Rate at the start of `one-cycle`, as part of its peak; the end is a thousandth (Smith and Topin, 2017)."""


def learning_rate_factor(recipe: Recipe, progress: float, epoch: float) -> float:
    """The learning rate of a step as part of the recipe's peak rate.

    Args:
        recipe: names the schedule and its numbers.
        progress: part of the whole run that is done, 0–1.
        epoch: epochs done so far, with the fraction of the present one.

    Returns:
        Schedule times warm-up, in [0, 1].
    """
    warmup = min(1.0, (epoch / recipe.warmup_epochs)) if recipe.warmup_epochs else 1.0
    return warmup * _schedule(recipe, min(max(progress, 0.0), 1.0), epoch)


def _schedule(recipe: Recipe, progress: float, epoch: float) -> float:
    match recipe.schedule:
        case "constant":
            return 1.0
        case "step":
            return float(recipe.decay ** math.floor(epoch / recipe.decay_epochs))
        case "exponential":
            return float(recipe.decay**progress)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "one-cycle":
            return _one_cycle(progress)


def _one_cycle(progress: float) -> float:
    if progress < ONE_CYCLE_RISE:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * progress / ONE_CYCLE_RISE
    fall = (progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)
    return max(0.001, 0.5 * (1 + math.cos(math.pi * fall)))
