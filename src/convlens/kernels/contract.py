"""What a kernel offers: a refusal as data, its workspace, its precision class, and the computation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

from convlens.window import ConvProblem

__all__ = ["Kernel", "NativeCall", "Precision", "Prepared", "Roofline"]

Precision = Literal["exact", "high", "fast"]

_CALL_US = 5.0  # what a call costs before any arithmetic


class Roofline(Protocol):
    """What an estimate needs to know of the machine."""

    def roofline_us(self, flops: float, bytes_moved: float) -> float:
        """Shortest time for so many operations and bytes, in microseconds."""


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A call of generated code: addresses and counts, of which input and result are the caller's.

    Attributes:
        function: a `Compiled` one.
        arguments: integers in order; those of input and result may be anything.
        source: which of them is the input's address.
        dest: which of them is the result's.
        keep: what the addresses lie in.
    """

    function: Callable[..., None]
    arguments: tuple[int, ...]
    source: int
    dest: int
    keep: Any = None

    def prepared(self, spoilt: torch.Tensor | None = None) -> Prepared:
        """As a `Prepared` that writes."""
        function, given, source, dest, keep = (
            self.function, list(self.arguments), self.source, self.dest, self.keep,
        )  # fmt: skip

        def run(input: torch.Tensor, out: torch.Tensor | None, keep: Any = keep) -> torch.Tensor:
            assert out is not None  # noqa: S101
            given[source], given[dest] = input.data_ptr(), out.data_ptr()
            function(*given)
            return out

        return Prepared(run, writes=True, spoilt=spoilt, native=self)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A forward problem bound to its weights: laid out once, with everything looked up beforehand.

    Not for two threads at once; made for the number of threads at that time.
    """

    run: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    """``(input, out)`` → the result. ``input`` is dense in the problem's layout. Where `writes` or the epilogue
    has a residual, ``out`` is given (dense as well, holding the residual) and is the result; else it is None."""
    writes: bool = False
    spoilt: torch.Tensor | None = None
    """int32; set to something else than 0 where results have to be computed by other means (inf, NaN)."""
    native: NativeCall | None = None
    """What `run` does, where that is one call of generated code: many such run without Python in between."""


class Kernel(ABC):
    """One way to compute a convolution problem.

    Operands and results by direction, all dense in ``problem.layout`` (weights always contiguous):

    ============  ===============================  ==========================================
    direction     operands                         result
    ============  ===============================  ==========================================
    forward       input, weight, bias or None      ``(output,)``
    input_grad    grad_output, weight              ``(grad_input,)``
    weight_grad   grad_output, input               ``(grad_weight,)`` or, with
                                                   ``epilogue.bias``, ``(grad_weight, grad_bias)``
    ============  ===============================  ==========================================
    """

    name: ClassVar[str]
    """Unique, ``room.idea``: ``"cpu.depthwise"``."""
    algorithm: ClassVar[str]
    """What ``algorithm=`` calls it: ``definition toeplitz im2col fourier winograd direct vendor``."""
    precision: ClassVar[Precision] = "exact"
    """Class of the measured error: exact ≤ 2×, high ≤ 16× that of direct float32, fast above."""
    automatic: ClassVar[bool] = True
    """False for kernels that exist to be read and checked against: chosen by name only."""
    batch_invariant: ClassVar[bool] = False
    """True if an image's sums run in one order whatever the batch it comes in."""
    any_strides: ClassVar[bool] = False
    """True if operands may lie in memory in any way; otherwise they are made dense before `run`."""
    efficiency: ClassVar[float] = 0.7
    """Usual fraction of the machine's float32 peak that the kernel's own operations reach."""

    @abstractmethod
    def refusal(self, problem: ConvProblem) -> str | None:
        """Why this kernel cannot compute ``problem``, as ``"needs stride 1, got (2, 2)"``; None if it can."""

    def workspace_bytes(self, problem: ConvProblem) -> int:
        """Upper bound of the memory allocated besides operands and results, in bytes."""
        return 0

    def estimate_flops(self, problem: ConvProblem) -> float:
        """Operations this kernel spends on ``problem``; algorithms that save some say so here."""
        return float(problem.flops)

    def estimate_us(self, problem: ConvProblem, machine: Roofline) -> float:
        """Expected time in microseconds, from the machine's roofline and the kernel's usual ``efficiency``."""
        attainable = self.estimate_flops(problem) / self.efficiency
        return machine.roofline_us(attainable, problem.bytes) + _CALL_US

    @abstractmethod
    def run(self, problem: ConvProblem, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Compute. Only called where `refusal` returned None."""

    def prepare(self, problem: ConvProblem, weight: torch.Tensor, bias: torch.Tensor | None) -> Prepared | None:
        """``problem`` with these weights for many calls; None where this kernel has no such form.

        Called with forward problems that `refusal` accepts.
        """
        return None
