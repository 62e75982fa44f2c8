"""What a recipe leaves open, chosen from the data: network, length, batch size, augmentation."""

from __future__ import annotations

import torch
from torch import nn

from convlens import data, models
from convlens.errors import DataError
from convlens.training.recipe import Recipe

__all__ = ["build", "complete"]


def complete(recipe: Recipe, dataset: data.Dataset) -> Recipe:
    """``recipe`` with every "auto" and None that matters to the result replaced by what the data asks for."""
    samples = len(dataset.indices("train"))
    if not samples:
        raise DataError(f"{dataset.source}: its train part is empty.")
    batch = recipe.batch_size or (32 if samples < 2_000 else 64 if samples < 20_000 else 128)
    # About 3000 steps, but at least 5 looks at every sample and at most 40.
    steps_per_epoch = max(1, samples // batch)
    epochs = recipe.epochs or min(40, max(5, round(3000 / steps_per_epoch)))
    model = _default_model(dataset) if recipe.model == "auto" else recipe.model
    if not model.startswith("timm/"):
        model = models.info(model).name
    threads = recipe.threads or torch.get_num_threads()
    return recipe.with_settings(
        batch_size=batch, epochs=epochs, model=model, threads=threads, augment=_augmentation(recipe, dataset)
    )


def build(recipe: Recipe, dataset: data.Dataset) -> nn.Module:
    """The network that ``recipe`` names, sized for ``dataset``, with fresh weights."""
    channels, *size = dataset.preprocessing.shape
    return models.create(recipe.model, channels, dataset.num_classes, tuple(size), **recipe.model_options)


def _augmentation(recipe: Recipe, dataset: data.Dataset) -> data.Augmentation:
    """What suits the data (or nothing, if asked), with the recipe's own amounts on top."""
    base = data.Augmentation()
    if recipe.augmentation == "auto":
        base = data.default_augmentation(dataset.preprocessing, dataset.class_names)
    return base.model_copy(
        update={name: getattr(recipe.augment, name) for name in recipe.augment.model_fields_set}
    )


def _default_model(dataset: data.Dataset) -> str:
    """A net that suits the kind and size of the inputs and trains in minutes on two cores."""
    kind = dataset.preprocessing.kind
    if kind != "image":
        return {"signal": "fcn1d", "sequence": "genome1d", "volume": "c3d-small", "spectral": "spectral-patch"}[
            kind
        ]
    channels, *size = dataset.preprocessing.shape
    return "lenet5" if channels == 1 and max(size) <= 40 else "convnet-m"
