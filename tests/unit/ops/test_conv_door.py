"""The door of the convolutions: padding forms, modes, layouts and gradients against torch in float64."""

import pytest
import torch
from torch.nn import functional as F

from convlens import ops

CONV = {1: (ops.conv1d, F.conv1d), 2: (ops.conv2d, F.conv2d), 3: (ops.conv3d, F.conv3d)}


def tensors(ndim: int, size: int = 7, kernel: int = 3, groups: int = 1) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    input = torch.randn(2, 4, *(size + i for i in range(ndim)), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // groups, *(kernel,) * ndim, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    return input, weight, bias


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("kernel", [2, 3])
def test_same_at_stride_one_is_torchs(ndim, kernel):
    input, weight, bias = tensors(ndim, kernel=kernel)
    ours, theirs = CONV[ndim]
    torch.testing.assert_close(
        ours(input, weight, bias, padding="same"), theirs(input, weight, bias, padding="same")
    )


@pytest.mark.parametrize("size, stride, pad", [(5, 2, (1, 1)), (6, 2, (0, 1)), (7, 3, (1, 1)), (8, 3, (0, 1))])
def test_same_with_stride_places_like_tensorflow(size, stride, pad):
    input = torch.randn(1, 2, size)
    weight = torch.randn(3, 2, 3)
    out = ops.conv1d(input, weight, stride=stride, padding="same")
    assert out.shape[-1] == -(-size // stride)
    torch.testing.assert_close(out, F.conv1d(F.pad(input, pad), weight, stride=stride))


def test_row_b5_even_kernels_pad_more_above_with_same_lower():
    input, weight, _ = tensors(2, kernel=4)
    out = ops.conv2d(input, weight, padding="same_lower")
    torch.testing.assert_close(out, F.conv2d(F.pad(input, (2, 1, 2, 1)), weight))


def test_full_and_pairs_and_valid():
    input, weight, _ = tensors(2)
    torch.testing.assert_close(ops.conv2d(input, weight, padding="full"), F.conv2d(input, weight, padding=2))
    torch.testing.assert_close(ops.conv2d(input, weight, padding="valid"), F.conv2d(input, weight))
    uneven = ops.conv2d(input, weight, padding=((1, 2), (0, 3)))
    torch.testing.assert_close(uneven, F.conv2d(F.pad(input, (0, 3, 1, 2)), weight))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_torchs(ndim, mode):
    input, weight, bias = tensors(ndim)
    ours, theirs = CONV[ndim]
    padded = F.pad(input, [2, 1] * ndim, mode=mode)
    out = ours(input, weight, bias, padding=((2, 1),) * ndim, padding_mode=mode)
    torch.testing.assert_close(out, theirs(padded, weight, bias))


def test_symmetric_repeats_the_edge():
    input = torch.arange(3.0).reshape(1, 1, 3)
    out = ops.conv1d(input, torch.ones(1, 1, 1), padding=((2, 5),), padding_mode="symmetric")
    assert out.flatten().tolist() == [1, 0, 0, 1, 2, 2, 1, 0, 0, 1]


def test_reflection_goes_on_beyond_the_input():
    input = torch.arange(3.0).reshape(1, 1, 3)
    out = ops.conv1d(input, torch.ones(1, 1, 1), padding=((3, 4),), padding_mode="reflect")
    assert out.flatten().tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_flip_is_true_convolution():
    input, weight, _ = tensors(2)
    torch.testing.assert_close(ops.conv2d(input, weight, flip=True), F.conv2d(input, weight.flip(2, 3)))


def test_eight_bits_are_summed_in_32():
    input = torch.full((1, 8, 5, 5), 255, dtype=torch.uint8)
    weight = torch.full((2, 8, 3, 3), -128, dtype=torch.int8)
    out = ops.conv2d(input, weight)
    assert out.dtype == torch.int32
    assert out.unique().tolist() == [-255 * 128 * 72]
    assert ops.conv_transpose2d(input, weight.transpose(0, 1)).dtype == torch.int32


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("stride, dilation, extra", [(1, 1, 0), (2, 1, 1), (3, 2, 2), (1, 3, 2), (2, 3, 2)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("algorithm", ["auto", "vendor"])
def test_transposed_is_torchs(ndim, stride, dilation, extra, groups, algorithm):
    ours = (ops.conv_transpose1d, ops.conv_transpose2d, ops.conv_transpose3d)[ndim - 1]
    theirs = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[ndim - 1]
    torch.manual_seed(0)
    input = torch.randn(2, 4, *(3,) * ndim, dtype=torch.float64)
    weight = torch.randn(4, 3, *(3,) * ndim, dtype=torch.float64)
    args = (None, stride, 1, extra, groups, dilation)
    torch.testing.assert_close(ours(input, weight, *args, algorithm=algorithm), theirs(input, weight, *args))


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", ["valid", "same", "same_lower", "full", ((0, 1), (2, 1))])
def test_transposed_is_the_gradient_of_the_convolution_of_that_padding(stride, padding):
    torch.manual_seed(0)
    grad = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    out = ops.conv_transpose2d(grad, weight, stride=stride, padding=padding)
    if padding in ("same", "same_lower"):
        assert out.shape[2:] == (6 * stride, 7 * stride)
    input = torch.zeros_like(out, requires_grad=True)
    again = ops.conv2d(input, weight, stride=stride, padding=padding)
    (expected,) = torch.autograd.grad(again, input, grad)
    torch.testing.assert_close(out, expected)
