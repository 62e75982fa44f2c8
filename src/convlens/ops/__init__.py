"""The functional door: validate, plan, run, differentiate."""

from __future__ import annotations

from convlens.ops import registered as _registered  # makes the operators known to torch
from convlens.ops.convolution import conv1d, conv2d, conv3d
from convlens.ops.transposed import conv_transpose1d, conv_transpose2d, conv_transpose3d

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

del _registered
