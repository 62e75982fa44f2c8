"""The machine a run uses: device, number format, threads and random state, each chosen with a reason."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from convlens.environment import local_rank
from convlens.errors import DeviceError
from convlens.training.recipe import Recipe

__all__ = ["Machine", "choose_machine", "device_of", "random_state", "restore_random_state"]


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes.

    Attributes:
        device: the torch device.
        precision: ``float32`` or ``bfloat16``.
        threads: CPU threads.
        reasons: one line for each choice, as printed.
    """

    device: torch.device
    precision: str
    threads: int
    reasons: tuple[str, ...]

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass runs: products in `precision`, weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def describe(self) -> dict[str, Any]:
        """What a reader of the results needs to know about the machine."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        return {
            "device": str(self.device),
            "device_name": name or platform.machine(),
            "precision": self.precision,
            "threads": self.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
        }


def choose_machine(recipe: Recipe) -> Machine:
    """Device, number format and threads for ``recipe``, and set the threads.

    Raises:
        DeviceError: the recipe names a device that is not there.
    """
    device, device_reason = _device(recipe.device)
    precision, precision_reason = _precision(recipe.precision, device)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    # Denormal numbers cost up to 100 times as much and carry nothing a network needs.
    torch.set_flush_denormal(True)
    threads = torch.get_num_threads()
    reasons = (f"device {device}: {device_reason}", f"precision {precision}: {precision_reason}")
    return Machine(device, precision, threads, reasons)


def device_of(wanted: str) -> torch.device:
    """The device that a ``--device`` flag means.

    Raises:
        DeviceError: it is not there.
    """
    return _device(wanted)[0]


def _device(wanted: str) -> tuple[torch.device, str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        if count:
            return torch.device("cuda", local_rank() % count), "a CUDA device is there"
        return torch.device("cpu"), f"no CUDA device here; {torch.get_num_threads()} threads"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise DeviceError(f"device: expected auto, cpu, cuda or cuda:N, received {wanted!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"{count} CUDA device(s) are" if count else "no CUDA device is"
        raise DeviceError(
            f"device: expected one that is there, received {wanted!r}; {there} here. Use --device auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device: expected one that is there, received {wanted!r}. Use --device auto.")
    return device, "as asked"


def _precision(wanted: str, device: torch.device) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return "bfloat16", "this GPU multiplies it fastest"
    return "float32", "bfloat16 pays on GPUs; on a CPU ask for it with --precision bfloat16"


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of the generators that training draws from, as uint8 tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back to a state from `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
