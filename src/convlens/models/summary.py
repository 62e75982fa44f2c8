"""What every layer of a network computes, costs and sees: ``print(convlens.summary(model, (3, 224, 224)))``.

The model is run once on torch's meta device (shapes without values), every operator is watched, and the
operators are put down to the modules that called them. So functional calls count as well as modules, branches
are followed, and any ``torch.nn.Module`` will do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from convlens.errors import ArgumentError, ShapeError
from convlens.models.fields import Field, FieldMap, bytes_of, named_arguments, tensors_of

__all__ = ["LayerRow", "Summary", "output_field", "summary"]


@dataclass(slots=True)
class LayerRow:
    """One layer, as it ran; a module that runs twice has two rows.

    Attributes:
        name: path of the module (``features.0.body.3``), or of the caller and the operator for a functional call.
        kind: class of the module, or name of the operator.
        output_shape: shape of its output, batch first.
        weights: its own trainable and frozen parameters.
        macs: multiply-adds of its convolutions and matrix products, whole batch.
        bytes: its inputs, parameters and outputs, each touched once.
        receptive_field: input positions that one output unit sees, per axis; None where a unit sees everything
            or the operators do not tell.
        stride: input positions between neighbouring units, per axis; None as above.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] = ()
    weights: int = 0
    macs: int = 0
    bytes: int = 0
    receptive_field: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None


@dataclass(slots=True)
class Summary:
    """Every layer in the order of the run, and the totals.

    Attributes:
        model: class or registered name of the model.
        input_shape: shape of the input, batch first.
        rows: the layers.
        weights: all parameters, shared ones counted once.
        macs: multiply-adds of one forward pass.
        weight_bytes: memory of the parameters.
        activation_bytes: memory of all layers' outputs together, which training keeps.
    """

    model: str
    input_shape: tuple[int, ...]
    rows: list[LayerRow] = field(default_factory=list)
    weights: int = 0
    macs: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def receptive_field(self) -> tuple[int, ...] | None:
        """Field of the last layer whose units still have places: where features end."""
        return next((row.receptive_field for row in reversed(self.rows) if row.receptive_field), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        title = f"{self.model}, input {_times(self.input_shape)}"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("layer", overflow="fold")
        table.add_column("kind")
        for heading in ("output", "weights", "MACs", "bytes", "sees", "every"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            sees = _square(row.receptive_field) if row.receptive_field else "all"
            every = _square(row.stride) if row.stride else ""
            cells = (_times(row.output_shape[1:]), f"{row.weights:,}" if row.weights else "")
            table.add_row(row.name, row.kind, *cells, _short(row.macs), _short(row.bytes), sees, every)
        console = Console(file=io.StringIO(), width=116, color_system=None)
        console.print(table)
        console.print(
            f"{self.weights:,} weights ({_short(self.weight_bytes)}B), {_short(self.macs)} multiply-adds, "
            f"{_short(self.activation_bytes)}B of activations"
        )
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def summary(
    model: nn.Module, input_shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> Summary:
    """Count what every layer of ``model`` computes, costs and sees.

    Args:
        model: any ``torch.nn.Module`` that takes one tensor; it is not changed, and nothing is computed.
        input_shape: ``(channels, *size)``, or with the batch before it. None: the size a registered
            net was built for.
        dtype: type of the input; the weights' when None.

    Returns:
        The record; ``str()`` of it is a table.

    Raises:
        ShapeError: the input does not fit the model.
        ArgumentError: no shape was given and the model does not know one.
    """
    shape = _batched(model, input_shape)
    if dtype is None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    result = Summary(getattr(model, "config", {}).get("name") or type(model).__name__, shape)
    try:
        result.rows = _run(model, shape, dtype, "meta")
    except ArgumentError:
        raise
    except (NotImplementedError, RuntimeError):  # an operator without meta kernel: run with real zeros
        device = next((p.device.type for p in model.parameters()), "cpu")
        try:
            result.rows = _run(model, shape, dtype, device)
        except ArgumentError:
            raise
        except RuntimeError as error:
            raise ShapeError("input_shape", f"a shape that {result.model} takes", shape, str(error)) from error
    parameters = list(model.parameters())
    result.weights = sum(p.numel() for p in parameters)
    result.weight_bytes = bytes_of(parameters)
    result.macs = sum(row.macs for row in result.rows)
    result.activation_bytes = sum(math.prod(row.output_shape) for row in result.rows) * dtype.itemsize
    return result


def output_field(model: nn.Module, input_shape: Sequence[int]) -> Field | None:
    """What each unit of ``model``'s output sees, padding included; nothing is computed.

    Args:
        model: gives one tensor ``(N, channels, *places)``.
        input_shape: ``(channels, *size)``, of a size that leaves several places.

    Returns:
        The field, or None where a unit sees everything or the operators do not tell.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    watch, output = _watched(model, _batched(model, input_shape), dtype, "meta")
    seen = watch.fields.of(output)
    return seen if seen is not None and seen.axes else None


def _batched(model: nn.Module, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    if input_shape is None:
        config = getattr(model, "config", {})
        if not isinstance(config, dict) or not config.get("input_size"):
            raise ArgumentError("input_shape", "(channels, *size) of one sample", None)
        return (1, config["in_channels"], *config["input_size"])
    shape = tuple(int(n) for n in input_shape)
    axes = next((p.ndim for p in model.parameters() if p.ndim >= 2), 0)
    ndim: Any = getattr(model, "ndim", None)
    if isinstance(ndim, int):
        axes = ndim + 2
    return shape if len(shape) == axes else (1, *shape)


def _run(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[LayerRow]:
    """Run ``model`` once on ``device`` and give its rows."""
    return _watched(model, shape, dtype, device)[0].rows


def _watched(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[_Watch, Any]:
    """Run ``model`` once on ``device``; what was seen, and its output."""
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if device == "meta":
        state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    input = torch.zeros(shape, dtype=dtype, device=device)
    watch = _Watch(input)
    with torch.no_grad(), _evaluating(model), _named_calls(model, watch), torch.device(device), watch:
        output = torch.func.functional_call(model, state, (input,))
    return watch, output


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _named_calls(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Tell ``watch`` which module is running."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, _, name=name: watch.enter(name, m)))
        hooks.append(module.register_forward_hook(watch.leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Watch(TorchDispatchMode):
    """Counts operators and follows receptive fields, and puts both down to the running module."""

    def __init__(self, input: Tensor) -> None:
        super().__init__()
        self.rows: list[LayerRow] = []
        self.fields = FieldMap(input)
        self._calls: list[tuple[str, LayerRow | None]] = []

    def enter(self, name: str, module: nn.Module) -> None:
        """A module begins; one without parts gets a row of its own."""
        row = None
        if next(module.children(), None) is None:
            weights = sum(p.numel() for p in module.parameters(recurse=False))
            row = LayerRow(name or type(module).__name__, type(module).__name__, weights=weights)
            self.rows.append(row)
        self._calls.append((name, row))

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The module that began last ends with ``output``."""
        _, row = self._calls.pop()
        outputs = tensors_of(output)
        if row is None:
            return
        if isinstance(module, nn.LocalResponseNorm) and self.fields.of(inputs[0]) is not None:
            self.fields.share(inputs[0], output)  # its pooling runs over channels
        if isinstance(output, Tensor) and outputs and row.kind != "Identity":
            self._close(row, outputs[0])
        elif row.bytes == 0:
            self.rows.remove(row)  # did nothing

    def _close(self, row: LayerRow, output: Tensor) -> None:
        row.output_shape = tuple(output.shape)
        seen: Field | None = self.fields.of(output)
        if seen is not None and seen.axes:
            row.receptive_field, row.stride = seen.size, seen.stride

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and take it down."""
        result = func(*args, **(kwargs or {}))
        arguments, outputs = named_arguments(func, args, kwargs or {}), tensors_of(result)
        inputs = tensors_of(list(arguments.values()))
        joins = sum(self.fields.of(t) is not None for t in inputs) > 1
        self.fields.follow(func, arguments, outputs)
        macs = _macs(func, args, kwargs or {}, arguments, result)
        if not outputs or func.is_view:
            return result
        name, row = self._calls[-1] if self._calls else ("", None)
        if row is None and (macs or joins):
            kind = func.__name__.split(".")[0].rstrip("_")
            row = LayerRow(f"{name}.{kind}".lstrip("."), kind)
            self.rows.append(row)
            self._close(row, outputs[0])
        if row is not None:
            row.macs += macs
            row.bytes += bytes_of(inputs) + bytes_of(outputs)
        return result


def _macs(func: Any, args: Any, kwargs: dict[str, Any], arguments: dict[str, Any], result: Any) -> int:
    """Multiply-adds of one operator; 0 for what is neither convolution nor matrix product."""
    if func.namespace == "convlens" and "weight" in arguments:
        weight = arguments["weight"]
        moved = arguments["grad_output"] if "input_size" in arguments else tensors_of(result)[0]
        return math.prod([*moved.shape, *weight.shape[1:]])
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result)) // 2


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _square(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else _times(sizes)


def _short(count: int) -> str:
    """Four digits and a power of a thousand."""
    value = float(count)
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            return "" if not count else f"{count}" if not unit else f"{value:.3g} {unit}"
        value /= 1000.0
    raise AssertionError("unreachable")
