"""What a repair is measured by, against sums by hand."""

import numpy as np
import pytest
import torch

from dae3d.disrupt import Disrupted
from dae3d.objectives.reconstruction import deviation, reconstruction_loss
from dae3d.objectives.repair import RepairLoss

SIDE = 16
PLAIN = {"relative": False, "on_padding": True, "masked_weight": 1.0}


def batch(seed=0):
    """Repairs at full resolution, 1/4 and 1/8, clean crops, where they are inside, and what is masked."""
    random = np.random.default_rng(seed)
    clean = random.normal(1, 2, (2, 1, SIDE, SIDE, SIDE))
    inside = np.zeros(clean.shape, bool)
    inside[0, :, 3:, :14, 2:13] = True
    inside[1] = True
    clean[~inside] = 0
    repaired = [clean + random.normal(0, 1, clean.shape)]
    repaired += [random.normal(1, 2, (2, 1, side, side, side)) for side in (SIDE // 4, SIDE // 8)]
    mask = random.random((2, 1, 4, 4, 4)).repeat(4, 2).repeat(4, 3).repeat(4, 4) < 0.4
    return repaired, clean, inside, mask


def blocks(volume, times):
    """Means over blocks of `times`^3 voxels."""
    batch, channels, side = volume.shape[:3]
    n = side // times
    parts = volume.reshape(batch, channels, n, times, n, times, n, times)
    return parts.mean(axis=(3, 5, 7))


def measured(loss, repaired, clean, inside, mask):
    tensors = [torch.from_numpy(image) for image in repaired]
    disrupted = Disrupted(
        torch.from_numpy(clean),
        torch.zeros(len(clean), dtype=torch.int64),
        voxel_mask=None if mask is None else torch.from_numpy(mask),
    )
    inside = None if inside is None else torch.from_numpy(inside)
    total, finest = loss.total(tensors, torch.from_numpy(clean), inside, disrupted)
    assert total.dtype == finest.dtype == torch.float32
    assert total.shape == finest.shape == (len(clean),)
    return total.numpy(), finest.numpy()


def by_hand(repaired, clean, weight):
    """Weighted mean absolute error of each sample, against the clean crop at the repair's resolution."""
    times = clean.shape[2] // repaired.shape[2]
    error = abs(repaired - blocks(clean, times))
    share = blocks(weight, times)
    return np.array([(e * w).sum() / w.sum() for e, w in zip(error, share, strict=True)])


def test_plain_it_is_the_mean_over_all_voxels():
    repaired, clean, inside, mask = batch()
    total, finest = measured(RepairLoss(**PLAIN), repaired[:1], clean, inside, mask)
    np.testing.assert_allclose(finest, abs(repaired[0] - clean).mean(axis=(1, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_array_equal(total, finest)


def test_padding_is_left_out():
    repaired, clean, inside, _ = batch()
    _, finest = measured(RepairLoss(**PLAIN | {"on_padding": False}), repaired[:1], clean, inside, None)
    error = abs(repaired[0] - clean)
    expected = [e[i].mean() for e, i in zip(error, inside, strict=True)]
    np.testing.assert_allclose(finest, expected, rtol=1e-5)
    anything = repaired[0] + np.where(inside, 0, 100)
    _, again = measured(RepairLoss(**PLAIN | {"on_padding": False}), [anything], clean, inside, None)
    np.testing.assert_array_equal(finest, again)


def test_it_is_divided_by_the_deviation_of_the_crop_inside_the_scan():
    repaired, clean, inside, _ = batch()
    plain = RepairLoss(**PLAIN | {"on_padding": False})
    relative = RepairLoss(**PLAIN | {"on_padding": False, "relative": True})
    deviations = [crop[where].std() for crop, where in zip(clean, inside, strict=True)]
    ratio = measured(plain, repaired, clean, inside, None)[0]
    ratio = ratio / measured(relative, repaired, clean, inside, None)[0]
    np.testing.assert_allclose(ratio, deviations, rtol=1e-5)
    # Ten times the contrast, ten times the error: the same loss.
    first = measured(relative, repaired, clean, inside, None)[0]
    tenfold = measured(relative, [10 * image for image in repaired], 10 * clean, inside, None)[0]
    np.testing.assert_allclose(tenfold, first, rtol=1e-5)


def test_with_padding_counted_it_is_in_the_deviation_too():
    repaired, clean, inside, _ = batch()
    plain, relative = RepairLoss(**PLAIN), RepairLoss(**PLAIN | {"relative": True})
    ratio = measured(plain, repaired, clean, inside, None)[0]
    ratio = ratio / measured(relative, repaired, clean, inside, None)[0]
    np.testing.assert_allclose(ratio, clean.std(axis=(1, 2, 3, 4)), rtol=1e-5)


def test_a_crop_without_contrast_is_divided_by_the_least_deviation():
    flat = torch.full((1, 1, 4, 4, 4), 3.0)
    assert deviation(flat).item() == pytest.approx(0.05)
    nothing = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    assert deviation(flat, nothing).item() == pytest.approx(0.05)
    assert reconstruction_loss(flat + 1, flat, nothing).item() == 0


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_masked_voxels_weigh_as_told(weight):
    repaired, clean, inside, mask = batch()
    loss = RepairLoss(**PLAIN | {"masked_weight": weight, "on_padding": False})
    _, finest = measured(loss, repaired[:1], clean, inside, mask)
    weights = np.where(mask, weight, 1.0) * inside
    np.testing.assert_allclose(finest, by_hand(repaired[0], clean, weights), rtol=1e-5)


def test_of_masked_voxels_alone():
    repaired, clean, inside, mask = batch()
    loss = RepairLoss(**PLAIN | {"masked_only": True})
    _, finest = measured(loss, repaired[:1], clean, inside, mask)
    error = abs(repaired[0] - clean)
    expected = [e[m].mean() for e, m in zip(error, mask, strict=True)]
    np.testing.assert_allclose(finest, expected, rtol=1e-5)


def test_coarse_repairs_are_compared_with_means_over_blocks():
    repaired, clean, inside, mask = batch()
    loss = RepairLoss(masked_weight=3.0, relative=True, on_padding=False, coarse_weight=0.25)
    total, finest = measured(loss, repaired, clean, inside, mask)
    weights = np.where(mask, 3.0, 1.0) * inside
    each = [by_hand(image, clean, weights) for image in repaired]
    deviations = np.array([crop[where].std() for crop, where in zip(clean, inside, strict=True)])
    np.testing.assert_allclose(finest, each[0] / deviations, rtol=1e-5)
    np.testing.assert_allclose(total, (each[0] + 0.25 * (each[1] + each[2])) / deviations, rtol=1e-5)


def test_a_perfect_repair_costs_nothing_at_any_resolution():
    _, clean, inside, mask = batch()
    perfect = [clean, blocks(clean, 4), blocks(clean, 8)]
    total, finest = measured(RepairLoss(), perfect, clean, inside, mask)
    np.testing.assert_allclose(total, 0, atol=1e-6)
    np.testing.assert_allclose(finest, 0, atol=1e-6)
