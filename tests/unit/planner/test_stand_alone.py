"""A kernel that does not promise batch invariance is tried, and runs image by image only where it must."""

from __future__ import annotations

import pytest
import torch

from convlens import planner
from convlens.kernels.vendor import Vendor
from convlens.planner import choose
from convlens.planner.trial import images_stand_alone
from convlens.window import ConvProblem

PROBLEM = ConvProblem("forward", 4, 3, (9, 8), 5, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))


class Alike(Vendor):
    """Whole batches, each image as if it were alone."""

    name = "alike"
    batch_invariant = False

    def __init__(self):
        self.batches = []

    def run(self, problem, *operands):
        self.batches.append(problem.batch)
        activations, *rest = operands
        return (torch.cat([super(Alike, self).run(PROBLEM_OF_ONE, one[None], *rest)[0] for one in activations]),)


class Unlike(Alike):
    """Images of a batch are off by a rounding."""

    def run(self, problem, *operands):
        out = super().run(problem, *operands)[0]
        return (out if problem.batch == 1 else torch.nextafter(out, out + 1),)


PROBLEM_OF_ONE = ConvProblem("forward", 1, 3, (9, 8), 5, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))


def test_the_trial_sees_the_last_bit():
    assert images_stand_alone(Alike(), PROBLEM)
    assert not images_stand_alone(Unlike(), PROBLEM)


@pytest.mark.parametrize(("kind", "batches"), [(Alike, [4]), (Unlike, [1, 1, 1, 1])])
def test_whole_batches_where_the_bits_allow_it(kind, batches, monkeypatch):
    kernel = kind()
    monkeypatch.setitem(choose._by_name(), "alike", kernel)
    monkeypatch.setattr(choose, "_alone", {})
    operands = torch.randn(4, 3, 9, 8), torch.randn(5, 3, 3, 3), None
    plan = choose.Plan(PROBLEM, "alike", "asked", ())
    planner.set_batch_invariant(True)
    try:
        choose.execute(plan, *operands)
        kernel.batches.clear()  # those of the trial
        found = choose.execute(plan, *operands)[0]
    finally:
        planner.set_batch_invariant(False)
    assert kernel.batches == batches
    torch.testing.assert_close(found, torch.nn.functional.conv2d(*operands, padding=1))
