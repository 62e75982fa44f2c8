"""A convolution's result may be changed in place: ``ReLU(inplace=True)`` follows most convolutions there are."""

from __future__ import annotations

import pytest
import torch

from convlens import ops
from convlens.ops.layout import not_a_view


# the first two are large enough for the results' pool of the compiled kernels
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (8, 3, 128, 128), (2, 4, 8, 8)])
@pytest.mark.parametrize("operator", [ops.conv2d, ops.conv_transpose2d])
def test_relu_in_place_after_a_convolution(shape, operator):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(*((64, shape[1]) if operator is ops.conv2d else (shape[1], 64)), 3, 3, requires_grad=True)
    out = operator(x, weight, None, 1, 1)
    want = out.detach().clone().relu_()
    assert torch.equal(torch.relu_(out), want)
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_not_a_view_shares_the_memory():
    base = torch.arange(6.0)
    view = base[2:].view(2, 2)
    own = not_a_view(view)
    assert not own._is_view()
    assert own.data_ptr() == view.data_ptr()
    assert torch.equal(own, view)
    assert not_a_view(own) is own
