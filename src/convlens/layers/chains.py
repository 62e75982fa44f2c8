"""Chains of layers computed as one: convolution, batch norm (folded), ReLU, max pooling.

A chain decides anew at every call whether it may run as one; where anything watches or differs (hooks, gradients
through the batch norm, training, other classes), its layers run one by one, as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from convlens import ops
from convlens.layers import convolution, pooling
from convlens.ops.core import is_plain

__all__ = ["Chain", "Folded", "chain_of", "is_watched", "pool_of", "starts_a_chain"]

_NORMS: dict[type, type] = {
    convolution.Conv1d: torch.nn.BatchNorm1d,
    convolution.Conv2d: torch.nn.BatchNorm2d,
    convolution.Conv3d: torch.nn.BatchNorm3d,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_watched(module: torch.nn.Module) -> bool:
    """Whether hooks, or a forward of its own, hang on this instance."""
    held = vars(module)
    return "forward" in held or any(held.get(name) for name in _HOOKS)


def starts_a_chain(module: Any) -> bool:
    """Whether this is one of our plain convolutions, whose output others may be computed with."""
    return type(module) in _NORMS and not module.flip and not is_watched(module)


def pool_of(module: Any) -> int:
    """Window of a max pooling that a block can do (square, stride alike, no padding), else 0."""
    if type(module) is not pooling.MaxPool2d or module.return_indices or module.ceil_mode:
        return 0
    numbers = [tuple(n) if isinstance(n, (tuple, list)) else (n, n) for n in (module.kernel_size, module.stride)]
    around = [n if isinstance(n, int) else max(n) for n in (module.padding, module.dilation)]
    window = numbers[0][0]
    if around != [0, 1] or set(numbers) != {(window, window)}:
        return 0
    return int(window)


def chain_of(modules: Sequence[Any]) -> Chain | None:
    """The longest chain that ``modules`` begin with; None where it is a single layer."""
    if not modules or not starts_a_chain(modules[0]):
        return None
    kind = type(modules[0])
    taken: list[Any] = [modules[0]]
    rest: list[Any] = list(modules[1:])
    if rest and type(rest[0]) is _NORMS[kind]:
        taken.append(rest.pop(0))
    if rest and type(rest[0]) is torch.nn.ReLU:
        taken.append(rest.pop(0))
        if rest and kind is convolution.Conv2d and pool_of(rest[0]) > 1:
            taken.append(rest.pop(0))
    return Chain(taken) if len(taken) > 1 else None


class Folded:
    """A convolution's weight and bias with a batch norm folded in, kept until what they come from changes."""

    def __init__(self, conv: Any, norm: Any) -> None:
        self.conv, self.norm = conv, norm
        self._known: tuple[Any, ...] | None = None
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None

    def sources(self) -> tuple[torch.Tensor | None, ...]:
        """Tensors that the folded ones are computed from."""
        conv, own, kept = self.conv._parameters, self.norm._parameters, self.norm._buffers
        return (
            conv["weight"], conv["bias"], own["weight"], own["bias"], kept["running_mean"], kept["running_var"],
        )  # fmt: skip

    def may(self) -> bool:
        """Whether the tensors can be folded now: real ones, of one type with digits enough."""
        norm = self.norm
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return False
        present = [t for t in self.sources() if t is not None]
        dtype = self.conv.weight.dtype
        return (
            dtype in (torch.float32, torch.float64)
            and is_plain(*present)
            and all(t.dtype == dtype and not t.is_inference() for t in present)
        )

    def drop(self) -> None:
        """Forget the folded tensors, as when training goes on."""
        self._known = self._weight = self._bias = None

    def is_current(self) -> bool:
        """Whether the folded tensors are those of the present weights and statistics."""
        if self._known is None:
            return False
        tensors, marks, sample, eps = self._known
        present = self.sources()
        for now, then, mark in zip(present, tensors, marks, strict=True):
            if now is not then or (now is not None and (now._version, now.data_ptr()) != mark):
                return False
        # writing through .data leaves the version as it is, so numbers are looked at as well
        return eps == self.norm.eps and not self.norm.training and torch.equal(_sample(present), sample)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Folded weight and bias, as of the last `refresh`."""
        assert self._weight is not None  # noqa: S101  (for the type checker)
        assert self._bias is not None  # noqa: S101
        return self._weight, self._bias

    def refresh(self) -> None:
        """Fold anew."""
        sources = self.sources()
        with torch.inference_mode(False), torch.no_grad():
            self._fold()
            marks = [None if t is None else (t._version, t.data_ptr()) for t in sources]
            self._known = (sources, marks, _sample(sources), self.norm.eps)

    def _fold(self) -> None:
        weight, bias, gamma, beta, mean, var = (None if t is None else t.double() for t in self.sources())
        assert weight is not None  # noqa: S101
        assert mean is not None  # noqa: S101
        assert var is not None  # noqa: S101
        scale = (var + self.norm.eps).rsqrt()
        if gamma is not None:
            scale = scale * gamma
        shift = (mean.neg() if bias is None else bias - mean) * scale
        if beta is not None:
            shift = shift + beta
        dtype = self.conv.weight.dtype
        # arithmetic keeps the strides, so a weight in channels_last stays one
        self._weight = (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(dtype)
        self._bias = shift.to(dtype)


def _sample(sources: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """All numbers of the short tensors, and of the weight one of each output channel."""
    weight = sources[0]
    assert weight is not None  # noqa: S101
    column = weight.as_strided(weight.shape[:1], weight.stride()[:1])
    return torch.cat([column, *(t for t in sources[1:] if t is not None)]).detach()


class Chain(torch.nn.Module):
    """A convolution and the layers after it. It owns none of them: no parameters, no children."""

    def __init__(self, modules: Sequence[Any]) -> None:
        super().__init__()
        # in a tuple, so that they are not registered as children
        self.steps: tuple[Any, ...] = tuple(modules)
        self.kinds = tuple(type(module) for module in modules)
        conv, *rest = modules
        norm = rest.pop(0) if type(rest[0]) is _NORMS[type(conv)] else None
        self.folded = (Folded(conv, norm),) if norm is not None else ()
        self.activation = "relu" if rest and type(rest[0]) is torch.nn.ReLU else "none"
        self.pools = tuple(rest[1:2])

    def forward(self, x: Any) -> Any:
        """What the layers give one after another."""
        if self._may_run_as_one(x):
            return self._as_one(x)
        for step in self.steps:
            x = step(x)
        return x

    def described(self) -> str:
        """In words, for the table."""
        text = " + ".join(kind.__name__ for kind in self.kinds)
        return f"{text}, folded in eval mode" if self.folded else text

    def drop(self) -> None:
        """Forget folded weights."""
        for folded in self.folded:
            folded.drop()

    def _may_run_as_one(self, x: Any) -> bool:
        if type(x) is not torch.Tensor or _has_any_global_hook() or not is_plain(x):
            return False
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        for step, kind in zip(self.steps, self.kinds, strict=True):
            if type(step) is not kind or is_watched(step):
                return False
        conv = self.steps[0]
        if x.dim() != conv.ndim + 2 or x.dtype != conv._parameters["weight"].dtype or conv.flip:
            return False
        if self.pools and pool_of(self.pools[0]) < 2:
            return False
        if torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self._parameters_of_all())
        ):
            return not self.folded and bool(self.pools)
        for folded in self.folded:
            if not folded.is_current():
                if not folded.may():
                    return False
                folded.refresh()
        return True

    def _parameters_of_all(self) -> list[torch.Tensor]:
        return [p for step in self.steps[:2] for p in step._parameters.values() if p is not None]

    def _as_one(self, x: torch.Tensor) -> torch.Tensor:
        conv: Any = self.steps[0]
        weight, bias = self.folded[0].tensors() if self.folded else (conv.weight, conv.bias)
        window: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)
        how = {"padding_mode": conv.padding_mode, "algorithm": conv.algorithm}
        if self.pools:
            return ops.conv_block2d(
                x, weight, bias, *window, activation=self.activation, pool=pool_of(self.pools[0]), **how
            )
        compute: Callable[..., torch.Tensor] = type(conv).compute
        out = compute(x, weight, bias, *window, **how)
        # a convolution's result is nobody else's, so the activation needs no memory of its own
        return out.relu_() if self.activation == "relu" else out
