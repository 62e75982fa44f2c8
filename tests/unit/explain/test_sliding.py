"""The picture filter block by block: every border, any width of vector, and blocks that meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from checking.guards import guarded
from convlens.explain import BORDERS, sliding
from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.picture import correlate_apart, correlate_inside

SCIPY = {
    "symmetric": "reflect",
    "reflect": "mirror",
    "replicate": "nearest",
    "circular": "wrap",
    "zeros": "constant",
}


def filtered(picture, column, rows, border):
    return sliding.slide(torch.from_numpy(picture), torch.tensor(column), torch.tensor(rows), border).numpy()


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("bytes_", [1, 3000, 1 << 20], ids=["row by row", "few rows", "at once"])
def test_blocks_meet(border, bytes_, monkeypatch):
    monkeypatch.setattr(sliding, "_BLOCK_BYTES", bytes_)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (37, 29, 3), dtype=np.uint8)
    column, row = [0.5, 0.0, -1.0, 2.0, 0.25, 1.0], [1.0, -2.0, 0.5]
    kernel = np.outer(column, row)[:, :, None]
    wanted = ndimage.correlate(picture.astype(np.float64), kernel, mode=SCIPY[border])
    np.testing.assert_allclose(filtered(picture, column, row, border), wanted, atol=2e-3)
    dense = rng.standard_normal((4, 5)).astype(np.float32)
    wanted = ndimage.correlate(
        picture.astype(np.float64), dense[:, :, None].astype(np.float64), mode=SCIPY[border]
    )
    np.testing.assert_allclose(filtered(picture, [], dense.tolist(), border), wanted, atol=2e-3)


@pytest.mark.parametrize("border", ["symmetric", "reflect", "circular", "zeros"])
def test_a_kernel_larger_than_the_picture(border):
    picture = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    column = np.linspace(-1, 1, 17).tolist()
    wanted = ndimage.correlate1d(picture.astype(np.float64), column, axis=0, mode=SCIPY[border])
    np.testing.assert_allclose(filtered(picture, column, [1.0], border), wanted, atol=1e-4)


@pytest.mark.parametrize("lanes", [4, 8])
def test_any_width_of_vector(lanes):
    if lanes > host().lanes:
        pytest.skip("this machine's vectors are shorter")
    picture = np.random.default_rng(1).standard_normal((5, 43, 1)).astype(np.float32)
    row = np.linspace(0.1, 2, 21).tolist()  # more weights than registers keep
    with forced(host().narrowed(lanes)):
        found = filtered(picture, [1.0], row, "zeros")
    wanted = ndimage.correlate1d(picture.astype(np.float64), row, axis=1, mode="constant")
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_kernel_of_zeros_gives_zeros():
    assert not filtered(np.ones((4, 5, 3), np.uint8), [], [[0.0, 0.0]], "zeros").any()


@pytest.mark.parametrize("against", ["end", "start"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(9, 69, 3), (5, 53, 1), (2, 64, 4)])
def test_nothing_outside_the_picture_is_touched(size, kind, against):
    height, width, channels = size
    picture = (torch.rand(height, width * channels) * 200).to(kind)
    fenced = guarded(picture, against=against)
    out = guarded(torch.full((height, width * channels), torch.nan), against=against)
    column, row = [1.0, 2.0, 0.5, 1.0], [0.5, 0.0, -1.0, 2.0, 1.0]
    down = [max(0, min(height - 1, i - 2)) for i in range(height + 3)]
    across = [max(0, min(width - 1, i - 2)) for i in range(width + 4)]
    assert correlate_apart(fenced, out, column, row, down, across, channels)
    exact = picture.view(1, height, width, channels).double().numpy()[0]
    kernel = np.outer(column, row)[:, :, None]
    wanted = ndimage.correlate(exact, kernel, mode="nearest").reshape(height, -1)
    np.testing.assert_allclose(out.numpy(), wanted, atol=2e-3)
    out.fill_(torch.nan)
    done = correlate_inside(fenced, out, torch.tensor(kernel[:, :, 0], dtype=torch.float32), down, channels)
    assert done is not None
    inner = slice(done[0] * channels, done[1] * channels)
    np.testing.assert_allclose(out.numpy()[:, inner], wanted[:, inner], atol=2e-3)
    assert out[:, : inner.start].isnan().all() and out[:, inner.stop :].isnan().all()
