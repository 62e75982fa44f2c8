"""torch's own module samples (`module_db`) against our layers: values, gradients, state_dict."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.common_modules import module_db

from convlens import layers

KINDS = ("Conv", "LazyConv", "MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
INFOS = [info for info in module_db if info.module_cls.__name__.rstrip("123d").removesuffix("Transpose") in KINDS]


def own_class(info):
    return getattr(layers, info.module_cls.__name__)


def test_the_samples_are_found():
    assert len(INFOS) >= 24


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_sample(info, dtype):
    torch.manual_seed(0)
    cases = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    for case in cases:
        arguments, options = case.constructor_input.args, dict(case.constructor_input.kwargs)
        theirs = info.module_cls(*arguments, **options).to(dtype)
        ours = own_class(info)(*arguments, **options).to(dtype)
        x = case.forward_input.args[0].detach()
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        want = theirs(first, *case.forward_input.args[1:])
        ours(second)  # lazy layers get their parameters
        ours.load_state_dict(theirs.state_dict(), strict=True)
        got = ours(second, *case.forward_input.args[1:])
        torch.testing.assert_close(got, want, equal_nan=True)
        got, want = (r[0] if isinstance(r, tuple) else r for r in (got, want))
        upstream = torch.randn(want.shape, dtype=dtype)
        want.backward(upstream)
        got.backward(upstream)
        torch.testing.assert_close(second.grad, first.grad, equal_nan=True)
        for own, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own.grad, torchs.grad)
