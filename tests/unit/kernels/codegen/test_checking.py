"""The parity battery itself must fail on kernels that are wrong in each of the ways it looks for."""

import pytest
import torch

from checking.parity import conv_parity, problem_of
from convlens.kernels.contract import Kernel
from convlens.kernels.vendor import Vendor

PROBLEM = problem_of(2, 3, (7, 9), 4, 3, padding=1)


class Wrong(Kernel):
    """The vendor's results after one mistake."""

    name = "test.wrong"
    algorithm = "direct"

    def __init__(self, spoil, direction):
        self.spoil, self.direction = spoil, direction

    def refusal(self, problem):
        return None if problem.direction == self.direction else "other direction"

    def run(self, problem, *operands):
        return self.spoil(problem, Vendor().run(problem, *operands), operands)


def one_element_off(problem, results, operands):
    results[0].view(-1)[0] += 1e-3 if results[0].numel() else 0
    return results


MISTAKES = {
    "one element": one_element_off,
    "unwritten": lambda p, r, o: (torch.empty_like(r[0]), *r[1:]),
    "shape": lambda p, r, o: (r[0][..., :-1], *r[1:]),
    "precision": lambda p, r, o: (r[0].bfloat16().float(), *r[1:]),
    "nan swallowed": lambda p, r, o: (r[0].nan_to_num(0), *r[1:]),
    "order": lambda p, r, o: (r[0].transpose(2, 3).contiguous().transpose(2, 3), *r[1:]),
    "missing result": lambda p, r, o: r[:-1],
}


@pytest.mark.parametrize(
    ("mistake", "direction"),
    # memory order is checked where torch promises it: forward
    [(m, d) for m in MISTAKES for d in ("forward", "input_grad", "weight_grad") if m != "order" or d == "forward"],
)
def test_battery_fails_on(mistake, direction):
    with pytest.raises(AssertionError):
        conv_parity(Wrong(MISTAKES[mistake], direction), [PROBLEM])


def test_battery_fails_on_a_kernel_that_refuses_all():
    with pytest.raises(AssertionError, match="refuses"):
        conv_parity(Wrong(lambda p, r, o: r, "none"), [PROBLEM])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_battery_passes_the_vendor(layout):
    measured = conv_parity(
        Vendor(), [problem_of(2, 4, (7, 9), 6, 3, padding=((1, 2), (0, 1)), groups=2, layout=layout)]
    )
    assert {m.problem.direction for m in measured} == {"forward", "input_grad", "weight_grad"}
    assert all(m.ratio <= 2 for m in measured)
