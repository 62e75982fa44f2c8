"""ONNX files read into modules: onnxruntime's answers, layers that can be looked into, refusals by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from convlens import explain
from convlens.errors import ArgumentError, MissingExtraError, ModelFileError, PathError
from convlens.explain.onnx_net import load_onnx, onnx_net
from convlens.explain.pixel import Convolution
from convlens.explorer.onnx_subject import open_onnx


def graph(nodes, stored, shape=("n", 3, 12, 12), out=("a", "b", "c", "d"), opset=18, producer="tests"):
    """A model with one input ``x`` and the last node's output as its own."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, list(out))]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    made = helper.make_graph(nodes, "net", inputs, outputs, kept)
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name=producer
    )


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.3


def block_net():
    """A shortcut, a concatenation, uneven padding, a norm, and a size computed in the graph."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], "c1", pads=[0, 1, 1, 1], kernel_shape=[2, 3]),
        node("BatchNormalization", ["a", "s", "b", "m", "v"], ["b0"], "norm"),
        node("Relu", ["b0"], ["r"], "relu"),
        node("Conv", ["r", "body.weight"], ["c"], "c2", pads=[1, 1, 1, 1], kernel_shape=[3, 3], group=2),
        node("Add", ["c", "r"], ["sum"], "join"),
        node("Concat", ["sum", "r"], ["both"], "cat", axis=1),
        node("MaxPool", ["both"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", ["p"], ["q"], "mean", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        node("Shape", ["q"], ["size"]),
        node("Gather", ["size", "zero"], ["count"]),
        node("Unsqueeze", ["count", "zeros"], ["counts"]),
        node("Concat", ["counts", "rest"], ["flat"], axis=0),
        node("Reshape", ["q", "flat"], ["f"], "flatten"),
        node("Gemm", ["f", "head.weight", "head.bias"], ["logits"], "dense", transB=1),
        node("Softmax", ["logits"], ["p_out"], "answer", axis=1),
    ]
    stored = {
        "stem.weight": weights(4, 3, 2, 3), "stem.bias": weights(4), "body.weight": weights(4, 2, 3, 3, seed=1),
        "s": weights(4) + 1, "b": weights(4), "m": weights(4), "v": np.abs(weights(4)) + 0.5,
        "zero": np.int64(0), "zeros": np.array([0]), "rest": np.array([-1]),
        "head.weight": weights(5, 8 * 36), "head.bias": weights(5),
    }  # fmt: skip
    return graph(nodes, stored, out=("n", 5))


def answers(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


def test_answers_are_onnxruntimes_for_any_batch():
    model = block_net()
    net = onnx_net(onnx.shape_inference.infer_shapes(model), (3, 12, 12))
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(net(x).detach().numpy(), answers(model, x), rtol=1e-4, atol=1e-6)


def test_layers_are_named_by_their_weights_and_sizes_are_no_layers():
    net = onnx_net(block_net(), (3, 12, 12))
    assert explain.layer_names(net) == [
        "stem", "norm", "relu", "body", "join", "cat", "pool", "mean", "flatten", "head", "answer",
    ]  # fmt: skip
    x = torch.randn(1, 3, 12, 12)
    edges = explain.layer_graph(net, x)
    assert {("body", "join"), ("relu", "join"), ("relu", "cat")} <= set(edges)
    rows = {row.name: row for row in explain.layer_table(net, x, repeats=0)}
    assert rows["stem"].weights == 4 * 3 * 6 + 4
    assert rows["body"].receptive_field == (4, 5)


def test_one_pixel_of_a_conv_node_is_taken_apart():
    net = onnx_net(block_net(), (3, 12, 12))
    x = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        _, caught = explain.capture(net, x)
    numbers = Convolution.of(net.stem)
    assert numbers.padding == ((0, 1), (1, 1))
    apart = explain.output_pixel(numbers, x[0], 2, (11, 0))
    assert apart.value == pytest.approx(float(caught["stem"].output[0, 2, 11, 0]), rel=1e-4, abs=1e-5)
    field = explain.effective_field(net, x, "body", 0, (5, 5))
    assert field.heat.max() == 1


def test_the_last_softmax_and_an_open_size(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(block_net(), path)
    read = open_onnx(str(path))
    assert read.input_shape == (3, 12, 12)
    assert "answer" not in explain.layer_names(read.net)
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    onnx.save(graph([node], {}, ("n", 3, "h", "w")), path)
    with pytest.raises(ArgumentError, match="input_shape"):
        open_onnx(str(path))
    assert open_onnx(str(path), (3, 9, 7)).net(torch.ones(1, 3, 9, 7)).shape == (1, 3, 1, 1)


OPERATORS = [
    (helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.2), {}),
    (helper.make_node("Clip", ["x", "low", "high"], ["y"]), {"low": np.float32(0), "high": np.float32(1)}),
    (helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.25), {}),
    (helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect"), {"pads": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    (helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"]),
     {"s": np.array([10, 0]), "e": np.array([-99, 9]), "a": np.array([2, 3]), "t": np.array([-2, 3])}),
    (helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0), {"axes": np.array([2, 3])}),
    (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1]), {}),
    (helper.make_node("LRN", ["x"], ["y"], size=3), {}),
    (helper.make_node("Resize", ["x", "", "sc"], ["y"], mode="nearest",
                      coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
     {"sc": np.array([1, 1, 2, 2], np.float32)}),
    (helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], kernel_shape=[3, 3]),
     {"w": weights(3, 2, 3, 3)}),
    (helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[4, 4]),
     {"w": weights(2, 3, 4, 4)}),
    (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]), {}),
    (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weights(12, 4)}),
]  # fmt: skip


@pytest.mark.parametrize(("node", "stored"), OPERATORS, ids=[node.op_type for node, _ in OPERATORS])
def test_each_operator(node, stored):
    model = graph([node], stored, out=("a", "b") if node.op_type == "ReduceMean" else ("a", "b", "c", "d"))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = onnx_net(model, (3, 12, 12))(x)
    np.testing.assert_allclose(found.numpy(), answers(model, x), rtol=1e-4, atol=1e-5)


def test_weights_that_pass_through_identity_stay_a_layer():
    nodes = [
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Conv", ["x", "same"], ["y"], "only", kernel_shape=[3, 3]),
    ]
    net = onnx_net(graph(nodes, {"w": weights(2, 3, 3, 3)}), (3, 12, 12))
    assert isinstance(net.only, nn.Conv2d)


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(PathError):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01 no protobuf")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        load_onnx(tmp_path / "bad.onnx")
    with pytest.raises(ModelFileError, match="not read: Det"):
        onnx_net(graph([helper.make_node("Det", ["x"], ["y"])], {}), (3, 12, 12))
    monkeypatch.setattr("convlens.explain.onnx_net._TOLERANCE", -1.0)
    with pytest.raises(ModelFileError, match="does not answer"):
        onnx_net(block_net(), (3, 12, 12))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnx"):
        load_onnx(tmp_path / "bad.onnx")
