"""The picture filter block by block: every border, any width of vector, and blocks that meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from convlens.explain import BORDERS, sliding
from convlens.kernels.cpu.codegen import forced, host

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
