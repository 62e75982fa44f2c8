"""Others that run a whole network: torch in three forms, onnxruntime and openvino where they are installed."""

from __future__ import annotations

import copy
import importlib.util
import io
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["net_peers"]

Call = Callable[[], object]

_TOLERANCE = 1e-3


def net_peers(
    model: torch.nn.Module, x: torch.Tensor, expected: torch.Tensor, *, compiled: bool
) -> dict[str, Call]:
    """Calls that compute ``model(x)`` by other means; one whose result is another is refused.

    Args:
        model: of torch's own layers, in eval mode.
        x: its input.
        expected: its output.
        compiled: also torch.compile, where a C++ compiler is installed (up to a minute a network).
    """
    peers: dict[str, Call] = {"torch": _eager(model, x)}
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None:
        peers["torch channels_last"] = _eager(_in_format(model, last), x.contiguous(memory_format=last))
    if compiled and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        peers["torch.compile"] = _compiled(model, x)
    wanted = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    exported = _exported(model, x) if wanted and importlib.util.find_spec("onnx") else None
    if exported is not None:
        for name in wanted:
            peers[name] = {"onnxruntime": _onnxruntime, "openvino": _openvino}[name](exported, x)
    for name, call in peers.items():
        _check(name, call(), expected)
    return peers


def _in_format(model: torch.nn.Module, order: torch.memory_format) -> torch.nn.Module:
    copied: Any = copy.deepcopy(model)
    laid_out: torch.nn.Module = copied.to(memory_format=order)
    return laid_out


def _check(name: str, got: Any, expected: torch.Tensor) -> None:
    if not isinstance(got, torch.Tensor):  # a list, or openvino's mapping
        got = torch.from_numpy(got[0])
    if float((got - expected).norm()) > _TOLERANCE * float(expected.norm()):
        raise ArithmeticError(f"{name} computes something else")


def _eager(model: torch.nn.Module, x: torch.Tensor) -> Call:
    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call


def _compiled(model: torch.nn.Module, x: torch.Tensor) -> Call:
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), dynamic=False)

    def call() -> object:
        with torch.no_grad():
            return compiled(x)

    return call


def _exported(model: torch.nn.Module, x: torch.Tensor) -> bytes | None:
    """The network as an ONNX file; None where ONNX has no operators for it."""
    written: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            torch.onnx.export(copy.deepcopy(model), (x,), written, input_names=["x"], dynamo=False)
        except torch.onnx.errors.OnnxExporterError:
            return None
    exported: bytes = written.getvalue()
    return exported


def _onnxruntime(exported: bytes, x: torch.Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads may spin during a call, but not on into another engine's turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)


def _openvino(exported: bytes, x: torch.Tensor) -> Call:
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(io.BytesIO(exported)), "CPU", settings)
    request = model.create_infer_request()
    array = x.numpy()
    return lambda: request.infer({0: array}, share_inputs=True)
