"""The arithmetic of sliding windows: output sizes, padding, costs, receptive fields, and the problems of kernels.

Standard library only, so that `convlens --help`, `convlens plan` and the documentation can count
without importing torch.
"""

from __future__ import annotations

from convlens.window.axis import Misfit, Window, layers_until
from convlens.window.cost import Cost, conv_cost, dense_cost
from convlens.window.field import Field, chain, merge
from convlens.window.problems import ConvProblem, Direction, Epilogue, Layout, PoolProblem, windows_that_fit

__all__ = [
    "ConvProblem",
    "Cost",
    "Direction",
    "Epilogue",
    "Field",
    "Layout",
    "Misfit",
    "PoolProblem",
    "Window",
    "chain",
    "conv_cost",
    "dense_cost",
    "layers_until",
    "merge",
    "windows_that_fit",
]
