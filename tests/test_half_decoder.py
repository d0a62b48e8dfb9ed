"""The pre-training decoder that ends at half resolution."""

import itertools

import numpy as np
import pytest
import torch

from dae3d.models.network import RepairNetwork, _visible_intensity
from dae3d.models.repair_heads import _in_voxels
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.decoder import UnetrDecoder

SIZES = {"embed_dim": 4, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 2}
HEADS = {"half": 3, "pyramid": 5}
MASKS = {"none": 0, "blocks of 4": 4, "blocks of 8": 8, "tokens": 2}


def modules(decoder):
    """Beginnings of the parameters' names: "skips.0", "ups.4", "head"."""
    parts = (name.split(".") for name, _ in decoder.named_parameters())
    return {".".join(part[: 2 if part[1].isdigit() else 1]) for part in parts}


@pytest.mark.parametrize(("kind", "heads"), HEADS.items())
def test_half_resolution_leaves_out_the_last_block_and_the_image_s_skip(kind, heads):
    full, half = (UnetrDecoder(4, 1, 1, repair_from=name) for name in ("full", kind))
    assert modules(full) - modules(half) == {"skips.0", "ups.4", "head"}
    assert modules(half) - modules(full) == {f"repair_heads.{number}" for number in range(heads)}
    shapes = [tuple(head.conv.conv.weight.shape) for head in half.repair_heads]
    # 2^3 voxels of a place at 1/2; one at 1/4, 1/8, ...
    expected = [(8, 4, 1, 1, 1), (1, 8, 1, 1, 1), (1, 16, 1, 1, 1), (1, 32, 1, 1, 1), (1, 64, 1, 1, 1)]
    assert shapes == expected[:heads]
    theirs = dict(full.named_parameters())
    for name, parameter in half.named_parameters():
        assert name.startswith("repair_heads.") or parameter.shape == theirs[name].shape


@pytest.mark.parametrize(("kind", "heads"), HEADS.items())
@torch.inference_mode()
def test_repairs_come_at_full_resolution_and_at_a_quarter_an_eighth_and_so_on(kind, heads):
    network = RepairNetwork(SwinArchitecture(**SIZES, repair_from=kind)).eval()
    image = torch.rand(2, 1, 64, 32, 32)
    every = network.images(image, network.decoder.features(image, network.encode(image)))
    shapes = [(2, 1, 64, 32, 32), (2, 1, 16, 8, 8), (2, 1, 8, 4, 4), (2, 1, 4, 2, 2), (2, 1, 2, 1, 1)]
    assert [tuple(made.shape) for made in every] == shapes[:heads]
    assert torch.equal(every[0], network(image))


@pytest.mark.parametrize("kind", HEADS)
@torch.inference_mode()
def test_the_image_reaches_a_repair_through_the_encoder_alone(kind):
    architecture = SwinArchitecture(**SIZES, repair_from=kind, restore_intensity=False)
    network = RepairNetwork(architecture).eval()
    one, other = torch.rand(2, 1, 1, 32, 32, 32)
    hidden = network.encode(one)
    assert torch.equal(network.decode(one, hidden), network.decode(other, hidden))


def block_means(image, times):
    """(X, Y, Z) to the means of its blocks of times^3 voxels."""
    x, y, z = (side // times for side in image.shape)
    return image.reshape(x, times, y, times, z, times).mean(axis=(1, 3, 5))


@pytest.mark.parametrize("restored", [False, True])
@torch.inference_mode()
def test_a_repair_of_a_pyramid_averages_to_the_coarser_ones(restored):
    torch.manual_seed(1)
    network = RepairNetwork(
        SwinArchitecture(**SIZES, repair_from="pyramid", restore_intensity=restored)
    ).eval()
    image = torch.randn(1, 1, 64, 64, 32)
    finest, *coarse = (
        made[0, 0].double().numpy()
        for made in network.images(image, network.decoder.features(image, network.encode(image)))
    )
    for made, times in zip(coarse, (4, 8, 16, 32), strict=True):
        assert made.std() > 0.01
        np.testing.assert_allclose(block_means(finest, times), made, atol=1e-5)


@pytest.mark.parametrize("level", range(4))
@torch.inference_mode()
def test_a_level_of_a_pyramid_leaves_what_varies_more_slowly_to_those_below(level):
    torch.manual_seed(2)
    network = RepairNetwork(SwinArchitecture(**SIZES, repair_from="pyramid", restore_intensity=False)).eval()
    one, other = torch.randn(2, 1, 1, 64, 64, 64)
    hidden = network.encode(one)
    swapped = [*hidden[:level], network.encode(other)[level], *hidden[level + 1 :]]
    plain, changed = (network.decode(one, maps)[0, 0].double().numpy() for maps in (hidden, swapped))
    assert np.abs(changed - plain).mean() > 1e-3
    # Level 0 is at 1/2 of the resolution, level 1 at 1/4; the next coarser image has blocks of 4, of 8.
    times = 2 ** (level + 2)
    np.testing.assert_allclose(block_means(changed, times), block_means(plain, times), atol=1e-5)


def test_the_channels_of_a_place_are_its_voxels():
    features = torch.rand(2, 16, 3, 2, 4)
    expected = np.zeros((2, 2, 6, 4, 8), np.float32)
    places = itertools.product(range(2), range(2), range(3), range(2), range(4))
    for batch, channel, x, y, z in places:
        for i, j, k in itertools.product(range(2), repeat=3):
            value = features[batch, 8 * channel + 4 * i + 2 * j + k, x, y, z]
            expected[batch, channel, 2 * x + i, 2 * y + j, 2 * z + k] = value
    np.testing.assert_array_equal(_in_voxels(features, (2, 2, 2)).numpy(), expected)


def masked_blocks(side, block, seed):
    """(side, side, side) bool, half of the blocks."""
    grid = np.random.default_rng(seed).random((side // block,) * 3) < 0.5
    return grid.repeat(block, 0).repeat(block, 1).repeat(block, 2)


def seen(image, mask):
    """Mean and deviation of the means of visible voxels in blocks of 4^3, by how many those are."""
    means, counts = [], []
    for x, y, z in itertools.product(*(range(0, side, 4) for side in image.shape)):
        block = (slice(x, x + 4), slice(y, y + 4), slice(z, z + 4))
        visible = image[block][~mask[block]]
        if visible.size:
            means.append(visible.mean())
            counts.append(visible.size)
    mean = np.average(means, weights=counts)
    return mean, np.sqrt(np.average((np.array(means) - mean) ** 2, weights=counts))


@pytest.mark.parametrize("block", MASKS.values(), ids=MASKS)
def test_intensity_is_that_of_the_blocks_that_are_seen(block):
    random = np.random.default_rng(3)
    images = random.normal(2, 3, (2, 1, 16, 16, 16))
    masks = np.zeros(images.shape, bool)
    if block:
        masks[:, 0] = [masked_blocks(16, block, seed) for seed in (0, 1)]
    shown = torch.from_numpy(np.where(masks, 0, images))
    tokens = torch.from_numpy(masks[:, :, ::2, ::2, ::2]) if block else None
    means, deviations = _visible_intensity(shown, tokens)
    assert means.shape == deviations.shape == (2, 1, 1, 1, 1)
    for image, mask, mean, deviation in zip(images, masks, means, deviations, strict=True):
        expected = seen(image[0], mask[0])
        assert (mean.item(), deviation.item()) == pytest.approx(expected, abs=1e-9)


def test_what_is_masked_pulls_neither_mean_nor_deviation_towards_zero():
    mask = torch.from_numpy(masked_blocks(32, 8, 5))[None, None]
    image = torch.full((1, 1, 32, 32, 32), 7.0).masked_fill(mask, 0)
    mean, deviation = _visible_intensity(image, mask[:, :, ::2, ::2, ::2])
    assert mean.item() == pytest.approx(7, abs=1e-5)
    assert deviation.item() == pytest.approx(0, abs=1e-5)


def test_a_crop_that_is_masked_altogether_has_finite_intensity():
    everything = torch.ones(1, 1, 16, 16, 16, dtype=torch.bool)
    found = _visible_intensity(torch.zeros(1, 1, 32, 32, 32), everything)
    assert [value.item() for value in found] == [0, 0]


@torch.inference_mode()
def test_a_repair_has_the_intensity_of_what_is_seen():
    torch.manual_seed(0)
    network = RepairNetwork(SwinArchitecture(**SIZES, repair_from="half")).eval()
    image = torch.rand(1, 1, 32, 32, 32)
    hidden = network.encode(image)
    plain = network.decode(image, hidden)
    # Other intensities of the same picture, as only `image` tells here.
    moved = network.decode(3 * image + 10, hidden)
    torch.testing.assert_close(moved, 3 * plain + 10, rtol=1e-4, atol=1e-4)
