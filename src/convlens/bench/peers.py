"""What we are measured against: torch in its best form, and other inference engines where installed."""

from __future__ import annotations

import importlib.util
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from convlens.planner.trial import operands_for
from convlens.window import ConvProblem

__all__ = ["OWN_THREADS", "layer_peers"]

Call = Callable[[], object]

OWN_THREADS = frozenset({"onnxruntime", "openvino"})
"""Peers with a thread pool of their own, to be timed apart from those that share torch's."""


def layer_peers(problem: ConvProblem, direction: str, *, compiled: bool = True) -> dict[str, Call]:
    """Calls that compute ``problem`` by other means, by the peer's name.

    Args:
        problem: a forward problem.
        direction: ``"forward"``, or ``"backward"`` for both gradients in one call.
        compiled: also torch.compile, where a C++ compiler is installed (some seconds a layer).
    """
    layouts = ["contiguous", "channels_last"] if problem.ndim > 1 else ["contiguous"]
    peers: dict[str, Call] = {}
    for layout in layouts:
        laid_out = replace(problem, layout=layout)  # type: ignore[arg-type]
        name = "torch" if layout == "contiguous" else "torch channels_last"
        peers[name] = _torch_forward(laid_out) if direction == "forward" else _torch_backward(laid_out)
    if direction == "forward":
        if compiled and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            peers["torch.compile"] = _torch_compiled(problem)
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
            peers["onnxruntime"] = _onnxruntime(problem)
        if importlib.util.find_spec("openvino"):
            peers["openvino"] = _openvino(problem)
    return peers


def _arguments(problem: ConvProblem) -> tuple[Any, ...]:
    padding = [before for before, _ in problem.padding]
    return problem.stride, padding, problem.dilation, False, [0] * problem.ndim, problem.groups


def _torch_forward(problem: ConvProblem) -> Call:
    input, weight, _ = operands_for(problem)
    arguments = _arguments(problem)
    return lambda: torch.ops.aten.convolution(input, weight, None, *arguments)


def _torch_backward(problem: ConvProblem) -> Call:
    grad_output, weight = operands_for(problem.towards("input_grad"))
    _, input = operands_for(problem.towards("weight_grad"))
    arguments = _arguments(problem)
    mask = [True, True, False]
    return lambda: torch.ops.aten.convolution_backward(grad_output, input, weight, None, *arguments, mask)


def _torch_compiled(problem: ConvProblem) -> Call:
    input, weight, _ = operands_for(problem)
    arguments = _arguments(problem)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.ops.aten.convolution(x, weight, None, *arguments))

    def call() -> object:
        with torch.no_grad():
            return compiled(input)

    return call


def _onnx_model(problem: ConvProblem, weight: torch.Tensor) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    pads = [before for before, _ in problem.padding] + [after for _, after in problem.padding]
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=problem.stride,
        pads=pads,
        dilations=problem.dilation,
        group=problem.groups,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, problem.input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, problem.output_shape)],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    written = io.BytesIO()
    onnx.save_model(model, written)
    return written.getvalue()


def _onnxruntime(problem: ConvProblem) -> Call:
    import onnxruntime

    input, weight, _ = operands_for(problem)
    if input is None or weight is None:
        raise ValueError("a forward problem has both operands")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _onnx_model(problem, weight), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": input.numpy()}
    return lambda: session.run(None, feed)


def _openvino(problem: ConvProblem) -> Call:
    import openvino

    input, weight, _ = operands_for(problem)
    if input is None or weight is None:
        raise ValueError("a forward problem has both operands")
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(io.BytesIO(_onnx_model(problem, weight))), "CPU", settings)
    request = model.create_infer_request()
    array = input.numpy()
    return lambda: request.infer({0: array}, share_inputs=True)
