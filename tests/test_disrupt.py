import sys
from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dae3d.disrupt import DISRUPTIONS, DisruptionSettings, disrupt, random, sample_keys
from dae3d.disrupt.jitter import jitter
from dae3d.disrupt.random import choose, normal, philox, uniform
from dae3d.disrupt.skips import drop_skips
from dae3d.objectives.dense import dense_contrast

STRENGTHS = DisruptionSettings()


def images(batch=3, side=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((batch, 1, side, side, side), np.float32))


def run(name, image, samples=None, strengths=STRENGTHS, seed=0):
    samples = torch.arange(len(image)) if samples is None else torch.tensor(samples)
    return disrupt(image, seed, samples, strengths.model_copy(update={"disruption": name}), 48)


def test_philox_gives_the_known_answers_of_random123():
    # kat_vectors of the Random123 distribution, philox4x32 with 10 rounds.
    known = [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for counter, key, expected in known:
        words = philox(*(tuple(torch.tensor(int(w, 16)) for w in text.split()) for text in (counter, key)))
        assert [f"{int(w):08x}" for w in words] == expected.split()


def test_uniform_and_normal_have_their_distribution():
    u = uniform(torch.tensor([5]), 200_000, stream=1)[0].numpy()
    n = normal(torch.tensor([5]), 200_001, stream=1)[0].numpy()
    assert 0 < u.min() < u.max() < 1
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(n, "norm").pvalue > 1e-3
    assert np.isfinite(n).all()
    assert abs(np.corrcoef(n[:-1], n[1:])[0, 1]) < 0.01


@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=4, unique=True))
@settings(max_examples=20)
def test_a_sample_is_disrupted_alike_in_every_batch(seed, samples):
    image = images(len(samples), 32)
    for name in DISRUPTIONS:
        together = run(name, image, samples, seed=seed)
        alone = run(name, image[1:2], samples[1:2], seed=seed)
        torch.testing.assert_close(together.image[1:2], alone.image, rtol=0, atol=0)
        for field in ("channel_keep", "voxel_mask"):
            if getattr(alone, field) is not None:
                assert torch.equal(getattr(together, field)[1:2], getattr(alone, field))


@pytest.mark.parametrize("name", DISRUPTIONS)
def test_no_two_parts_of_a_step_draw_the_same_random_numbers(name, monkeypatch):
    users = defaultdict(set)  # of each stream, the functions that draw from it
    plain = random.philox

    def recorded(counter, key):
        frame = sys._getframe(1)
        while frame.f_code.co_filename == random.__file__:
            frame = frame.f_back
        users[int(counter[2].flatten()[0])].add(frame.f_code)
        return plain(counter, key)

    monkeypatch.setattr(random, "philox", recorded)
    image, keys = images(4), sample_keys(0, torch.arange(4))
    jitter(image, torch.ones_like(image, dtype=torch.bool), keys, 0.2)
    run(name, image)
    drop_skips([image, image], keys, 0.5)
    dense_contrast(image, torch.nn.Identity(), torch.zeros(4, 3, dtype=torch.int64), (1, 1, 1), keys, 0.1)
    assert len(users) >= 3
    assert all(len(functions) == 1 for functions in users.values())


@pytest.mark.parametrize("name", DISRUPTIONS)
def test_the_clean_image_is_untouched(name):
    image = images()
    before = image.clone()
    run(name, image)
    assert torch.equal(image, before)


def test_noise_variance_and_independence_between_samples():
    image = torch.zeros(3, 1, 64, 64, 64)
    noise = run("denoise", image, strengths=DisruptionSettings(noise_variance=0.25)).image
    values = noise.flatten(1).double()
    # 262,144 voxels: the variance of a sample variance of 0.25 is 2 * 0.25^2 / n; allow 5 deviations.
    torch.testing.assert_close(
        values.var(dim=1), torch.full((3,), 0.25, dtype=torch.double), rtol=0, atol=0.0035
    )
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(3, dtype=torch.double), rtol=0, atol=0.005)
    assert (torch.corrcoef(values) - torch.eye(3)).abs().max() < 0.01


def test_noise_is_not_clipped():
    noisy = run("denoise", torch.zeros(1, 1, 32, 32, 32)).image
    assert noisy.min() < 0


def test_downsampling_repeats_the_first_voxel_of_each_block():
    image = images(2, 32)
    expected = image.numpy()[:, :, ::4, ::4, ::4].repeat(4, 2).repeat(4, 3).repeat(4, 4)
    np.testing.assert_array_equal(run("superres", image).image.numpy(), expected)


@pytest.mark.parametrize("per_token", [False, True])
def test_local_mask_masks_exactly_28_of_48_channels_of_each_sample(per_token):
    keep = run(
        "local_mask", images(4), strengths=DisruptionSettings(channel_mask_per_token=per_token)
    ).channel_keep
    assert keep.shape == ((4, 48, 16, 16, 16) if per_token else (4, 48, 1, 1, 1))
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert (keep.sum(dim=1) == 48 - 28).all()
    assert len({tuple(sample.flatten().tolist()) for sample in keep}) == 4


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 1, 1)])
def test_local_mask_masks_whole_blocks_of_places_in_all_channels(stride):
    settings = DisruptionSettings(disruption="local_mask", local_mask="blocks", block_size=8)
    image = torch.rand(3, 1, 32, 32, 16)
    result = disrupt(image, 0, torch.arange(3), settings, 48, stride)
    assert torch.equal(result.image, image)
    assert result.voxel_mask is None
    keep = result.channel_keep
    assert keep.shape == (3, 1, 32 // stride[0], 32 // stride[1], 16 // stride[2])
    side = 8 // stride[0]
    blocks = keep.unflatten(4, (2, side)).unflatten(3, (4, side)).unflatten(2, (4, side))
    blocks = blocks.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))
    assert (blocks.amax(-1) == 0).flatten(1).sum(1).tolist() == [20, 20, 20]  # ceil(0.6 * 32)
    assert len({tuple(sample.flatten().tolist()) for sample in keep}) == 3


def test_channels_are_masked_equally_often():
    masked = choose(torch.arange(5000), 1, 48, 28, stream=2).double().mean(dim=(0, 1))
    # Binomial with n 5000, p 28/48: standard deviation 0.007.
    assert (masked - 28 / 48).abs().max() < 5 * 0.007


def test_all_is_noise_then_downsampling_then_local_mask():
    image = images(2)
    everything = run("all", image)
    noisy = run("denoise", image).image
    torch.testing.assert_close(everything.image, run("superres", noisy).image, rtol=0, atol=0)
    assert torch.equal(everything.channel_keep, run("local_mask", image).channel_keep)


def test_mae_masks_whole_blocks_and_their_tokens():
    image = images(2, 96) + 1
    masked = run("mae", image)
    blocks = masked.voxel_mask.unflatten(4, (6, 16)).unflatten(3, (6, 16)).unflatten(2, (6, 16))
    blocks = blocks.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5)
    assert torch.equal(blocks.all(-1), blocks.any(-1))
    assert blocks.any(-1).flatten(1).sum(1).tolist() == [130, 130]  # ceil(0.6 * 216)
    assert (masked.image[masked.voxel_mask] == 0).all()
    assert torch.equal(masked.image[~masked.voxel_mask], image[~masked.voxel_mask])
    assert torch.equal(
        masked.token_mask.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4),
        masked.voxel_mask,
    )
