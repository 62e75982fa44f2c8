"""Every number of the lectures that window arithmetic gives, by row."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convlens.errors import ShapeError
from convlens.window import Field, Window, chain, conv_cost, dense_cost, layers_until, merge


def test_row_a1_a_dense_layer_on_a_photo():
    cost = dense_cost(12_000_000 * 3, 100, bias=False)
    assert cost.weights == 3_600_000_000
    assert cost.weight_bytes(4) == 14_400_000_000
    assert cost.weight_bytes(2) == 7_200_000_000


def test_row_a2_dense_against_convolution():
    assert dense_cost(512 * 512, 8).weights == 2_097_160
    assert conv_cost(1, 8, (5, 5), (508, 508), bias=False).weights == 200


def test_row_a3_alexnets_first_layer():
    assert conv_cost(3, 96, (11, 11), (55, 55)).weights == 34_944
    # without sharing, every one of the 55x55x96 outputs has its own 11x11x3 weights and bias
    assert dense_cost(11 * 11 * 3, 55 * 55 * 96).weights == 105_705_600


def test_row_b2_valid_sizes():
    assert [Window(k).output_size(n) for n, k in [(3, 2), (7, 3), (5, 5)]] == [2, 5, 1]


def test_row_b5_padding():
    window = Window(5)
    assert window.output_size(32) == 28
    size = 32
    for _ in range(7):
        size = window.output_size(size)
    assert size == 4
    for k in (3, 5, 7):
        same = Window(k).padded("same", 20)
        assert (same.before, same.after) == ((k - 1) // 2, (k - 1) // 2)
    for k in (2, 4, 6):
        lower, torchs = Window(k).padded("same_lower", 20), Window(k).padded("same", 20)
        assert (lower.before, lower.after) == (-(-(k - 1) // 2), (k - 1) // 2)
        assert (torchs.before, torchs.after) == (lower.after, lower.before)
        assert lower.output_size(20) == torchs.output_size(20) == 20
    assert Window(5).padded("full", 8).output_size(8) == 12


def test_row_b6_stride():
    assert layers_until(224, Window(5), 4) == 55
    assert Window(2, stride=3, before=1, after=1).output_size(3) == 2
    assert Window(2, stride=2, before=1, after=1).output_size(3) == 2


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 6))
def test_row_b6_the_formula(n, k, s, p):
    if n + p >= k:
        assert Window(k, s, before=p).output_size(n) == (n - k + p + s) // s


def test_row_b9_the_lecture_layer():
    layer = conv_cost(100, 100, (5, 5), (64, 64), bias=False)
    assert layer.macs == 1_024_000_000
    ten = layer * 10
    assert ten.macs * 1_000_000 == pytest.approx(10e15, rel=0.03)
    assert ten.seconds(0.15e12, 1_000_000) / 3600 == pytest.approx(18, rel=0.06)
    assert ten.seconds(12e12, 1_000_000) / 60 == pytest.approx(14, rel=0.02)


def test_row_b10_dilated_windows_reach_further_with_the_same_weights():
    assert [Window(3, dilation=d).reach for d in (1, 2, 4)] == [3, 5, 9]
    assert chain([Window(3, dilation=d) for d in (1, 2, 4)]).size == 15
    # a strided convolution is a convolution, then every s-th place
    assert Window(3, stride=2).output_size(9) == len(range(Window(3).output_size(9))[::2])


def test_row_b13_says_that_a_window_does_not_fit_and_by_how_much():
    window = Window(3, stride=2)
    assert not window.misfit(4).fits
    assert (window.misfit(4).left_over, window.misfit(4).missing) == (1, 1)
    assert "leaves 1: pad 1" in window.explain(4)
    assert Window(3, stride=2, after=1).misfit(4).fits
    assert window.explain(5) == "floor((5 + 0 - 3) / 2) + 1 = 2"
    with pytest.raises(ShapeError, match=r"at least 3 places .* = 2, 1 too few.*pad 1 more"):
        window.output_size(2)


def test_row_f3_every_shape_of_the_39_net():
    sizes, channels = [39], [3]
    for window, filters in ((Window(3), 10), (Window(5, 2), 20), (Window(5, 2), 40)):
        sizes.append(window.output_size(sizes[-1]))
        channels.append(filters)
    assert sizes == [39, 37, 17, 7]
    assert sizes[-1] ** 2 * channels[-1] == 1960


# --- beyond the rows ------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
def test_same_gives_the_ceiling_at_any_stride(n, k, s, d):
    for name in ("same", "same_lower"):
        assert Window(k, s, d).padded(name, n).output_size(n) == -(-n // s)


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
def test_a_transposed_window_undoes_the_count(m, k, s, d):
    window = Window(k, s, d)
    for extra in range(s):
        assert window.output_size(window.input_size(m, extra)) == m


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
def test_ceil_mode_is_torchs(n, k, s, p):
    import torch

    if 2 * p <= k and n + 2 * p >= k:
        window = Window(k, s, before=p, after=p, ceil_mode=True)
        pooled = torch.nn.functional.max_pool1d(torch.zeros(1, 1, n), k, s, p, ceil_mode=True)
        assert window.output_size(n) == pooled.shape[-1]


def test_receptive_field_of_a_chain_and_of_branches():
    lenet = chain([Window(5, before=2, after=2), Window(2, 2), Window(5), Window(2, 2)])
    assert (lenet.size, lenet.stride, lenet.offset) == (16, 4, -2)
    assert lenet.span(1) == (2, 17)
    shortcut = merge(Field(), chain([Window(3, before=1, after=1)] * 2))
    assert (shortcut.size, shortcut.offset, shortcut.centre) == (5, -2, 0)
    inception = merge(*(Field().then(Window(k, before=k // 2, after=k // 2)) for k in (1, 3, 5)))
    assert inception.size == 5
    with pytest.raises(ShapeError, match="one stride"):
        merge(Field(), chain([Window(3, 2)]))


def test_receptive_field_through_a_transposed_layer():
    field = chain([Window(2, 2)]).then_transposed(Window(2, 2))
    assert (field.size, field.stride) == (2, Fraction(1))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 2, "stride": 0}, {"size": 2, "before": -1}])
def test_impossible_windows_are_errors(wrong):
    with pytest.raises(ShapeError):
        Window(**wrong)
    with pytest.raises(ShapeError):
        layers_until(9, Window(1), 3)
