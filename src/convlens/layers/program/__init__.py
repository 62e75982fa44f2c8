"""A whole network in eval mode as a list of calls for one input shape: `Program`, and who has which: `programs`.

`trace` records a forward as operators, `lower` joins what belongs together (convolution, batch norm, residual,
activation), `build` picks layout and kernels, packs weights and lays out memory, `watch` tells when a program no
longer stands for its module.
"""

from __future__ import annotations

from convlens.layers.program.build import Built
from convlens.layers.program.registry import build_now, compute, forget, program_of

__all__ = ["Built", "build_now", "compute", "forget", "program_of"]
