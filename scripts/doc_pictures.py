"""Draws the pictures of the lessons into docs/images, with convlens itself: `python scripts/doc_pictures.py RUN`.

RUN is a finished run on digits. Needs matplotlib (it comes with the extra `explain`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

import convlens
from convlens import explain, layers, ops
from convlens.layers.filters import hand_filter

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
DPI = 110


def save(figure: Any, name: str, colours: int = 64) -> None:
    """Write with few colours: drawings need no more, and the repository stays small."""
    path = IMAGES / f"lesson_{name}.png"
    figure.savefig(path, dpi=DPI, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(colours).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


def numbers(axis: Any, plane: Any, title: str) -> None:
    """A small plane with its numbers written in."""
    values = np.asarray(plane, dtype=float)
    axis.imshow(values, cmap="Blues", vmin=min(0.0, values.min()), vmax=max(1.0, values.max()) * 1.3)
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 * max(1.0, values.max()) else "black"
        axis.text(column, row, f"{value:g}", ha="center", va="center", fontsize=11, color=ink)
    axis.set(title=title, xticks=[], yticks=[])


def picture(axis: Any, plane: Any, title: str, cmap: str = "gray", **limits: float) -> None:
    """A plane as a picture."""
    axis.imshow(plane, cmap=cmap, **limits)
    axis.set(title=title, xticks=[], yticks=[])


def toeplitz() -> None:
    matrix = ops.toeplitz_matrix(hand_filter("sobel_x")[None, None], (8, 8)).to_dense()
    figure, axis = plt.subplots(figsize=(6, 3.4))
    axis.imshow(matrix, cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    axis.set(xlabel="input pixel", ylabel="output pixel")
    save(figure, "toeplitz")


def x_filter() -> None:
    rows = ["11100", "01110", "00111", "00110", "01100"]
    image = torch.tensor([[float(c) for c in row] for row in rows])
    cross = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    answer = ops.conv2d(image[None], cross[None, None])[0]
    figure, axes = plt.subplots(1, 3, figsize=(6.5, 2.4), gridspec_kw={"width_ratios": (5, 3, 3)})
    for axis, plane, title in zip(axes, (image, cross, answer), ("picture", "kernel", "answer"), strict=True):
        numbers(axis, plane, title)
    save(figure, "x_filter")


def pooling() -> None:
    edge = torch.tensor([[[[1.0, -1.0]]]])
    figure, axes = plt.subplots(2, 3, figsize=(6.5, 4.2), gridspec_kw={"width_ratios": (5, 4, 2)})
    for line, ones in zip(axes, (2, 1), strict=True):
        step = torch.tensor([[float(column < ones) for column in range(5)]] * 4)
        found = ops.conv2d(step[None], edge)
        pooled = ops.max_pool2d(found, 2)
        numbers(line[0], step, "picture")
        numbers(line[1], found[0], "edge [1, −1]")
        numbers(line[2], pooled[0], "2×2 maximum")
    figure.tight_layout()
    save(figure, "pooling")


def activations() -> None:
    x = torch.linspace(-3, 3, 301)
    kinds = (layers.Step(), layers.Sigmoid(), layers.Tanh(), layers.ReLU(), layers.LeakyReLU(0.1), layers.SELU(),
             layers.SiLU())  # fmt: skip
    figure, axes = plt.subplots(1, 7, figsize=(11, 1.7), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        axis.plot(x, kind(x), color="#2b6cb0")
        axis.axhline(0, color="#999", linewidth=0.5)
        axis.axvline(0, color="#999", linewidth=0.5)
        axis.set(title=type(kind).__name__, ylim=(-2, 3))
    save(figure, "activations")


def filters() -> None:
    flower = np.asarray(Image.fromarray(load_sample_image("flower.jpg")).convert("L").resize((160, 107)))
    kernels = {name: hand_filter(name) for name in ("sobel_x", "laplacian", "sharpen")}
    kernels |= {"gaussian, σ = 3": hand_filter("gaussian", sigma=3.0), "emboss": hand_filter("emboss")}
    figure, axes = plt.subplots(2, 3, figsize=(6, 3.1))
    picture(axes.flat[0], flower, "as it is")
    for axis, (name, kernel) in zip(axes.flat[1:], kernels.items(), strict=True):
        result = explain.filter_image(flower, kernel)
        limits = {"vmin": -150, "vmax": 150} if abs(float(kernel.sum())) < 1e-6 else {"vmin": 0, "vmax": 255}
        picture(axis, result, name, **limits)
    figure.tight_layout()
    save(figure, "filters", colours=24)


def learned(run: str) -> None:
    model = convlens.load(run)
    net = explain.opened(model.model)
    inputs, labels = convlens.data.open("digits").tensors("test")
    sample = inputs[int((labels == 3).nonzero()[0, 0])]
    x = model.preprocessing.normalise(sample[None].float())
    maps = next(one for one in explain.feature_maps(net, x) if one.layer == "features.conv1.conv")
    figure, axes = plt.subplots(1, 7, figsize=(10, 1.8))
    picture(axes[0], sample[0], "input")
    named = explain.learned_filters(net)["features.conv1.conv"]
    for axis, plane, filter in zip(axes[1:], maps.maps, named, strict=True):
        picture(axis, plane, f"≈ {filter.looks_like}\n({filter.similarity:.2f})", cmap="viridis")
        axis.title.set_fontsize(8)
    save(figure, "maps")
    evidence = explain.class_evidence(net, x)
    adversary = explain.adversarial(net, sample, model.preprocessing)
    names = model.class_names
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
    picture(axes[0], sample[0], f"read as {names[adversary.original]}")
    axes[1].imshow(sample[0], cmap="gray")
    axes[1].imshow(evidence.heat, cmap="inferno", alpha=0.6)
    axes[1].set(title=f"evidence for {names[evidence.target]}", xticks=[], yticks=[])
    most = adversary.epsilon
    picture(axes[2], adversary.difference[0], f"change, ± {most:.0f} of 255", cmap="RdBu_r", vmin=-most, vmax=most)
    picture(axes[3], adversary.changed[0], f"read as {names[adversary.label]}", vmin=0, vmax=255)
    save(figure, "adversary")


def columns() -> None:
    """Row C3: every window of a picture copied into a column, and one matrix product."""
    picture_ = torch.arange(16.0).view(1, 1, 4, 4)
    kernel = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    unrolled = ops.unfold(picture_, 2)[0]
    answer = ops.conv2d(picture_, kernel[None, None])[0, 0]
    if not torch.equal((kernel.flatten() @ unrolled).view(3, 3), answer):
        raise SystemExit("the product of the columns is not the convolution")
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), gridspec_kw={"width_ratios": (4, 4, 9, 3)})
    numbers(axes[0], picture_[0, 0], "picture")
    numbers(axes[1], kernel.flatten()[None], "kernel as a row")
    numbers(axes[2], unrolled, "windows as columns")
    numbers(axes[3], answer, "row × columns")
    figure.tight_layout()
    save(figure, "columns")


def costs() -> None:
    """Rows C1 to C4: operations of each algorithm relative to the definition, as the kernel grows."""
    from convlens.kernels import all_kernels
    from convlens.window import ConvProblem

    sizes = (3, 5, 7, 9, 11, 15, 21, 31)
    wanted = {"Toeplitz (sparse), im2col": "plain.im2col", "Fourier": "plain.fourier"}
    kernels = {kernel.name: kernel for kernel in all_kernels()}
    figure, axis = plt.subplots(figsize=(6, 2.8))
    for name, key in wanted.items():
        shares = []
        for k in sizes:
            pad = ((k // 2, k // 2),) * 2
            problem = ConvProblem("forward", 8, 32, (64, 64), 32, (k, k), (1, 1), pad, (1, 1))
            shares.append(kernels[key].estimate_flops(problem) / problem.flops)
        axis.plot(sizes, shares, marker="o", label=name)
    axis.set(xlabel="side of the kernel", ylabel="operations ÷ definition", yscale="log", xticks=sizes)
    axis.legend(frameon=False)
    save(figure, "costs")


def training(run: str) -> None:
    """Part I: what augmentation makes of one digit, and the curves of the run."""
    import json

    from convlens.data.augmentation import default_augmentation
    from convlens.data.preview import preview

    digits = convlens.data.open("digits")
    seen = preview(digits, default_augmentation(digits.preprocessing, digits.class_names), rows=3, versions=6)
    path = IMAGES / "lesson_augment.png"
    seen.convert("L").quantize(24).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KB")
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    figure, axis = plt.subplots(figsize=(6, 2.6))
    for key, label in (("train_loss", "train"), ("dev_loss", "dev")):
        axis.plot([one["epoch"] for one in epochs], [one[key] for one in epochs], label=label)
    axis.set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    axis.legend(frameon=False)
    save(figure, "curves")


def main(run: str) -> None:
    toeplitz()
    columns()
    costs()
    training(run)
    x_filter()
    pooling()
    activations()
    filters()
    learned(run)


if __name__ == "__main__":
    main(sys.argv[1])
