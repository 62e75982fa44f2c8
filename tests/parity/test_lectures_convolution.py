"""Rows A4, B and C of the lectures: every worked number, through every algorithm that does not refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from convlens import ops
from convlens.errors import ArgumentError, BudgetError
from convlens.kernels.plain import plain_kernels

ALGORITHMS = ["auto", "vendor", *(kernel.algorithm for kernel in plain_kernels())]
K = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
X = torch.arange(9.0).view(1, 1, 3, 3)


def conv(input, weight, algorithm, **kwargs):
    return ops.conv2d(input, weight, algorithm=algorithm, **kwargs).round(decimals=4)[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b1_cross_correlation(algorithm):
    assert conv(X, K[None, None], algorithm)[0].tolist() == [[19, 25], [37, 43]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b2_image_and_kernel_of_one_size(algorithm):
    out = ops.conv2d(X, X, torch.ones(1), algorithm=algorithm)
    assert out.shape == (1, 1, 1, 1)
    assert round(out.item(), 4) == 205
    assert ops.conv2d(torch.zeros(1, 1, 7, 9), torch.zeros(1, 1, 2, 5), algorithm=algorithm).shape[2:] == (6, 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b3_flip_once_is_the_other(algorithm):
    turned = conv(X, K[None, None], algorithm, flip=True)
    assert turned[0].tolist() == [[5, 11], [23, 29]]
    assert torch.equal(turned, conv(X, K.flip(0, 1)[None, None], algorithm))
    weight = K[None, None].clone().requires_grad_()
    (grad,) = torch.autograd.grad(ops.conv2d(X, weight, flip=True, algorithm=algorithm).sum(), weight)
    assert grad.round(decimals=4)[0, 0].tolist() == [[24, 20], [12, 8]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b4_one_and_three_dimensions_and_many_bands(algorithm):
    line = ops.conv1d(torch.arange(5.0).view(1, 1, 5), torch.tensor([[[1.0, 2.0]]]), algorithm=algorithm)
    assert line.round(decimals=4).flatten().tolist() == [2, 5, 8, 11]
    cube = ops.conv3d(torch.arange(8.0).view(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2), algorithm=algorithm)
    assert cube.round(decimals=4).flatten().tolist() == [28]
    bands = ops.conv2d(torch.ones(1, 156, 4, 4), torch.ones(2, 156, 3, 3), algorithm=algorithm)
    assert bands.round(decimals=2).unique().tolist() == [156 * 9]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b5_sizes(algorithm):
    image = torch.zeros(1, 1, 32, 32)
    kernel = torch.zeros(1, 1, 5, 5)
    assert ops.conv2d(image, kernel, algorithm=algorithm).shape[-1] == 28
    assert ops.conv2d(image, kernel, padding="same", algorithm=algorithm).shape[-1] == 32
    assert ops.conv2d(image, kernel, padding="full", algorithm=algorithm).shape[-1] == 36
    mirrored = ops.conv2d(X, torch.ones(1, 1, 1, 1), padding=1, padding_mode="symmetric", algorithm=algorithm)
    assert mirrored.round(decimals=4)[0, 0, 0].tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b6_stride(algorithm):
    out = conv(X, K[None, None], algorithm, padding=1, stride=(3, 2))
    assert out[0].tolist() == [[0, 8], [6, 8]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b7_several_input_channels(algorithm):
    out = conv(torch.cat([X, X + 1], 1), torch.stack([K, K + 1])[None], algorithm)
    assert out[0].tolist() == [[56, 72], [104, 120]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b8_one_by_one_is_a_dense_layer_over_pixels(algorithm):
    torch.manual_seed(0)
    input, weight = torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 1, 1, dtype=torch.float64)
    pixels = input[0].flatten(1).t()
    product = pixels @ weight.view(2, 3).t()
    out = ops.conv2d(input, weight, algorithm=algorithm)
    torch.testing.assert_close(out[0].flatten(1).t(), product)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b10_a_stride_is_subsampling_and_dilation_spreads_the_kernel(algorithm):
    torch.manual_seed(0)
    input, weight = torch.randn(1, 2, 9, 9, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    whole = ops.conv2d(input, weight, algorithm=algorithm)
    strided = ops.conv2d(input, weight, stride=2, algorithm=algorithm)
    torch.testing.assert_close(strided, whole[..., ::2, ::2])
    spread = torch.zeros(3, 2, 5, 5, dtype=torch.float64)
    spread[..., ::2, ::2] = weight
    torch.testing.assert_close(
        ops.conv2d(input, weight, dilation=2, algorithm=algorithm), ops.conv2d(input, spread)
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b11_the_x_filter(algorithm):
    rows = ["11100", "01110", "00111", "00110", "01100"]
    image = torch.tensor([[float(bit) for bit in row] for row in rows])[None, None]
    cross = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])[None, None]
    assert conv(image, cross, algorithm)[0].tolist() == [[4, 3, 4], [2, 4, 3], [2, 3, 4]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_b12_the_rgb_walk_through(algorithm):
    out = ops.conv2d(torch.zeros(3, 5, 5), torch.zeros(2, 3, 3, 3), torch.ones(2), 2, 1, algorithm=algorithm)
    assert out.shape == (2, 3, 3)
    assert out.unique().tolist() == [1]


def test_row_b13_says_by_how_much_a_window_does_not_fit():
    with pytest.raises(ArgumentError, match=r"height of at least 5 .* = 4, 1 too few.*pad 1 more"):
        ops.conv2d(torch.zeros(1, 1, 4, 9), torch.zeros(1, 1, 5, 5))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_row_c5_both_gradients_are_convolutions(algorithm):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    out = ops.conv2d(x, w, algorithm=algorithm)
    g = torch.randn_like(out)
    to_x, to_w = torch.autograd.grad(out, (x, w), g)
    full = ops.conv2d(g, w.detach().transpose(0, 1), padding="full", flip=True, algorithm=algorithm)
    torch.testing.assert_close(to_x, full)
    as_images = ops.conv2d(x.detach().transpose(0, 1), g.transpose(0, 1), algorithm=algorithm)
    torch.testing.assert_close(to_w, as_images.transpose(0, 1))
    matrix = ops.toeplitz_matrix(w.detach(), (2, 5, 5))
    torch.testing.assert_close(to_x.flatten(1).t(), matrix.t() @ g.flatten(1).t())


# --- A4 and C2: the dense layer, the matrix, the kernel -------------------------------------------------------


def test_row_c2_the_matrix_holds_shifted_weights():
    matrix = ops.toeplitz_matrix(torch.tensor([[[1.0, 2.0, 3.0]]]), (5,)).to_dense()
    assert matrix.tolist() == [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]


@pytest.mark.parametrize(
    "stride, padding, dilation, groups", [(1, 0, 1, 1), (2, ((1, 2), (0, 1)), 2, 2), (1, "same", 1, 1)]
)
def test_row_a4_a_convolution_is_a_dense_layer(stride, padding, dilation, groups):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 7, dtype=torch.float64)
    w = torch.randn(6, 4 // groups, 2, 3, dtype=torch.float64, requires_grad=True)
    out = ops.conv2d(x, w, None, stride, padding, dilation, groups)
    matrix = ops.toeplitz_matrix(w, x.shape, stride, padding, dilation, groups)
    torch.testing.assert_close(matrix @ x.flatten(), out.flatten())
    dense = ops.dense_tensor(w, (6, 7), stride, padding, dilation, groups)
    assert dense.shape == (*out.shape, *x.shape)
    torch.testing.assert_close(torch.tensordot(dense, x, 3), out)
    (through_dense,) = torch.autograd.grad(torch.tensordot(dense, x, 3).square().sum(), w)
    (through_conv,) = torch.autograd.grad(out.square().sum(), w)
    torch.testing.assert_close(through_dense, through_conv)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("shape, size", [((3,), (6,)), ((2, 3), (5, 4)), ((2, 2, 2), (3, 4, 3))])
def test_row_a4_and_back_again(padding, shape, size):
    torch.manual_seed(0)
    kernel = torch.randn(shape, dtype=torch.float64)
    dense = ops.dense_tensor(kernel, size, padding=padding)
    torch.testing.assert_close(ops.as_convolution(dense, padding), kernel)


def test_row_a4_names_the_principle_that_is_broken_and_where():
    dense = ops.dense_tensor(K, (3, 3))
    moved = dense.clone()
    moved[1, 0, 1, 1] = 5
    with pytest.raises(
        ArgumentError, match=r"invariance.*1 at output \(0, 0\) and 5 at output \(1, 0\).*\(0, 1\)"
    ):
        ops.as_convolution(moved)
    with pytest.raises(ArgumentError, match=r"locality: .* outside a kernel of \(1, 1\).*3 at offset \(1, 1\)"):
        ops.as_convolution(dense, max_kernel=1)
    assert torch.equal(ops.as_convolution(dense), K)


def test_row_b8_a_dense_layer_is_a_kernel_of_the_images_size():
    torch.manual_seed(0)
    dense, image = torch.nn.Linear(2 * 3 * 3, 4), torch.randn(5, 2, 3, 3)
    out = ops.conv2d(image, dense.weight.view(4, 2, 3, 3), dense.bias)
    torch.testing.assert_close(out.flatten(1), dense(image.flatten(1)))
    larger = ops.conv2d(torch.randn(1, 2, 6, 7), dense.weight.view(4, 2, 3, 3), dense.bias)
    assert larger.shape == (1, 4, 4, 5)


def test_a_matrix_above_the_budget_is_refused_with_the_figure():
    with pytest.raises(BudgetError, match="MiB"):
        ops.toeplitz_matrix(torch.empty(100, 100, 5, 5), (100, 64, 64))


def test_flip_and_torch_agree_on_true_convolution():
    a, b = torch.arange(1.0, 5), torch.tensor([1.0, 10, 100])
    out = ops.conv1d(a.view(1, 1, -1), b.view(1, 1, -1), padding="full", flip=True)
    assert out.flatten().tolist() == [1, 12, 123, 234, 340, 400]
    assert (
        F.conv1d(a.view(1, 1, -1), b.flip(0).view(1, 1, -1), padding=2).flatten().tolist()
        == out.flatten().tolist()
    )
