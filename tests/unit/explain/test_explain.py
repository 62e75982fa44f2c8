"""Records about nets: against direct computation, on small nets of one to three axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convlens import explain, models
from convlens.data import Preprocessing
from convlens.errors import ArgumentError, ShapeError
from convlens.explain.pixel import Convolution
from convlens.layers.filters import HAND_FILTERS, FilterBank, hand_filter, separated

ndimage = pytest.importorskip("scipy.ndimage")
SCIPY_BORDERS = {
    "symmetric": "reflect",
    "reflect": "mirror",
    "replicate": "nearest",
    "circular": "wrap",
    "zeros": "constant",
}


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return explain.opened(models.create("lenet5", in_channels=1, num_classes=10, input_size=(28, 28)))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(1))


class TestFilters:
    @pytest.mark.parametrize("name", HAND_FILTERS)
    def test_sums_are_one_or_zero(self, name):
        total = float(hand_filter(name).sum())
        blur = name in ("identity", "box", "gaussian", "sharpen", "emboss")
        assert total == pytest.approx(1.0 if blur else 0.0, abs=1e-6)

    @pytest.mark.parametrize("border", explain.BORDERS)
    @pytest.mark.parametrize("name", ["sobel_x", "laplacian", "emboss", "edge_x", "gaussian"])
    def test_equal_to_scipy(self, name, border):
        image = np.random.default_rng(0).integers(0, 256, (23, 17)).astype(np.float32)
        kernel = hand_filter(name)
        ours = explain.filter_image(image, kernel, border)
        theirs = ndimage.correlate(image, kernel.numpy(), mode=SCIPY_BORDERS[border])
        np.testing.assert_allclose(ours, theirs, atol=2e-3)

    def test_gaussian_equals_scipys(self):
        image = np.random.default_rng(0).random((40, 31)).astype(np.float32)
        ours = explain.filter_image(image, hand_filter("gaussian", sigma=2.0))
        np.testing.assert_allclose(ours, ndimage.gaussian_filter(image, 2.0), atol=1e-5)

    def test_separable_gives_the_same_and_colour_is_handled(self):
        image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
        kernel = hand_filter("gaussian", size=5)
        apart = explain.filter_image(image, kernel, separable=True)
        whole = explain.filter_image(image, kernel, separable=False)
        assert apart.shape == image.shape
        np.testing.assert_allclose(apart, whole, atol=1e-3)
        with pytest.raises(ArgumentError, match="no outer product"):
            explain.filter_image(image, hand_filter("laplacian"), separable=True)

    def test_separated(self):
        column, row = separated(hand_filter("sobel_x"))
        torch.testing.assert_close(torch.outer(column, row), hand_filter("sobel_x"))
        assert separated(hand_filter("laplacian")) is None

    def test_hybrid_is_far_from_afar_and_near_close_by(self):
        rng = np.random.default_rng(0)
        far, near = (rng.integers(0, 256, (64, 64)).astype(np.float32) for _ in range(2))
        mixed = explain.hybrid(far, near, sigma=3.0)
        wide = hand_filter("gaussian", sigma=6.0)
        afar = np.corrcoef(explain.filter_image(mixed, wide).ravel(), explain.filter_image(far, wide).ravel())
        close = np.corrcoef(mixed.ravel(), near.ravel())
        assert afar[0, 1] > 0.8
        assert close[0, 1] > 0.8
        with pytest.raises(ShapeError, match="the shape of far"):
            explain.hybrid(far, near[:10])

    def test_numbers_as_kernel(self):
        assert explain.parse_kernel("0 1 0; 1 -4 1; 0 1 0").equal(hand_filter("laplacian"))
        for text in ("a,b", "1,2;3", ""):
            with pytest.raises(ArgumentError, match="kernel"):
                explain.parse_kernel(text)

    def test_bank_is_a_layer(self):
        bank = FilterBank(["sobel_x", "box", "edge_x"], in_channels=2, trainable=True)
        image = torch.rand(1, 2, 9, 9)
        out = bank(image)
        assert out.shape == (1, 6, 9, 9)
        expected = explain.filter_image(image[0, 1].numpy(), hand_filter("edge_x"), "replicate")
        np.testing.assert_allclose(out[0, 5].detach().numpy(), expected, atol=1e-6)
        out.sum().backward()
        assert bank.weight.grad is not None
        assert not FilterBank(["box"]).weight.requires_grad

    def test_unknown_names_are_explained(self):
        with pytest.raises(ArgumentError, match="one of identity, sobel_x"):
            hand_filter("sobble")
        with pytest.raises(ArgumentError, match="an odd number"):
            hand_filter("box", size=4)


class TestResemblance:
    @pytest.mark.parametrize("name", ["sobel_x", "laplacian", "gaussian", "prewitt_y", "sharpen"])
    def test_a_hand_filter_resembles_itself(self, name):
        found, similarity = explain.resemblance(-3.0 * hand_filter(name))
        assert found == name
        assert similarity == pytest.approx(1.0, abs=1e-5)

    def test_larger_kernels_and_nothing(self):
        wide = nn.functional.interpolate(hand_filter("sobel_y")[None, None], size=(7, 7), mode="bilinear")[0, 0]
        found, similarity = explain.resemblance(wide)
        assert found in ("sobel_y", "prewitt_y")
        assert similarity > 0.9
        assert explain.resemblance(torch.zeros(3, 3)) == (None, 0.0)
        assert explain.resemblance(torch.ones(1, 1)) == (None, 0.0)

    def test_every_filter_of_a_net_is_listed(self, lenet):
        found = explain.learned_filters(lenet)
        assert [len(filters) for filters in found.values()] == [6, 16]
        first = next(iter(found.values()))[0]
        assert first.weights.shape == (1, 5, 5)
        assert "≈" in str(first)


class TestPixel:
    @pytest.mark.parametrize(
        ("layer", "size"),
        [
            (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (9, 8)),
            (nn.Conv2d(2, 3, (2, 4), padding="same"), (6, 7)),
            (nn.Conv1d(3, 2, 5, stride=3, padding=2, bias=False), (14,)),
            (nn.Conv3d(2, 2, 2, padding=(1, 0, 1)), (4, 5, 3)),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")
    def test_the_parts_add_up(self, layer, size):
        layer = layer.double()
        batch = torch.randn(2, layer.in_channels, *size, dtype=torch.double, requires_grad=True)
        out = layer(batch)
        upstream = torch.randn_like(out)
        out.backward(upstream)
        parts = Convolution.of(layer)
        for position in np.ndindex(*out.shape[2:]):
            apart = explain.output_pixel(parts, batch[1].detach(), 1, position)
            assert apart.value == pytest.approx(float(out[(1, 1, *position)].detach()), abs=1e-10)
            assert np.array_equal(apart.products, apart.window * apart.kernel)
        for tap in np.ndindex(*parts.weight.shape[2:]):
            apart = explain.weight_gradient(parts, batch.detach(), upstream, 1, 1, tap)
            assert apart.value == pytest.approx(float(layer.weight.grad[(1, 1, *tap)]), abs=1e-10)
        for position in np.ndindex(*size):
            apart = explain.input_gradient(parts, size, upstream[1], 1, position)
            assert apart.value == pytest.approx(float(batch.grad[(1, 1, *position)]), abs=1e-10)

    def test_b12_rgb_walk_through(self):
        layer = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        apart = explain.output_pixel(Convolution.of(layer), torch.ones(3, 5, 5), 0, (0, 0))
        assert apart.start == (-1, -1)
        assert apart.inside.sum() == 4
        assert layer(torch.ones(1, 3, 5, 5)).shape == (1, 2, 3, 3)

    def test_what_is_no_convolution_is_refused(self):
        with pytest.raises(ArgumentError, match="received Linear"):
            Convolution.of(nn.Linear(2, 2))
        parts = Convolution.of(nn.Conv2d(1, 1, 3))
        with pytest.raises(ArgumentError, match=r"within \(3, 3\)"):
            explain.output_pixel(parts, torch.ones(1, 5, 5), 0, (3, 0))


class TestMaps:
    def test_every_layer_and_silent_channels(self, lenet, picture):
        maps = {record.layer: record for record in explain.feature_maps(lenet, picture)}
        assert maps["features.conv1.conv"].maps.shape == (6, 28, 28)
        dead = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        nn.init.constant_(dead[0].bias, -100.0)
        assert explain.feature_maps(dead, picture)[1].silent == (0, 1)

    def test_memory_is_bounded(self, lenet, picture):
        kept = explain.feature_maps(lenet, picture, budget_bytes=6 * 28 * 28 * 4)
        assert [record.layer for record in kept if record.maps.ndim == 3] == ["features.conv1.conv"]

    def test_modes_and_hooks_are_restored(self, lenet, picture):
        lenet.train()
        explain.feature_maps(lenet, picture)
        assert lenet.training
        assert not any(module._forward_hooks for module in lenet.modules())

    def test_unknown_layer_is_named(self, lenet, picture):
        with pytest.raises(ArgumentError, match=r"features\.conv2"):
            explain.capture(lenet, picture, ["features.conv9"])


class TestFields:
    def test_effective_field_of_a_chain(self):
        chain = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, stride=2))
        for layer in chain:
            nn.init.ones_(layer.weight)
        field = explain.effective_field(chain, torch.randn(1, 1, 15, 15), "1")
        assert all(high - low == 5 for low, high in field.reach)
        assert field.heat.max() == 1.0
        for (low, high), (first, last) in zip(field.core, field.reach, strict=True):
            assert first <= low < high <= last

    def test_positions_are_checked(self, lenet, picture):
        with pytest.raises(ArgumentError, match="coordinates within"):
            explain.effective_field(lenet, picture, "features.conv1.conv", position=(99, 0))


class TestExcite:
    def test_the_strongest_are_found_across_batches(self):
        net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        samples = torch.zeros(10, 1, 3, 4)
        samples[7, 0, 2, 1], samples[3, 0, 0, 3] = 5.0, 4.0
        found = explain.most_exciting(net, samples, "0", top=2, batch_size=3)
        assert [(e.sample, e.value, e.position) for e in found[0]] == [(7, 5.0, (2, 1)), (3, 4.0, (0, 3))]
        assert len(found[1]) == 2

    def test_no_samples(self, lenet):
        with pytest.raises(ArgumentError, match="at least one sample"):
            explain.most_exciting(lenet, torch.empty(0, 1, 28, 28), "features.conv1.conv")


class TestMistakes:
    def test_counts_pairs_and_calibration(self):
        probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])
        found = explain.mistakes(probabilities, np.array([0, 1, 1, 1]))
        assert found.accuracy == 0.75
        assert found.confusion.tolist() == [[1, 0], [1, 2]]
        assert (found.pairs[0].truth, found.pairs[0].answer, found.pairs[0].count) == (1, 0, 1)
        assert found.worst[0].sample == 1
        assert found.worst[0].truth_probability == pytest.approx(0.2)
        gap = (abs(0.9 - 1) + abs(0.8 - 0) + abs(0.7 - 1) + abs(0.55 - 1)) / 4
        assert found.calibration_error == pytest.approx(gap)

    def test_shapes_are_checked(self):
        with pytest.raises(ShapeError, match="one label for each of 2 rows"):
            explain.mistakes(np.ones((2, 3)), np.array([0]))


class TestAdversary:
    def test_a_linear_net_is_turned_by_the_known_amount(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        with torch.no_grad():
            net[1].weight.copy_(torch.stack([torch.ones(4), -torch.ones(4)]))
        preprocessing = Preprocessing(kind="image", channels=1, size=(2, 2), dtype="float32")
        sample = torch.full((1, 2, 2), 0.5)
        found = explain.adversarial(net, sample, preprocessing, limit=2.0)
        assert found.found
        assert (found.original, found.label) == (0, 1)
        assert found.epsilon == pytest.approx(0.5, rel=0.05)
        assert float(found.difference.abs().max()) <= found.epsilon + 1e-6

    def test_not_found_within_the_limit_says_so(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        with torch.no_grad():
            net[1].weight.zero_()
            net[1].bias.copy_(torch.tensor([5.0, 0.0]))
        preprocessing = Preprocessing(kind="image", channels=1, size=(2, 2))
        found = explain.adversarial(net, torch.zeros(1, 2, 2, dtype=torch.uint8), preprocessing)
        assert not found.found
        assert found.label == found.original == 0


class TestEvidence:
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_heat_lies_where_the_class_is(self, axes):
        pytest.importorskip("captum")
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        net = nn.Sequential(
            kind(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 8**axes, 2, bias=False)
        )
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, *(1,) * axes))
            net[3].weight.copy_(torch.cat([torch.ones(2, 8**axes), -torch.ones(2, 8**axes)], 1))
        input = torch.zeros(1, 1, *(8,) * axes)
        input[(0, 0, *(2,) * axes)] = 3.0
        assert explain.evidence_layer(net, input) == "1"  # the ReLU of the last convolution
        for method in ("grad_cam", "integrated_gradients"):
            heat = explain.class_evidence(net, input, target=0, method=method).heat
            assert heat.shape == (8,) * axes
            assert np.unravel_index(heat.argmax(), heat.shape) == (2,) * axes

    def test_a_net_without_places_is_refused(self):
        with pytest.raises(ArgumentError, match="none has more than one place"):
            explain.evidence_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(1, 1, 2, 2))


class TestOpened:
    def test_blocks_come_apart_over_the_same_weights(self, picture):
        net = models.create("lenet5", in_channels=1, num_classes=10, input_size=(28, 28))
        apart = explain.opened(net)
        torch.testing.assert_close(apart(picture), net(picture))
        assert apart.features.conv1.conv.weight is net.features.conv1.weight
        assert explain.layer_names(apart)[:3] == [
            f"features.conv1.{part}" for part in ("conv", "activation", "pool")
        ]
        assert explain.layer_names(net)[0] == "features.conv1"
