"""torch's own operator samples (`op_db`) against our pooling, unpooling, unfold and fold."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

from convlens import ops

KINDS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool", "max_unpool")
NAMES = {f"{kind}{ndim}d" for kind in KINDS for ndim in (1, 2, 3)} | {"unfold", "fold"}
INFOS = [
    info
    for info in op_db
    if info.name.startswith("nn.functional.")
    and info.name.removeprefix("nn.functional.") in NAMES
    and not info.variant_test_name
]
STEP = {"max_pool1d": 7, "max_pool2d": 11, "max_pool3d": 7, "max_unpool2d": 3}
"""torch lists thousands of max pools; a prime step still meets every argument."""


def own(info):
    return getattr(ops, info.name.removeprefix("nn.functional."))


def samples(info, dtype, requires_grad=False):
    step = STEP.get(info.name.removeprefix("nn.functional."), 1)
    return list(info.sample_inputs("cpu", dtype, requires_grad=requires_grad))[::step]


def tensors(result):
    return [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]


def test_the_samples_are_found():
    assert {info.name.removeprefix("nn.functional.") for info in INFOS} >= NAMES - {
        "lp_pool1d",
        "lp_pool2d",
        "lp_pool3d",
        "fold",
    }


@pytest.mark.parametrize(
    ("info", "dtype"),
    [
        pytest.param(info, dtype, id=f"{info.name.rpartition('.')[2]}-{dtype}")
        for info in INFOS
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
        if info.supports_dtype(dtype, "cpu")
    ],
)
def test_values_layouts_and_gradients(info, dtype):
    with_grad = dtype in info.supported_backward_dtypes("cpu")
    for sample in samples(info, dtype, with_grad):
        for case in (sample, sample.noncontiguous()):
            want = tensors(info.op(case.input, *case.args, **case.kwargs))
            got = tensors(own(info)(case.input, *case.args, **case.kwargs))
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, equal_nan=True, check_stride=True, rtol=0, atol=0)
            if with_grad and case.input.requires_grad and want[0].requires_grad:
                upstream = torch.randn_like(want[0])
                torch.testing.assert_close(
                    torch.autograd.grad(got[0], case.input, upstream),
                    torch.autograd.grad(want[0], case.input, upstream),
                    check_stride=True,
                    equal_nan=True,
                )


@pytest.mark.parametrize(
    "info", [i for i in INFOS if i.error_inputs_func], ids=lambda info: info.name.rpartition(".")[2]
)
def test_each_of_torchs_errors_is_an_error_here(info):
    for case in info.error_inputs("cpu"):
        sample = case.sample_input
        with pytest.raises(case.error_type, match=case.error_regex):
            own(info)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name.rpartition(".")[2])
def test_first_and_second_gradients(info):
    name = info.name.removeprefix("nn.functional.")
    source = next((i for i in op_db if i.name == info.name and i.variant_test_name == "grad"), info)
    found = [s for s in samples(source, torch.float64, True) if s.input.numel() <= 200]
    for sample in found[:: max(1, len(found) // 4)][:4]:

        def call(x, sample=sample):
            return tensors(getattr(ops, name)(x, *sample.args, **sample.kwargs))[0]

        assert torch.autograd.gradcheck(call, sample.input, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, sample.input, fast_mode=True)
