"""Augmentation: exact moves, one sampling pass, the same whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from convlens.data import Preprocessing
from convlens.data.augment import Augmentation, Augmenter, Draws, default_augmentation
from convlens.data.augment.space import _grid, _windows, _windows_torch, moved, sampled
from convlens.data.preprocessing import Array

IMAGE = Preprocessing(
    kind="image", channels=3, size=(8, 9), scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
)


def form(kind: str, channels: int, size: Sequence[int]) -> Preprocessing:
    return Preprocessing(kind=kind, channels=channels, size=tuple(size), dtype="float32")  # type: ignore[arg-type]


def pixels(count: int = 16, shape: tuple[int, ...] = (3, 8, 9)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8))


def draws(count: int = 16, epoch: int = 0, seed: int = 3) -> Draws:
    return Draws(seed, epoch, np.arange(count))


def change(choice: Augmentation, stored: torch.Tensor, *, epoch: int = 0, preprocessing: Preprocessing = IMAGE):
    return Augmenter(choice, preprocessing, 2, seed=3).change(stored, torch.arange(len(stored)), epoch)


def test_draws_depend_on_everything_and_on_nothing_else() -> None:
    first = draws().uniform("a")
    np.testing.assert_array_equal(first, draws().uniform("a"))
    np.testing.assert_array_equal(first[3:5], Draws(3, 0, np.array([3, 4])).uniform("a"))
    for other in (draws().uniform("b"), draws(epoch=1).uniform("a"), draws(seed=4).uniform("a")):
        assert not np.isclose(first, other).any()


def test_draws_are_even_and_independent() -> None:
    many = draws(20_000)
    first, second = many.uniform("a"), many.uniform("b")
    assert abs(first.mean() - 0.5) < 0.01
    assert abs(first.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    normal = many.normals("n", 3)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    whole = many.whole("w", -2, 2)
    assert np.bincount(whole + 2).min() > 3700


@pytest.mark.parametrize("border", ["reflect", "edge", "zeros"])
@pytest.mark.parametrize("shape", [(2, 11), (3, 8, 9), (1, 5, 6, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_windows_are_those_of_numpy_padding(border: str, shape: tuple[int, ...], dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 255, (5, *shape)).astype(dtype)
    reach = [min(3, side - 1) if axis else 1 for axis, side in enumerate(shape[1:])]
    starts = [np.random.default_rng(axis).integers(0, 2 * amount + 1, 5) for axis, amount in enumerate(reach)]
    mode = {"zeros": "constant"}.get(border, border)
    padded = np.pad(values, [(0, 0), (0, 0), *((amount, amount) for amount in reach)], mode=mode)  # type: ignore[call-overload]
    expected = np.stack(
        [
            padded[
                (n, slice(None), *(slice(s[n], s[n] + side) for s, side in zip(starts, shape[1:], strict=True)))
            ]
            for n in range(5)
        ]
    )
    np.testing.assert_array_equal(_windows(values, reach, starts, border), expected)
    np.testing.assert_array_equal(_windows_torch(torch.from_numpy(values), reach, starts, border), expected)


@pytest.mark.parametrize("sides", [(5, 8), (4, 5, 6)])
def test_grid_is_that_of_torch(sides: tuple[int, ...]) -> None:
    matrices = torch.randn(3, len(sides), len(sides) + 1, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(matrices, [3, 1, *sides], align_corners=False)
    torch.testing.assert_close(_grid(matrices, sides), expected)


def test_mirror_reverses_about_half() -> None:
    stored = pixels(200)
    out = moved(stored, Augmentation(mirror=True), draws(200))
    mirrored = [bool(torch.equal(after, before.flip(-1))) for after, before in zip(out, stored, strict=True)]
    kept = [bool(torch.equal(after, before)) for after, before in zip(out, stored, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_stored_samples_are_never_changed() -> None:
    stored = pixels()
    before = stored.clone()
    everything = Augmentation(mirror=True, flip=True, shift=0.2, brightness=0.5, noise=0.5, erase=1.0, rotate=20)
    change(everything, stored)
    change(everything.model_copy(update={"rotate": 0.0}), stored)
    assert torch.equal(stored, before)


def test_whole_pixel_moves_agree_with_sampling() -> None:
    """The gather and the affine pass draw the same numbers, so they show the same picture."""
    stored, choice = pixels(), Augmentation(mirror=True, flip=True, shift=0.25, border="edge")
    torch.testing.assert_close(sampled(stored, choice, draws()), moved_by_hand(stored, choice), atol=0.05, rtol=0)


def moved_by_hand(stored: torch.Tensor, choice: Augmentation) -> torch.Tensor:
    drawn, out = draws(), []
    reach = [int(side * choice.shift) for side in stored.shape[2:]]
    padded = torch.nn.functional.pad(stored.float(), (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    down, right = (drawn.whole(f"shift {axis}", 0, 2 * amount) for axis, amount in enumerate(reach))
    for n in range(len(stored)):
        window = padded[n, :, down[n] : down[n] + stored.shape[2], right[n] : right[n] + stored.shape[3]]
        if drawn.chance("mirror", 0.5)[n]:
            window = window.flip(-1)
        out.append(window.flip(-2) if drawn.chance("flip", 0.5)[n] else window)
    return torch.stack(out)


def test_moves_are_what_the_draws_say() -> None:
    stored, choice = pixels(), Augmentation(mirror=True, flip=True, shift=0.25, border="edge")
    torch.testing.assert_close(moved(stored, choice, draws()).float(), moved_by_hand(stored, choice))


def test_a_quarter_turn_is_exact_on_a_square() -> None:
    square = pixels(4, (1, 7, 7))

    class Quarter(Draws):
        def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> Array:
            return np.full(4, {"rotate 01": 90.0, "crop": 1.0}.get(purpose, 0.0))

    out = sampled(square, Augmentation(rotate=90), Quarter(0, 0, np.arange(4)))
    torch.testing.assert_close(out, torch.rot90(square, 1, (2, 3)).float(), atol=0.01, rtol=0)


CHOICES = [
    Augmentation(shift=0.2, mirror=True),
    Augmentation(rotate=20, scale=0.2, shear=10, stretch=0.2, crop=0.6, border="reflect"),
    Augmentation(brightness=0.3, contrast=0.3, saturation=0.5, hue=20),
    Augmentation(noise=0.3, erase=0.7),
    Augmentation(shift=0.2, mixup=0.4),
    Augmentation(shift=0.2, cutmix=1.0),
    Augmentation(mixup=1.0, cutmix=1.0, rotate=10),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: ",".join(choice.model_fields_set))
def test_a_sample_is_the_same_in_any_batch(choice: Augmentation) -> None:
    inputs, labels = pixels(40), torch.arange(40) % 3
    augmenter = Augmenter(choice, IMAGE, 3, seed=5)
    whole, targets = augmenter.batch(inputs, labels, torch.arange(40), epoch=2)
    some = torch.tensor([31, 4, 17])
    part, part_targets = augmenter.batch(inputs, labels, some, epoch=2)
    torch.testing.assert_close(part, whole[some], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part_targets, targets[some])
    other, _ = augmenter.batch(inputs, labels, some, epoch=3)
    assert not torch.equal(other, part)


@pytest.mark.parametrize("choice", CHOICES[4:], ids=["mixup", "cutmix", "both"])
def test_mixed_targets_are_shares(choice: Augmentation) -> None:
    inputs, labels = pixels(60), torch.arange(60) % 3
    _, targets = Augmenter(choice, IMAGE, 3, seed=5).batch(inputs, labels, torch.arange(60), epoch=0)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(60))
    assert ((targets > 0).sum(1) == 2).float().mean() > 0.4


def test_cutmix_share_is_the_pasted_area() -> None:
    """Partners of one constant value each: the share can be read off the pixels."""
    inputs = (torch.arange(30, dtype=torch.uint8) * 8).view(30, 1, 1, 1).expand(30, 3, 8, 9).contiguous()
    plain = Augmenter(Augmentation(), IMAGE, 30, seed=5).change(inputs, torch.arange(30), 0)
    mixed, targets = Augmenter(Augmentation(cutmix=1.0), IMAGE, 30, seed=5).batch(
        inputs, torch.arange(30), torch.arange(30), 0
    )
    own = (mixed - plain).abs().amax(1).flatten(1) < 1e-6
    same_partner = targets.max(1).values == 1
    shares = own.float().mean(1)
    torch.testing.assert_close(shares[~same_partner], targets.diagonal()[~same_partner])


def test_nothing_asked_is_plain_normalising() -> None:
    stored = pixels()
    assert Augmentation().changes_nothing
    torch.testing.assert_close(change(Augmentation(), stored), IMAGE.normalise(stored))


def test_contrast_and_brightness_by_hand() -> None:
    stored, choice = pixels(), Augmentation(brightness=0.2, contrast=0.3)
    drawn = draws()
    contrast = torch.from_numpy(1 + drawn.uniform("contrast", -0.3, 0.3)).view(-1, 1, 1, 1)
    brightness = torch.from_numpy(drawn.uniform("brightness", -0.2, 0.2)).view(-1, 1, 1, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).double() for values in (IMAGE.mean, IMAGE.std))
    expected = ((stored.double() / 255 - mean) * contrast + mean + brightness - mean) / std
    torch.testing.assert_close(change(choice, stored), expected.float(), atol=1e-5, rtol=1e-5)


def test_no_saturation_is_grey() -> None:
    class Grey(Draws):
        def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> Array:
            return np.full(16, -1.0 if purpose == "saturation" else 0.0)

    from convlens.data.augment.values import recoloured

    out = recoloured(pixels(), IMAGE, Augmentation(saturation=1.0), Grey(0, 0, np.arange(16)))
    raw = IMAGE.denormalise(out)
    torch.testing.assert_close(raw[:, 0], raw[:, 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(raw[:, 0], raw[:, 2], atol=1e-3, rtol=0)


def test_hue_turned_keeps_luma() -> None:
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    stored = pixels()
    raw = IMAGE.denormalise(change(Augmentation(hue=120), stored))
    torch.testing.assert_close((raw * luma).sum(1), (stored * luma).sum(1), atol=0.5, rtol=0)


def test_erased_box_is_the_mean() -> None:
    out = change(Augmentation(erase=1.0, erase_area=0.5), pixels(100))
    blank = (out == 0).all(1).float().mean((1, 2))
    assert (blank > 0).float().mean() > 0.8
    assert blank.max() < 0.9


def test_mutated_letters_stay_one_hot_and_gaps_stay_empty() -> None:
    letters = np.random.default_rng(0).integers(0, 4, (50, 40))
    stored = torch.from_numpy(np.eye(4, dtype=np.uint8)[letters].transpose(0, 2, 1).copy())
    stored[:, :, 30:] = 0
    out = change(Augmentation(mutate=0.3), stored, preprocessing=form("sequence", 4, (40,)))
    assert (out[:, :, :30].sum(1) == 1).all()
    assert (out[:, :, 30:] == 0).all()
    changed = (out.argmax(1) != stored.argmax(1))[:, :30].float().mean()
    assert 0.25 < changed < 0.35


def test_other_strand_is_the_reverse_complement() -> None:
    stored = torch.zeros(64, 4, 3)
    stored[:, 0, 0] = stored[:, 1, 1] = stored[:, 0, 2] = 1  # ACA; its other strand reads TGT
    out = change(Augmentation(mirror=True), stored, preprocessing=form("sequence", 4, (3,)))
    read = {"".join("ACGT"[i] for i in sample.argmax(0)) for sample in out}
    assert read == {"ACA", "TGT"}


@pytest.mark.parametrize(
    ("kind", "channels", "size"),
    [
        ("signal", 2, (33,)),
        ("sequence", 4, (20,)),
        ("volume", 1, (5, 6, 7)),
        ("spectral", 12, (3, 3)),
        ("image", 1, (8, 8)),
    ],
)
def test_every_kind_has_a_default_that_runs(kind: str, channels: int, size: tuple[int, ...]) -> None:
    preprocessing = form(kind, channels, size)
    stored = torch.rand(6, channels, *size)
    choice = default_augmentation(preprocessing)
    out = change(choice, stored, preprocessing=preprocessing)
    assert out.shape == stored.shape
    assert out.isfinite().all()
    assert not torch.equal(out, stored)
    full = Augmentation(rotate=10, scale=0.2, shear=5, stretch=0.1, crop=0.8, mirror=True, flip=True, shift=0.1)
    assert change(full, stored, preprocessing=preprocessing).shape == stored.shape


def test_characters_are_not_mirrored() -> None:
    colour = form("image", 3, (32, 32))
    assert not default_augmentation(colour, tuple("0123456789")).mirror
    assert not default_augmentation(form("image", 1, (28, 28)), ("shirt", "coat")).mirror
    assert default_augmentation(colour, ("cat", "dog")).mirror


def test_empty_batch() -> None:
    out, labels = Augmenter(CHOICES[1], IMAGE, 2, 0).batch(
        pixels(), torch.zeros(16).long(), torch.zeros(0).long(), 0
    )
    assert out.shape == (0, 3, 8, 9)
    assert len(labels) == 0
