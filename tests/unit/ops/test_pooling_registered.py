"""Pooling in graphs: max pooling beyond torch's arguments is one registered operator, the rest are torch's own."""

from __future__ import annotations

import pytest
import torch

from convlens import ops

# kernel, stride, padding (before and after of each axis), dilation, ceil_mode, mode
WINDOWS = {
    "uneven": ([3, 2], [2, 1], [0, 2, 1, 0], [1, 1], False, "zeros"),
    "only_padding": ([2, 2], [2, 2], [3, 3, 0, 2], [1, 1], True, "zeros"),
    "mirrored": ([3, 3], [2, 2], [2, 1, 1, 2], [1, 2], False, "reflect"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("window", WINDOWS)
def test_opcheck(window, layout):
    input = torch.randn(2, 3, 7, 8, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.convlens.max_pool, (input, *WINDOWS[window]))


@pytest.mark.parametrize("window", WINDOWS)
def test_gradients_of_first_and_second_order(window):
    input = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)

    def pooled(x):
        return torch.ops.convlens.max_pool(x, *WINDOWS[window])[0].clamp(min=-9)

    assert torch.autograd.gradcheck(pooled, input)
    assert torch.autograd.gradgradcheck(pooled, input)


def nodes(graph):
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_graph_holds_one_node_and_gives_the_same(window, indices):
    kernel, stride, flat, dilation, ceil_mode, mode = WINDOWS[window]
    pairs = tuple(zip(flat[::2], flat[1::2], strict=True))

    def pool(x):
        return ops.max_pool2d(x, kernel, stride, pairs, dilation, ceil_mode, indices, padding_mode=mode)

    seen = []

    def backend(graph, example):
        seen.append(nodes(graph))
        return graph

    torch._dynamo.reset()
    input = torch.randn(2, 3, 7, 8, requires_grad=True)
    expected, got = pool(input), torch.compile(pool, backend=backend, fullgraph=True)(input)
    for want, have in zip(*((x if indices else (x,)) for x in (expected, got)), strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=0)
        assert have.stride() == want.stride()
    first, again = (x[0] if indices else x for x in (expected, got))
    upstream = torch.randn_like(first)
    torch.testing.assert_close(
        torch.autograd.grad(again, input, upstream), torch.autograd.grad(first, input, upstream)
    )
    if indices or window == "only_padding":
        assert len(seen[0] & {"convlens.max_pool", "convlens.max_pool.default"}) == 1


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_what_torch_has_is_traced_as_torchs_registered_operator(name):
    program = torch.export.export(Pooling(name), (torch.randn(2, 3, 8, 8),))
    targets = nodes(program.graph_module)
    assert targets
    assert not [target for target in targets if "convlens" in target]


class Pooling(torch.nn.Module):
    """One pooling."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return getattr(ops, self.name)(x, 2)


class Tagged(torch.Tensor):
    """A subclass without a protocol of its own."""


def test_subclasses_are_pooled():
    input = torch.randn(2, 3, 7, 8)
    arguments = (2, 2, ((1, 0), (0, 1)), 1, False, True)
    got = ops.max_pool2d(input.as_subclass(Tagged), *arguments)
    assert torch.equal(got[1], ops.max_pool2d(input, *arguments)[1])
