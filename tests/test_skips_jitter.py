"""Feature maps that are dropped, and intensities that are jittered: how often, how far, for which sample."""

import itertools

import numpy as np
import pytest
import torch

from dae3d.disrupt import clipped, sample_keys
from dae3d.disrupt.jitter import jitter
from dae3d.disrupt.skips import drop_skips

MANY = 2000
CHANCES = (0.5, 0.25, 0.125, 0.0625)


def keys_of(count, seed=0):
    return sample_keys(seed, torch.arange(count))


def maps(count, side=1):
    return [torch.ones(count, 2, side, side, side) for _ in range(5)]


# Feature maps


def test_fine_maps_are_dropped_as_often_as_told_and_the_last_one_never():
    dropped = [(level == 0).flatten(1) for level in drop_skips(maps(MANY), keys_of(MANY), 0.5)]
    for level, chance in zip(dropped, CHANCES, strict=False):
        assert torch.equal(level.all(1), level.any(1))  # a whole map, or nothing of it
        # Binomial: deviation of the share.
        bound = 4 * np.sqrt(chance * (1 - chance) / MANY)
        assert abs(float(level.all(1).float().mean()) - chance) < bound
    assert not dropped[4].any()
    # A map is dropped with all finer ones.
    for finer, coarser in itertools.pairwise(dropped):
        assert not (coarser.all(1) & ~finer.all(1)).any()


def test_what_is_kept_is_kept_as_it_is():
    hidden = [torch.rand(MANY, 3, 1, 1, 1) + 1 for _ in range(5)]
    for before, after in zip(hidden, drop_skips(hidden, keys_of(MANY), 0.5), strict=True):
        kept = (after != 0).flatten(1).all(1)
        assert torch.equal(after[kept], before[kept])


def test_a_sample_loses_the_same_maps_in_any_batch():
    keys = keys_of(40)
    whole = drop_skips(maps(40), keys, 0.5)
    rows = torch.tensor([31, 2, 17])
    for all_rows, some in zip(whole, drop_skips(maps(3), keys[rows], 0.5), strict=True):
        assert torch.equal(all_rows[rows], some)


def test_without_a_chance_nothing_is_dropped():
    hidden = maps(50)
    assert all(
        after is before for before, after in zip(hidden, drop_skips(hidden, keys_of(50), 0.0), strict=True)
    )


# Intensities


def crops(count=300, side=6):
    values = np.random.default_rng(0).normal(1, 2, (count, 1, side, side, side))
    return torch.from_numpy(values.astype(np.float32))


def everywhere(image):
    return torch.ones_like(image, dtype=torch.bool)


def lines(image, changed):
    """By sample: slope, offset, and the largest distance from that line."""
    found = []
    for before, after in zip(image.numpy(), changed.numpy(), strict=True):
        x, y = before.ravel().astype(np.float64), after.ravel().astype(np.float64)
        slope, offset = np.polyfit(x, y, 1)
        found.append((slope, offset, abs(y - slope * x - offset).max()))
    return np.array(found).T


def test_gain_and_shift_are_drawn_up_to_the_extent_and_seven_in_ten_have_no_gamma():
    image = crops()
    slope, offset, apart = lines(image, jitter(image, everywhere(image), keys_of(len(image)), 0.2))
    straight = apart < 1e-4
    assert abs(straight.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / len(image))
    shift = offset[straight] / image.flatten(1).std(1).numpy()[straight]
    for drawn in (slope[straight] - 1, shift):
        assert abs(drawn).max() <= 0.2 + 1e-4
        # Uniform in plus or minus 0.2, some 210 of them.
        assert abs(drawn.mean()) < 4 * 0.2 / np.sqrt(3 * straight.sum())
        assert abs(drawn.std() - 0.2 / np.sqrt(3)) < 0.02
        assert abs(drawn).max() > 0.18
    assert abs(np.corrcoef(slope[straight], shift)[0, 1]) < 0.3


def test_gammas_bend_between_the_ends():
    image = crops()
    changed = jitter(image, everywhere(image), keys_of(len(image)), 0.2)
    bent = lines(image, changed)[2] >= 1e-4
    logs = []
    for before, after in zip(image[bent].numpy(), changed[bent].numpy(), strict=True):
        x, y = (
            (v.ravel().astype(np.float64) - v.min()) / (v.max() - float(v.min())) for v in (before, after)
        )
        middle = (x > 0.2) & (x < 0.8)
        exponents = np.log(y[middle]) / np.log(x[middle])
        assert np.ptp(exponents) < 1e-3
        logs.append(np.log(exponents.mean()))
    assert max(map(abs, logs)) <= 0.4 + 1e-3
    assert min(logs) < -0.25
    assert max(logs) > 0.25


def test_padding_stays_zero_and_an_extent_of_zero_changes_nothing():
    image = crops(20)
    inside = everywhere(image)
    inside[:, :, :2] = False
    image = image.where(inside, 0)
    changed = jitter(image, inside, keys_of(20), 0.3)
    assert (changed[~inside] == 0).all()
    assert (changed[inside] != image[inside]).float().mean() > 0.99
    assert torch.equal(jitter(image, inside, keys_of(20), 0.0), image)


def test_a_sample_is_jittered_alike_in_any_batch_and_left_as_it_was_given():
    image, keys = crops(20), keys_of(20)
    before = image.clone()
    whole = jitter(image, everywhere(image), keys, 0.2)
    assert torch.equal(image, before)
    rows = torch.tensor([13, 4])
    some = jitter(image[rows], everywhere(image[rows]), keys[rows], 0.2)
    torch.testing.assert_close(some, whole[rows], rtol=1e-6, atol=1e-6)
    assert not torch.equal(jitter(image, everywhere(image), keys_of(20, seed=1), 0.2), whole)


def test_a_crop_without_contrast_stays_finite():
    flat = torch.full((8, 1, 4, 4, 4), 0.5)
    changed = jitter(flat, everywhere(flat), keys_of(8), 0.2)
    assert torch.isfinite(changed).all()
    assert (changed.flatten(1).std(1) < 1e-5).all()


@pytest.mark.parametrize(("limit", "expected"), [(2.0, [-2, -1, 0, 2]), (None, [-9, -1, 0, 7])])
def test_intensities_are_clipped_on_both_sides(limit, expected):
    assert clipped(torch.tensor([-9.0, -1.0, 0.0, 7.0]), limit).tolist() == expected
