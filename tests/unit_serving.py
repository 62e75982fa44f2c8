"""A small run and a picture for the tests of the server."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from convlens import models
from convlens.data import Preprocessing
from convlens.modelfile.card import ModelCard, write_model


def write_run(folder, seed=0, size=20, classes="abcd"):
    torch.manual_seed(seed)
    net = models.create("lenet5", in_channels=1, num_classes=len(classes), input_size=(size, size))
    card = ModelCard(
        architecture={"name": "lenet5", "in_channels": 1, "num_classes": len(classes), "input_size": [size, size]},
        preprocessing=Preprocessing(kind="image", channels=1, size=(size, size), scale=1 / 255),
        class_names=tuple(classes),
    )
    folder.mkdir(exist_ok=True)
    write_model(folder / "model.safetensors", net.state_dict(), card)
    return folder


def png(seed=0, size=(25, 30)) -> bytes:
    written = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(written, format="PNG")
    return written.getvalue()


RAW = {"content-type": "application/octet-stream"}
