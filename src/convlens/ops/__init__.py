"""The functional door: validate, plan, run, differentiate."""

from __future__ import annotations

from convlens.ops import registered as _registered  # makes the operators known to torch
from convlens.ops.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    global_avg_pool1d,
    global_avg_pool2d,
    global_avg_pool3d,
    global_max_pool1d,
    global_max_pool2d,
    global_max_pool3d,
)
from convlens.ops.block import (
    conv_block2d,
)
from convlens.ops.convolution import (
    conv1d,
    conv2d,
    conv3d,
)
from convlens.ops.derivation import (
    as_convolution,
    dense_tensor,
    toeplitz_matrix,
)
from convlens.ops.folding import (
    fold,
    unfold,
)
from convlens.ops.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from convlens.ops.transposed import (
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from convlens.ops.unpooling import (
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "as_convolution",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_block2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "dense_tensor",
    "fold",
    "global_avg_pool1d",
    "global_avg_pool2d",
    "global_avg_pool3d",
    "global_max_pool1d",
    "global_max_pool2d",
    "global_max_pool3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "toeplitz_matrix",
    "unfold",
]

del _registered
