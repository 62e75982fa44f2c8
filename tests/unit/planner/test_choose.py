"""The planner's choices: eligibility, measurement, memory, pins and reasons."""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import replace

import pytest
import torch

from convlens import planner
from convlens.errors import ArgumentError, UnsupportedError
from convlens.kernels.contract import Kernel
from convlens.kernels.vendor import Vendor
from convlens.planner import choose, settings
from convlens.planner.keys import bucketed, from_key, to_key
from convlens.planner.machine import Machine
from convlens.planner.store import Measurement, Store
from convlens.planner.trial import Part, error_ratios, measure, operands_for
from convlens.window import ConvProblem, Epilogue

PROBLEM = ConvProblem("forward", 4, 8, (12, 12), 8, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))


class Twin(Vendor):
    """The vendor under another name, with the error class and refusal of choice."""

    name = "test.twin"
    algorithm = "twin"

    def __init__(self, refusal: str | None = None, noise: float = 0.0) -> None:
        self._refusal = refusal
        self._noise = noise

    def refusal(self, problem: ConvProblem) -> str | None:
        return self._refusal

    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        first, *rest = super().run(problem, *operands)
        return (first + self._noise * torch.randn_like(first), *rest)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch):
    """Replace the list of kernels for one test."""

    def install(*offered: Kernel) -> None:
        listed = (Vendor(), *offered)
        monkeypatch.setattr(choose, "all_kernels", lambda: listed)
        choose._plans.clear()
        choose._names.clear()

    yield install
    choose._plans.clear()
    choose._names.clear()


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings, "_current", settings.Settings())
    yield
    planner.unpin()


def remembered(**times_us: float) -> Store:
    store = Store(None)
    figures = {
        name.replace("__", "."): Measurement(us, us, us, 5, 3.0 if name != "vendor" else 1.0)
        for name, us in times_us.items()
    }
    store.remember(choose.context_key("cpu"), to_key(PROBLEM), figures)
    store.remember_machine(choose.context_key("cpu"), 100.0, 10.0)
    return store


def test_fastest_measured_kernel_wins_with_reason(kernels):
    kernels(Twin())
    made = planner.plan(PROBLEM, store=remembered(vendor=1000.0, test__twin=400.0))
    assert made.kernel == "test.twin"
    assert made.reason == "measured 400 µs, next vendor 1.00 ms"
    assert made.chosen.error == 3.0


def test_a_narrow_win_is_no_win(kernels):
    kernels(Twin())
    made = planner.plan(PROBLEM, store=remembered(vendor=1000.0, test__twin=985.0))
    assert made.kernel == "vendor"
    assert "no clear win" in made.reason


def test_error_above_the_class_is_refused(kernels):
    kernels(Twin())
    planner.set_precision("exact")
    made = planner.plan(PROBLEM, store=remembered(vendor=1000.0, test__twin=400.0))
    assert made.kernel == "vendor"
    twin = next(c for c in made.candidates if c.name == "test.twin")
    assert twin.refusal == "error 3.0× that of a direct sum, 'exact' allows 2×"


def test_workspace_limit_is_obeyed(kernels):
    class Hungry(Twin):
        def workspace_bytes(self, problem: ConvProblem) -> int:
            return 4096

    kernels(Hungry())
    planner.set_workspace_limit(4095)
    made = planner.plan(PROBLEM, store=remembered(vendor=1000.0, test__twin=400.0))
    assert made.kernel == "vendor"
    refusal = next(c.refusal for c in made.candidates if c.name == "test.twin")
    assert refusal == "needs 4,096 bytes of workspace, the limit is 4,095"


def test_the_library_underneath_keeps_to_the_limit_too_where_another_kernel_does(kernels):
    class Lean(Twin):
        def workspace_bytes(self, problem: ConvProblem) -> int:
            return 0

    class Other(Lean):
        name = "test.other"

    planner.set_workspace_limit(0)
    kernels(Lean())
    made = planner.plan(PROBLEM, store=remembered(vendor=100.0, test__twin=400.0))
    assert made.kernel == "test.twin"
    vendor = next(c for c in made.candidates if c.name == "vendor")
    assert vendor.refusal is not None and vendor.refusal.endswith("bytes of workspace, the limit is 0")
    kernels(Lean(refusal="no"))
    assert planner.plan(PROBLEM, store=remembered(vendor=100.0)).kernel == "vendor"
    kernels(Lean(), Other())
    planner.set_precision("exact")
    made = planner.plan(PROBLEM, store=remembered(vendor=100.0, test__twin=400.0, test__other=300.0))
    assert (made.kernel, made.reason) == ("vendor", "no other kernel keeps to the limits")


def test_small_problems_are_not_measured(kernels):
    kernels(Twin())
    small = replace(PROBLEM, batch=1, input_size=(4, 4), in_channels=1, out_channels=1)
    made = planner.plan(small, store=Store(None))
    assert made.kernel == "vendor"
    assert made.reason.startswith("too small to gain")


def test_small_problems_are_computed_exactly(kernels):
    class Rounding(Twin):
        precision = "high"

    kernels(Rounding())
    made = planner.plan(PROBLEM, store=remembered(vendor=1000.0, test__twin=400.0))
    assert made.kernel == "vendor"
    planner.set_precision("fast")
    assert planner.plan(PROBLEM, store=remembered(vendor=1000.0, test__twin=400.0)).kernel == "test.twin"


def test_estimate_mode_measures_nothing(kernels, monkeypatch):
    kernels(Twin())
    monkeypatch.setattr(choose, "measure", lambda *a, **k: pytest.fail("measured"))
    monkeypatch.setattr(settings, "_current", settings.Settings(mode="estimate"))
    made = planner.plan(PROBLEM, store=remembered())
    assert "nothing measured" in made.reason


def test_measured_once_then_remembered(kernels, tmp_path, monkeypatch):
    kernels(Twin())
    store = Store(tmp_path / "plans.sqlite")
    first = planner.plan(PROBLEM, store=store)
    assert all(c.median_us for c in first.candidates)
    choose._plans.clear()
    monkeypatch.setattr(choose, "measure", lambda *a, **k: pytest.fail("measured again"))
    again = planner.plan(PROBLEM, store=Store(tmp_path / "plans.sqlite"))
    assert again == first


def test_batches_share_a_bucket(kernels):
    assert bucketed(replace(PROBLEM, batch=100)).batch == 128
    assert bucketed(replace(PROBLEM, batch=128)).batch == 128
    assert bucketed(replace(PROBLEM, batch=13)).batch == 13


def test_named_algorithm_must_not_refuse(kernels):
    kernels(Twin(refusal="needs stride 1, got (2, 2)"))
    with pytest.raises(UnsupportedError, match=r"test\.twin needs stride 1, got \(2, 2\)"):
        planner.plan(PROBLEM, "twin")
    with pytest.raises(UnsupportedError, match="'auto' or one of"):
        planner.plan(PROBLEM, "nonsense")


def test_pinned_kernel_is_used(kernels):
    kernels(Twin())
    planner.pin({to_key(PROBLEM): "test.twin"})
    assert planner.plan(PROBLEM, store=remembered()).reason == "pinned"
    assert planner.used()[to_key(PROBLEM)] == "test.twin"
    with pytest.raises(ArgumentError, match="kernel names among"):
        planner.pin({to_key(PROBLEM): "cpu.gone"})


def test_batch_invariant_runs_image_by_image(kernels):
    kernels()
    planner.set_batch_invariant(True)
    made = planner.plan(PROBLEM, store=remembered())
    image, weight, bias = operands_for(PROBLEM)
    (whole,) = planner.execute(made, image, weight, bias)
    single = replace(PROBLEM, batch=1)
    for index in range(PROBLEM.batch):
        (alone,) = planner.execute(
            planner.plan(single, store=remembered()), image[index : index + 1], weight, bias
        )
        assert torch.equal(whole[index : index + 1], alone)


def test_batch_invariant_choice_does_not_see_the_batch():
    """A batch that is worth measuring, of images that are not: both are planned alike."""
    first = ConvProblem("forward", 8, 1, (32, 32), 6, (5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1))
    planner.set_batch_invariant(True)
    alone = replace(first, batch=1)
    assert planner.plan(first, store=remembered()).kernel == planner.plan(alone, store=remembered()).kernel


def test_batch_invariant_choice_does_not_see_the_estimate_of_the_batch(kernels, monkeypatch):
    """A kernel that looks hopeless for the batch, and is the best for one image, is chosen for both or neither."""

    class Single(Twin):
        name = "test.single"

        def estimate_us(self, problem: ConvProblem, machine: Machine) -> float:
            return 1.0 if problem.batch == 1 else 1e9

    times = {"vendor": 100.0, "test.twin": 50.0, "test.single": 10.0}
    figures = {name: Measurement(us, us, us, 5, 1.0) for name, us in times.items()}
    monkeypatch.setattr(choose, "measure", lambda problem, wanted: {k.name: figures[k.name] for k in wanted})
    kernels(Twin(), Single())
    planner.set_batch_invariant(True)
    problem = replace(PROBLEM, batch=64, input_size=(64, 64))
    store = remembered()
    together = planner.plan(problem, store=store)
    assert together.problem == problem
    assert together.kernel == planner.plan(replace(problem, batch=1), store=store).kernel == "test.single"


def test_precision_names_are_checked():
    with pytest.raises(ArgumentError, match="'exact' or 'high' or 'fast', received 'best'"):
        planner.set_precision("best")  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_error_ratio_sees_noise(direction):
    problem = PROBLEM.towards(direction)
    assert error_ratios([Twin()], problem)["test.twin"] == pytest.approx(1.0, abs=0.5)
    assert error_ratios([Twin(noise=1e-2)], problem)["test.twin"] > 100


def test_measure_reports_every_kernel():
    problem = replace(PROBLEM, epilogue=Epilogue(bias=True), layout="channels_last")
    figures = measure(problem, [Vendor(), Twin()], repeats=3, budget_s=0.05)
    assert set(figures) == {"vendor", "test.twin"}
    assert all(f.median_us > 0 and f.lower_us <= f.median_us <= f.upper_us for f in figures.values())


def test_keys_round_trip():
    problem = replace(PROBLEM, epilogue=Epilogue(True, "relu", 2))
    assert from_key(to_key(problem)) == problem
    with pytest.raises(ArgumentError, match="to_key"):
        from_key('{"a": 1}')


def test_roofline_takes_the_slower_limit():
    machine = Machine(gflops=100.0, gbytes=10.0)
    assert machine.roofline_us(flops=1e6, bytes_moved=10) == pytest.approx(10.0)
    assert machine.roofline_us(flops=10, bytes_moved=1e6) == pytest.approx(100.0)


FIGURE = {"vendor": Measurement(1.0, 1.0, 1.0, 3, 1.0)}


def test_store_survives_a_corrupt_file(tmp_path, caplog):
    path = tmp_path / "plans.sqlite"
    path.write_bytes(b"not a database" * 100)
    store = Store(path)
    store.remember("here", "problem", FIGURE)
    assert Store(path).measurements("here", "problem") == FIGURE
    assert "discarding" in caplog.text


def test_store_of_a_newer_version_is_replaced(tmp_path):
    path = tmp_path / "plans.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    store = Store(path)
    store.remember("here", "problem", FIGURE)
    assert Store(path).measurements("here", "problem") == FIGURE


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_store_in_a_read_only_folder_works_from_memory(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    store = Store(tmp_path / "plans.sqlite")
    store.remember("here", "problem", FIGURE)
    assert store.measurements("here", "problem") == FIGURE


def test_store_without_a_usable_folder_works_from_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "plans.sqlite")
    store.remember("here", "problem", FIGURE)
    assert store.measurements("here", "problem") == FIGURE
    assert "in memory only" in caplog.text


def test_clear_forgets(tmp_path):
    store = Store(tmp_path / "plans.sqlite")
    store.remember("here", "problem", FIGURE)
    store.remember_machine("here", 1.0, 2.0)
    assert store.clear() == 1
    assert store.measurements("here", "problem") == {}
    assert store.machine("here") is None


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(
    "whole",
    [
        ConvProblem("forward", 3, 40, (70, 90), 30, (3, 5), (1, 1), ((1, 1), (2, 2)), (1, 1)),
        ConvProblem("forward", 3, 4, (99, 80), 40, (5, 3), (3, 2), ((0, 2), (4, 1)), (2, 1)),
        ConvProblem("forward", 2, 60, (64, 40), 120, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=60),
        ConvProblem("forward", 2, 60, (300,), 60, (2,), (4,), ((0, 0),), (1,)),
    ],
)
def test_a_part_has_the_results_of_the_whole(whole, direction, monkeypatch):
    monkeypatch.setattr("convlens.planner.trial._AFFORDABLE", 10_000)
    problem = replace(whole.towards(direction), dtype="float64")
    operands, part = operands_for(problem), Part.of(problem)
    assert part.problem.macs < problem.macs
    expected = part.result(Vendor().run(problem, *operands)[0])
    found = part.result(Vendor().run(part.problem, *part.operands(operands))[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_noise_does_not_choose():
    vendor = Measurement(median_us=100.0, lower_us=95.0, upper_us=110.0, repeats=15, error=1.0)
    near = Measurement(median_us=96.0, lower_us=90.0, upper_us=101.0, repeats=15, error=1.0)
    clear = Measurement(median_us=91.0, lower_us=90.0, upper_us=92.0, repeats=15, error=1.0)
    disturbed = Measurement(median_us=85.0, lower_us=94.0, upper_us=120.0, repeats=15, error=1.0)
    assert [choose._wins(ours, vendor) for ours in (near, clear, disturbed)] == [False, True, False]


def test_of_a_family_with_equal_estimates_the_one_with_fewest_operations_is_tried() -> None:
    class Named:
        def __init__(self, name: str, flops: float) -> None:
            self.name, self.flops = name, flops

        def estimate_flops(self, problem: ConvProblem) -> float:
            return self.flops

    kernels = [Named("cpu.amx_exact", 6.0), Named("cpu.amx", 5.0), Named("cpu.direct", 9.0)]
    estimates = {"cpu.amx_exact": 1.0, "cpu.amx": 1.0, "cpu.direct": 0.5}
    ordered = sorted(kernels, key=choose._promise(PROBLEM, estimates))
    assert [k.name for k in choose._finalists(ordered, estimates)] == ["cpu.direct", "cpu.amx"]
