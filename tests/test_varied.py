"""Disruptions whose strengths are drawn for each sample."""

import numpy as np
import torch

from dae3d.disrupt import DISRUPTIONS, DisruptionSettings, disrupt
from dae3d.disrupt.batch import Disrupted, sample_keys
from dae3d.disrupt.varied import varied_block_mask, varied_downsample, varied_noise

MANY = 400


def given(image, seed=0):
    return Disrupted(image=image, keys=sample_keys(seed, torch.arange(len(image))))


def crops(count=MANY, side=16, deviation=1.0):
    values = np.random.default_rng(0).normal(0, deviation, (count, 1, side, side, side))
    return torch.from_numpy(values.astype(np.float32))


def test_noise_has_a_variance_drawn_up_to_the_one_given_and_a_quarter_has_none():
    image = crops(deviation=1.0)
    noise = varied_noise(given(image), DisruptionSettings(noise_variance=0.4)).image - image
    ratios = noise.flatten(1).var(1) / image.flatten(1).var(1)
    # Binomial with n 400, p 0.25: standard deviation 0.022.
    assert abs(float((ratios == 0).float().mean()) - 0.25) < 4 * 0.022
    some = ratios[ratios > 0]
    # Uniform up to 0.4: mean 0.2, deviation of the mean 0.4 / sqrt(12 * 300).
    assert abs(float(some.mean()) - 0.2) < 4 * 0.0067
    assert 0.37 < float(some.max()) < 0.43


def test_noise_is_relative_to_the_deviation_of_the_crop():
    strengths = DisruptionSettings(noise_variance=0.4)
    weak, strong = crops(deviation=0.02), crops(deviation=1.0)
    noises = [varied_noise(given(image), strengths).image - image for image in (weak, strong)]
    torch.testing.assert_close(noises[0] * 50, noises[1], rtol=1e-3, atol=1e-4)


def test_resolution_is_lost_by_factors_of_two_up_to_the_one_given():
    image = crops(side=8)
    coarse = varied_downsample(given(image), DisruptionSettings(downsample_factor=4)).image
    counts = {1: 0, 2: 0, 4: 0}
    for before, after in zip(image[:, 0].numpy(), coarse[:, 0].numpy(), strict=True):
        for factor in counts:
            parts = before.reshape(8 // factor, factor, 8 // factor, factor, 8 // factor, factor)
            blocks = parts.mean(axis=(1, 3, 5))
            expected = blocks.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
            counts[factor] += bool(np.abs(after - expected).max() < 1e-5)
    assert sum(counts.values()) == MANY
    # Binomial with n 400, p 1/3: standard deviation 9.4.
    assert all(abs(count - MANY / 3) < 4 * 9.4 for count in counts.values())


def test_blocks_of_several_sizes_are_masked_in_image_and_tokens_alike():
    image = crops(side=32, count=200) + 10
    masked = varied_block_mask(given(image), DisruptionSettings(block_size=16, block_mask_ratio=0.8))
    assert masked.voxel_mask is not None
    assert (masked.image[masked.voxel_mask] == 0).all()
    assert torch.equal(masked.image[~masked.voxel_mask], image[~masked.voxel_mask])
    tokens = masked.token_mask.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.equal(tokens, masked.voxel_mask)
    sizes = set()
    for mask in masked.voxel_mask[:, 0].numpy():
        fitting = [size for size in (16, 8, 4) if made_of_blocks(mask, size)]
        assert fitting
        if mask.any() and not mask.all():
            sizes.add(fitting[0])
    assert sizes == {4, 8, 16}
    shares = masked.voxel_mask.flatten(1).float().mean(1)
    # Means of the extents drawn: a quarter none, the others uniform up to 0.8.
    assert abs(float(shares.mean()) - 0.75 * 0.4) < 0.08
    assert (shares == 0).float().mean() > 0.15


def made_of_blocks(mask, size):
    side = 32 // size
    blocks = mask.reshape(side, size, side, size, side, size).transpose(0, 2, 4, 1, 3, 5).reshape(-1, size**3)
    return bool((blocks.all(1) == blocks.any(1)).all())


def test_some_crops_stay_as_they_are():
    image = crops(count=300)
    result = disrupt(image, 0, torch.arange(300), DisruptionSettings(disruption="varied"), 48)
    same = (result.image == image).flatten(1).all(1)
    # A quarter without noise, a third at full resolution, a quarter without masked blocks: 1 in 48.
    assert 1 <= int(same.sum()) < 20


def test_it_is_one_of_the_disruptions():
    assert "varied" in DISRUPTIONS
