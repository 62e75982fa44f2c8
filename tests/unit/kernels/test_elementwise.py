"""Scales, means and copies between convolutions, and calls that follow each other without Python."""

from __future__ import annotations

import pytest
import torch

from convlens.kernels.cpu.codegen import forced, host
from convlens.kernels.cpu.elementwise import copied, mean, scaled, zeroed
from convlens.kernels.cpu.replay import Replay

SHAPES = {
    "few": (2, 3, 5, 7),
    "vectors": (3, 32, 4, 4),
    "rest": (2, 21, 9, 2),
    "places": (1, 5, 130),
    "one": (2, 19, 1, 1),
}
LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}


def image(shape, layout):
    if len(shape) != 4 and layout == "channels_last":
        pytest.skip("one axis has one layout")
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAYOUTS[layout])


def call(native, source, dest):
    native.prepared().run(source, dest)
    return dest


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lanes", [4, None], ids=["four", "host"])
def test_scales_and_means(shape, layout, lanes):
    if lanes and lanes > host().lanes:
        pytest.skip("this machine's vectors are shorter")
    x = image(shape, layout)
    per_channel = (1, -1, *(1,) * (x.dim() - 2))
    scale, shift, gate = torch.randn(shape[1]), torch.randn(shape[1]), torch.randn(shape[0] * shape[1])
    with forced(host().narrowed(lanes) if lanes else host()):
        got = call(scaled(x, scale, shift, "relu"), x, torch.full_like(x, torch.nan))
        gated = call(scaled(x, gate, None, "none"), x, torch.full_like(x, torch.nan))
        means = call(mean(x), x, torch.full(shape[:2], torch.nan))
    torch.testing.assert_close(got, (x * scale.view(per_channel) + shift.view(per_channel)).relu())
    if shape[0] > 1:
        torch.testing.assert_close(gated, x * gate.view(*shape[:2], *(1,) * (x.dim() - 2)))
    torch.testing.assert_close(means, x.flatten(2).mean(2))


@pytest.mark.parametrize(
    ("source", "dest"),
    [
        (lambda t: t[:, :, ::2, 1::3], lambda t: t),
        (lambda t: t.transpose(0, 1), lambda t: t.contiguous(memory_format=torch.channels_last)),
        (lambda t: t.permute(3, 2, 1, 0), lambda t: t),
        (lambda t: t[0, 0], lambda t: t),
        (lambda t: t[0, 0, 0, 0], lambda t: t),
    ],
    ids=["slice", "turned", "reversed", "plane", "number"],
)  # fmt: skip
def test_copies_of_any_strides(source, dest):
    given = source(torch.randn(3, 4, 6, 37))
    to = dest(torch.full_like(given, torch.nan).contiguous())
    torch.testing.assert_close(call(copied(given, to), given, to), given, rtol=0, atol=0)


def test_calls_follow_each_other():
    first, second = torch.randn(1, 20, 3, 3), torch.randn(1, 20, 3, 3)
    scale, between, out = torch.randn(20), torch.empty(1, 20, 3, 3), torch.full((1, 20), torch.nan)
    wide = torch.full((1, 25), torch.nan)
    replay = Replay()
    replay.add(scaled(first, scale, None, "relu"), None, between.data_ptr())
    replay.add(mean(between), between.data_ptr(), out.data_ptr())
    replay.add(zeroed(wide), wide.data_ptr(), wide.data_ptr())
    part = wide[:, 2:22]
    replay.add(copied(out, part), out.data_ptr(), part.data_ptr())
    run = replay.ready()
    for x in (first, second):
        run([x.data_ptr()])
        expected = (x * scale.view(1, -1, 1, 1)).relu().mean((2, 3))
        torch.testing.assert_close(wide, torch.nn.functional.pad(expected, (2, 3)))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        run([])


def test_too_many_arguments_are_refused():
    from convlens.kernels.contract import NativeCall

    with pytest.raises(ValueError, match="at most 16 arguments, got 17"):
        Replay().add(NativeCall(mean(torch.ones(1, 1, 1)).function, (0,) * 17, 0, 1), 1, 1)
