"""What this machine can do at best: peak arithmetic and memory bandwidth, measured once."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

import torch

from convlens.planner.timing import interleaved

__all__ = ["Machine", "context_key", "measure_machine", "processor_name"]


@dataclass(frozen=True, slots=True)
class Machine:
    """The roofline: ``gflops`` float32 operations and ``gbytes`` of memory traffic per nanosecond."""

    gflops: float
    gbytes: float

    def roofline_us(self, flops: float, bytes_moved: float) -> float:
        """Shortest time for so many operations and so many bytes, in microseconds."""
        return max(flops / self.gflops, bytes_moved / self.gbytes) / 1e3


def measure_machine(device: str = "cpu") -> Machine:
    """Measure peak float32 matrix-product speed and copy bandwidth; takes about 0.2 s."""
    size = 1024 if device == "cpu" else 4096
    left = torch.randn(size, size, device=device)
    right = torch.randn(size, size, device=device)
    product = torch.empty(size, size, device=device)
    source = torch.zeros(16 << 20, device=device)
    target = torch.zeros_like(source)
    timed = interleaved(
        {
            "product": lambda: torch.mm(left, right, out=product),
            "copy": lambda: target.copy_(source),
        },
        repeats=5,
        budget_s=0.2,
    )
    return Machine(
        gflops=2.0 * size**3 / (timed["product"].median_us * 1e3),
        gbytes=2.0 * source.nbytes / (timed["copy"].median_us * 1e3),
    )


def context_key(device: str) -> str:
    """What a measurement depends on besides the problem: processor, threads, versions."""
    processor = torch.cuda.get_device_name() if device.startswith("cuda") else processor_name()
    threads = torch.get_num_threads() if device == "cpu" else 0
    return f"{processor}|threads={threads}|{_versions()}"


@cache
def processor_name() -> str:
    """Model, family and number of this machine's processor."""
    facts: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                facts.setdefault(name.strip(), value.strip())
    except OSError:
        pass  # not Linux: platform knows enough
    model = facts.get("model name", platform.processor() or platform.machine())
    return f"{model} {facts.get('cpu family', '')}/{facts.get('model', '')}".strip()


@cache
def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("convlens", "torch", "llvmlite"):
        try:
            found.append(f"{name}={version(name)}")
        except PackageNotFoundError:
            found.append(f"{name}=?")
    return " ".join(found)
