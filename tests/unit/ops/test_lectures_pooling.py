"""LECTURES D1–D3 and B13 as tests, named after the rows."""

from __future__ import annotations

import pytest
import torch

from convlens import ops
from convlens.errors import ShapeError

PLANE = torch.arange(9.0).view(1, 1, 3, 3)


def test_d1_max_pooling():
    assert ops.max_pool2d(PLANE, 2, 1)[0, 0].tolist() == [[4, 5], [7, 8]]


def test_d2_it_forgives_a_shift_of_one_pixel():
    step = torch.tensor([[1.0, 1, 0, 0, 0]] * 4).view(1, 1, 4, 5)
    shifted = torch.tensor([[1.0, 1, 1, 0, 0]] * 4).view(1, 1, 4, 5)
    detector = torch.tensor([[[[1.0, -1.0]]]])
    edges, moved = ops.conv2d(step, detector), ops.conv2d(shifted, detector)
    assert edges[0, 0].tolist() == [[0, 1, 0, 0]] * 4
    assert moved[0, 0].tolist() == [[0, 0, 1, 0]] * 4
    assert ops.max_pool2d(edges, 2, 1)[0, 0].tolist() == [[1, 1, 0]] * 3
    assert ops.max_pool2d(moved, 2, 1)[0, 0].tolist() == [[0, 1, 1]] * 3
    # column 1 answers to the edge before and after the shift
    assert (ops.max_pool2d(edges, 2, 1) * ops.max_pool2d(moved, 2, 1))[0, 0, :, 1].tolist() == [1, 1, 1]


def test_d3_average_pooling():
    assert ops.avg_pool2d(PLANE, 2, 1)[0, 0].tolist() == [[2, 3], [5, 6]]
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert ops.avg_pool2d(image, 2)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert ops.max_pool2d(image, 2)[0, 0].tolist() == [[5, 7], [13, 15]]
    # padding and stride: windows of 3 at every second place
    assert ops.max_pool2d(image, 3, 2, 1)[0, 0].tolist() == [[5, 7], [13, 15]]


def test_d3_every_channel_by_itself():
    two = torch.cat([PLANE, -PLANE], 1)
    pooled = ops.max_pool2d(two, 2, 1)
    assert pooled[0, 0].tolist() == [[4, 5], [7, 8]]
    assert pooled[0, 1].tolist() == [[0, -1], [-3, -4]]
    assert ops.avg_pool2d(two, 2, 1).shape == (1, 2, 2, 2)


def test_b13_a_window_that_does_not_fit_says_by_how_much():
    with pytest.raises(ShapeError) as raised:
        ops.max_pool2d(torch.zeros(1, 1, 4, 2), 3, 2)
    text = str(raised.value)
    for part in (
        "at least 3 columns",
        "1*(3-1)+1 = 3",
        "2 + 0 + 0 = 2 columns",
        "1 columns are missing",
        "'same'",
    ):
        assert part in text
    # with what the message proposes it fits
    assert ops.max_pool2d(torch.zeros(1, 1, 4, 2), 3, 2, "same").shape == (1, 1, 2, 1)


def test_b13_four_by_four_window_three_stride_two():
    """One column is left over: floor drops it, ceil_mode lets a window overhang, 'same' pads it."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert ops.max_pool2d(image, 3, 2)[0, 0].tolist() == [[10]]
    assert ops.max_pool2d(image, 3, 2, ceil_mode=True)[0, 0].tolist() == [[10, 11], [14, 15]]
    assert ops.max_pool2d(image, 3, 2, "same")[0, 0].tolist() == [[10, 11], [14, 15]]
    assert ops.max_pool2d(image, 3, 2, ((0, 1), (0, 1)))[0, 0].tolist() == [[10, 11], [14, 15]]
