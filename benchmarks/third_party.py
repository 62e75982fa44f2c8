"""`convlens.accelerate` on networks written by others, with random weights, judged against double precision.

    python benchmarks/third_party.py                        # every family that is installed
    python benchmarks/third_party.py --only timm/resnet     # names containing a word; several by commas
    python benchmarks/third_party.py --out results.json     # adds to what the file holds

Float32 results of a deep network differ from any other float32 results, so neither torch's nor ours is the truth:
double precision is. Three things are asked of each network:

1. **Every call.** Each convolution and each gradient of one that the network computes is computed again in double
   precision and by torch in float32, from the same operands. Our error may be as many times torch's as the
   planner's class allows a kernel: ``exact`` 2, ``high`` 16, twice that for the luck of a single draw.
2. **The outputs.** Their error may be as many times torch's.
3. **The gradients** likewise; or, where a ReLU or a maximum is so near a tie that rounding decides it, no more
   than four times what such rounding does to this network *in double precision*: its forward convolutions are
   disturbed by as much as the worst of ours was off. ``amplifies`` marks networks that pass so.

An error is an L2 distance relative to the tensor's own size, the largest over the list; torch's is the largest of
its three ways to compute float32: contiguous, channels_last, and without oneDNN. Then: state_dict keys, a
deepcopy, train mode, and `restore`. Families that are not installed are listed as skipped. Exit status 1 if a
network fails.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import gc
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from third_party_networks import FAMILIES, load_family
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import convlens
from convlens import planner
from convlens.ops import core

CLASSES = {"exact": 2.0, "high": 16.0}
"""Error of a kernel in units of a direct sum's, by the planner's precision class."""
NOISE = 2e-7
"""Errors below one unit in the last place are nobody's."""


def run(model: torch.nn.Module, inputs: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and gradients of every leaf, with one fixed upstream."""
    training = model.training
    model.train().train(training)  # some networks keep intermediate values of eval mode until they train again
    torch.manual_seed(0)
    if isinstance(inputs, dict):
        # transformers' audio models set requires_grad themselves, which only leaves allow
        inputs = {k: v.detach().clone().requires_grad_(k != "input_values") for k, v in inputs.items()}
        leaves = [v for v in inputs.values() if v.requires_grad]
        result = model(**inputs)
    else:
        leaves = [v.detach().clone().requires_grad_() for v in inputs]
        result = model(*leaves)
    outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    total = sum((t * torch.randn(t.shape, generator=generator)).sum() for t in outputs)
    leaves += [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [t.detach() for t in outputs], [g for g in gradients if g is not None]


def distance(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Largest relative L2 distance over a list, each relative to its own size (at least 1e-4 of the largest)."""
    if [t.shape for t in got] != [t.shape for t in want]:
        return float("inf")
    if any(not torch.equal(g.isnan(), w.isnan()) for g, w in zip(got, want, strict=True)):
        return float("inf")
    sizes = [float(w.nan_to_num().double().norm()) for w in want]
    least = 1e-4 * max(sizes, default=0.0) or 1.0
    apart = [float((g.double() - w.double()).nan_to_num().norm()) for g, w in zip(got, want, strict=True)]
    return max((a / max(size, least) for a, size in zip(apart, sizes, strict=True)), default=0.0)


def doubled(values: Any) -> Any:
    """Floating-point tensors in double precision, tuples and dictionaries of them too."""
    return tree_map(lambda v: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v, values)


def last(values: Any) -> Any:
    """Pictures in channels_last."""
    return tree_map(lambda v: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v, values)


Errors = tuple[float, float]


def torchs_errors(model: torch.nn.Module, inputs: Any, truth: tuple[list[torch.Tensor], ...]) -> dict[str, Errors]:
    """How far torch's own float32 outputs and gradients lie from double precision, way by way."""

    def error(way: torch.nn.Module, values: Any) -> Errors:
        outputs, gradients = run(way, values)
        return distance(outputs, truth[0]), distance(gradients, truth[1])

    found = {"contiguous": error(model, inputs)}
    with torch.backends.mkldnn.flags(enabled=False):
        found["without oneDNN"] = error(model, inputs)
    with contextlib.suppress(RuntimeError):  # code that views its tensors as contiguous ones
        found["channels_last"] = error(copy.deepcopy(model).to(memory_format=torch.channels_last), last(inputs))
    return found


@dataclass
class Calls:
    """What the calls of a network were off by."""

    count: int = 0
    worst_ratio: float = 0.0
    worst_call: str = ""
    forward_error: float = 0.0

    def note(self, ours: Any, torchs: Any, truth: Any, what: str) -> None:
        """Compare one call's results."""
        for got, usual, want in zip(*map(_listed, (ours, torchs, truth)), strict=True):
            size = float(want.norm())
            if not want.numel() or not math.isfinite(size) or size == 0.0:
                continue
            error = float((got.double() - want).norm()) / size
            ratio = error / max(float((usual.double() - want).norm()) / size, NOISE)
            self.count += 1
            if what.startswith("run_convolve"):
                self.forward_error = max(self.forward_error, error)
            if ratio > self.worst_ratio:
                self.worst_ratio, self.worst_call = ratio, what


def _listed(results: Any) -> list[torch.Tensor]:
    return list(results) if isinstance(results, tuple) else [results]


@contextlib.contextmanager
def watched_calls() -> Iterator[Calls]:
    """Compute every planned call again: in double precision, and by torch in float32."""
    calls = Calls()
    originals = {name: getattr(core, name) for name in ("run_convolve", "run_transpose", "run_weight_grad")}

    def watching(name: str) -> Callable[..., Any]:
        def compute(*operands: Any) -> Any:
            ours = originals[name](*operands)
            geometry = operands[-1]
            if geometry.algorithm != "vendor":
                rest = (*operands[:-1], geometry._replace(algorithm="vendor"))
                shapes = [tuple(t.shape) for t in operands if isinstance(t, torch.Tensor)]
                truth = originals[name](*doubled(rest[:-1]), rest[-1])
                calls.note(ours, originals[name](*rest), truth, f"{name} {shapes} {geometry}")
            return ours

        return compute

    for name in originals:
        setattr(core, name, watching(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(core, name, original)


class Disturbed(TorchFunctionMode):
    """Forward convolutions off by ``error`` of their size, at random."""

    def __init__(self, error: float, seed: int) -> None:
        super().__init__()
        self.error, self.generator = error, torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").startswith("conv") and isinstance(out, torch.Tensor):
            noise = torch.randn(out.shape, generator=self.generator, dtype=out.dtype)
            noise = noise * (out.detach() != 0)  # sums of nothing but zeros are exact in any precision
            out = out + noise * (self.error * out.detach().square().mean().sqrt())
        return out


def amplified(model: torch.nn.Module, inputs: Any, truth: tuple[list[torch.Tensor], ...], error: float) -> Errors:
    """How far rounding of size ``error`` moves outputs and gradients of a double-precision network: worst of 6."""
    moved = []
    for seed in range(6):
        with Disturbed(error, seed):
            outputs, gradients = run(model, inputs)
        moved.append((distance(outputs, truth[0]), distance(gradients, truth[1])))
    return max(m[0] for m in moved), max(m[1] for m in moved)


def class_names(model: torch.nn.Module) -> list[str]:
    """Every module's class by name: a parametrized module's is made anew whenever it is needed."""
    return [f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules()]


def check(make: Callable[[], torch.nn.Module], inputs: Any) -> dict[str, Any]:
    """One network through everything; raises AssertionError with the reason."""
    torch.manual_seed(0)
    model = make().eval()
    keys = list(model.state_dict())
    classes = class_names(model)
    exact, exact_inputs = copy.deepcopy(model).double(), doubled(inputs)
    truth = run(exact, exact_inputs)
    ways = torchs_errors(model, inputs, truth)
    theirs = tuple(max(errors) for errors in zip(*ways.values(), strict=True))
    known = set(planner.used())
    convlens.accelerate(model, report=False)
    rows = convlens.layers.acceleration_of(model)
    assert list(model.state_dict()) == keys, "state_dict keys changed"
    outputs, gradients = run(model, inputs)
    kernels = collections.Counter(kernel for problem, kernel in planner.used().items() if problem not in known)
    with watched_calls() as calls:
        run(model, inputs)
    ours = distance(outputs, truth[0]), distance(gradients, truth[1])
    ratios = [mine / max(his, NOISE) for mine, his in zip(ours, theirs, strict=True)]
    found: dict[str, Any] = {
        "output_error": ours[0],
        "gradient_error": ours[1],
        "torch_output_error": theirs[0],
        "torch_gradient_error": theirs[1],
        "output_ratio": round(ratios[0], 2),
        "gradient_ratio": round(ratios[1], 2),
        "calls": calls.count,
        "worst_call_ratio": round(calls.worst_ratio, 2),
        "worst_forward_error": calls.forward_error,
        "kernels": dict(kernels),
        **{action: sum(row.action == action for row in rows) for action in ("replaced", "redirected", "left")},
    }
    allowed = 2 * CLASSES[convlens.get_precision()]
    told = f"torch's errors are {theirs}, ours {ours}; worst call {calls.worst_ratio:.1f}: {calls.worst_call}"
    assert calls.worst_ratio <= allowed, f"a call is off: {told}"
    if max(ratios) > allowed:
        moved = amplified(exact, exact_inputs, truth, max(calls.forward_error, NOISE))
        found |= {"amplifies": True, "rounding_output_error": moved[0], "rounding_gradient_error": moved[1]}
        assert all(m <= 4 * r for m, r in zip(ours, moved, strict=True)), f"{told}; rounding alone {moved}"
    twin_outputs, _ = run(copy.deepcopy(model), inputs)
    assert distance(twin_outputs, outputs) <= 2 * max(ours[0], theirs[0], NOISE), "a deepcopy differs"
    model.train()
    run(model, inputs)
    model.eval()
    convlens.restore(model)
    assert class_names(model) == classes, "restore left other classes"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check every network; print a line each and the total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names containing this, or one of these parted by commas")
    parser.add_argument("--every", type=int, default=1, help="every n-th network of those")
    parser.add_argument("--out", type=Path, help="add the results to this JSON file")
    parser.add_argument("--precision", choices=list(CLASSES), default="high", help="the planner's error class")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    convlens.set_precision(options.precision)
    words = options.only.split(",")
    results: dict[str, Any] = {}
    for family, cases in FAMILIES.items():
        try:
            load_family(family)
        except Exception as error:
            print(f"skipped {family}: {type(error).__name__}: {error}"[:150], flush=True)
            continue
        chosen = [case for case in cases() if any(word in case[0] for word in words)]
        for name, make, inputs in chosen[:: options.every]:
            began = time.perf_counter()
            try:
                results[name] = {"passed": True, **check(make, inputs)}
            except Exception as error:
                results[name] = {"passed": False, "reason": f"{type(error).__name__}: {error}"[:300]}
            seconds = time.perf_counter() - began
            print(f"{name:45s} {seconds:5.1f} s  {results[name]}", flush=True)
            if options.out:
                write(options.out, options.precision, results)
            gc.collect()
    passed = sum(result["passed"] for result in results.values())
    print(f"{passed} of {len(results)} networks pass (torch {torch.__version__})")
    return 0 if passed == len(results) else 1


def write(path: Path, precision: str, results: dict[str, Any]) -> None:
    """Add the results to the file."""
    held = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    rows = {row["network"]: row for row in held}
    rows |= {name: {"network": name, **result} for name, result in results.items()}
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "passed": sum(row["passed"] for row in rows.values()),
        "networks": len(rows),
        "results": [rows[name] for name in sorted(rows)],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
