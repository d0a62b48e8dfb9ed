"""What a probe computes, on features and networks of which the answer is known."""

import math

import numpy as np
import pytest
import torch

from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr.architecture import SwinArchitecture, normalised
from dae3d.objectives.reconstruction import reconstruction_loss
from dae3d.probing.features import Covariance, cosines, mean_cosines, nearest_modality
from dae3d.probing.levels import level_names, partners, shares, swap_errors, with_intensity_of
from dae3d.probing.metrics import ProbeMetrics
from dae3d.probing.probe import eval_mode
from dae3d.probing.ridge import Ridge, at_voxels, fit_ridge, look_up, mean_dice, overlaps
from dae3d.probing.verdict import UNKNOWN, WELL, verdict
from dae3d.probing.voxel_probe import case_windows, draw_voxels

pytestmark = pytest.mark.slow

LEVELS = level_names(5)

TINY = {"embed_dim": 4, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 2}


# The network in two halves


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("restore", [True, False])
@torch.inference_mode()
def test_a_repair_is_to_encode_and_to_decode(normalise, restore):
    torch.manual_seed(0)
    network = RepairNetwork(
        SwinArchitecture(**TINY, normalise_skips=normalise, restore_intensity=restore)
    ).eval()
    image = 3 + 2 * torch.rand(2, 1, 32, 32, 32)
    keep = (torch.rand(2, 4, 1, 1, 1) > 0.5).float()
    mask = torch.rand(2, 1, 16, 16, 16) > 0.5
    hidden = network.encoder(image, keep, mask)
    expected = normalised(hidden) if normalise else hidden
    assert all(map(torch.equal, network.encode(image, keep, mask), expected))
    repaired, features = network.repair(image, keep, mask)
    assert torch.equal(repaired, network.decode(image, expected))
    assert torch.equal(features, expected[4].mean(dim=(2, 3, 4)))
    out = network.decoder(image, expected)
    if restore:
        out = out * image.std(dim=(2, 3, 4), keepdim=True) + image.mean(dim=(2, 3, 4), keepdim=True)
    torch.testing.assert_close(repaired, out)


# Swaps


def test_a_partner_is_the_next_crop_of_another_scan():
    assert partners([1, 2, 3]) == [1, 2, 0]
    assert partners([1, 1, 2, 2]) == [2, 2, 0, 0]
    assert partners([5, 5]) == [None, None]
    assert partners([5]) == [None]


@pytest.mark.parametrize("used", [0, 2, 4, "image"])
@pytest.mark.parametrize("together", [1, 2, 5])
def test_only_the_level_that_a_decoder_looks_at_has_a_share(used, together):
    """The repair is that level's mean, and each crop's should be its number plus 1: an error of 1."""
    numbers = torch.tensor([0.0, 10.0, 20.0])
    image = numbers.view(3, 1, 1, 1, 1) + torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1, 1)
    hidden = [numbers.view(3, 1, 1, 1, 1).expand(3, 2, 2, 2, 2) for _ in range(5)]

    def decode(image, hidden, rows):
        return (image if used == "image" else hidden[used]).mean(dim=(1, 2, 3, 4))

    def error(repaired, rows):
        return (repaired - numbers[rows] - 1).abs()

    found = shares(swap_errors(decode, error, image, hidden, torch.tensor([1, 2, 0]), together))
    # Partners are 10, 10 and -20 away, so the errors are 9, 9 and 21 in place of 1.
    swapped = pytest.approx(100 * (39 / 3 - 1))
    for number, name in enumerate(LEVELS):
        assert found[name] == (swapped if number == used else 0)
    assert found["all"] == (0 if used == "image" else swapped)
    # The image of another crop comes with this crop's mean, which is all that this decoder looks at.
    assert found["image"] == pytest.approx(0, abs=1e-4)


def test_an_image_lent_to_another_crop_has_that_crops_intensity():
    torch.manual_seed(0)
    own, other = 5 + 2 * torch.randn(2, 1, 8, 8, 8), 0.1 * torch.randn(2, 1, 8, 8, 8)
    lent = with_intensity_of(own, other)
    for i in range(2):
        assert lent[i].mean() == pytest.approx(float(own[i].mean()), abs=1e-4)
        assert lent[i].std() == pytest.approx(float(own[i].std()), abs=1e-4)
        assert np.corrcoef(lent[i].flatten(), other[i].flatten())[0, 1] == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(with_intensity_of(own, torch.ones(2, 1, 8, 8, 8))).all()


class Zeros(torch.nn.Module):
    def forward(self, x):
        return x * 0


@torch.inference_mode()
def test_a_level_that_the_network_cannot_tell_apart_carries_nothing():
    """A skip of which the decoder makes zeros."""
    torch.manual_seed(0)
    network = RepairNetwork(SwinArchitecture(**TINY)).eval()
    network.decoder.skips["2"] = Zeros()  # of the first stage
    image = torch.rand(4, 1, 64, 64, 64)
    errors = swap_errors(
        lambda image, hidden, rows: network.decode(image, hidden),
        lambda repaired, rows: reconstruction_loss(repaired, image[rows]),
        image,
        network.encode(image),
        torch.tensor([1, 2, 3, 0]),
        2,
    )
    found = shares(errors)
    assert found["level1"] == 0
    assert all(abs(found[name]) > 1e-4 for name in ("level0", "level2", "level3", "level4", "all", "image"))


# Effective rank


def covariance_of(tokens, batches=1):
    covariance = Covariance()
    for part in np.array_split(tokens, batches):
        covariance.add(torch.tensor(part.T.copy(), dtype=torch.float32)[None, :, :, None, None])
    return covariance


@pytest.mark.parametrize("k", [1, 2, 5])
def test_as_many_equal_orthogonal_directions_are_the_rank(k):
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][:k]
    tokens = np.concatenate([directions, -directions]) + 3.0
    assert covariance_of(tokens).effective_rank() == pytest.approx(k, rel=1e-3)


def test_the_rank_is_that_of_the_covariance_whatever_the_batches():
    tokens = np.random.default_rng(1).normal(size=(60, 6)) @ np.diag([3, 2, 1, 1, 0.1, 0.01]) + 7
    values = np.linalg.eigvalsh(np.cov(tokens.T))
    share = values / values.sum()
    expected = math.exp(-(share * np.log(share)).sum())
    for batches in (1, 2, 7, 60):
        assert covariance_of(tokens, batches).effective_rank() == pytest.approx(expected, rel=1e-4)


def test_features_that_do_not_vary_have_no_rank_and_infinite_ones_none_that_is_known():
    assert covariance_of(np.full((10, 4), 0.3)).effective_rank() == 0
    assert math.isnan(covariance_of(np.array([[1.0, np.nan], [0, 1]])).effective_rank())


# Pooled features


def test_mean_cosines_by_hand():
    features = np.array([[1, 0], [1, 0], [0, 2], [3, 4]], np.float32)
    cosine = cosines(features)
    np.testing.assert_allclose(
        cosine, [[1, 1, 0, 0.6], [1, 1, 0, 0.6], [0, 0, 1, 0.8], [0.6, 0.6, 0.8, 1]], atol=1e-6
    )
    found = mean_cosines(cosine, modality=[0, 0, 0, 1], scan=[4, 4, 5, 6], subject=["a", "a", "a", "b"])
    assert found["any"] == pytest.approx((1 + 0 + 0.6 + 0 + 0.6 + 0.8) / 6)
    assert found["within"] == pytest.approx(1 / 3)
    assert found["between"] == pytest.approx(2 / 3)
    assert found["scan"] == pytest.approx(1)
    assert math.isnan(found["subjects"])
    others = mean_cosines(cosine, [0, 0, 0, 1], [4, 4, 5, 6], ["a", "a", "c", "b"])
    assert others["subjects"] == pytest.approx(0)


def test_nearest_neighbours_by_hand():
    angles = np.radians([0, 1, 10, 50, 44, 95])
    cosine = cosines(np.stack([np.cos(angles), np.sin(angles)], 1))
    modality, scan = [0, 0, 0, 1, 0, 1], [1, 1, 2, 3, 4, 5]
    # 0 and 1 are of one scan, so their nearest is 2. 2, 0, 1 and 5 are right, 3 and 4 take each other.
    share, chance, queries = nearest_modality(cosine, modality, scan)
    assert (share, queries) == (pytest.approx(4 / 6), 6)
    assert chance == pytest.approx(np.mean([2 / 4, 2 / 4, 3 / 5, 1 / 5, 3 / 5, 1 / 5]))


def test_a_crop_without_another_scan_of_its_modality_does_not_count():
    cosine = np.eye(3)
    assert nearest_modality(cosine, [0, 0, 1], [1, 2, 3])[2] == 2
    assert nearest_modality(cosine, [0, 0, 0], [1, 2, 3])[2] == 0


# Voxel probe


def linear_cases(seed, count, features=12, size=600):
    """Features of which the largest of three is the class, and others that say nothing."""
    random = np.random.default_rng(seed)
    cases = [random.normal(size=(size, features)) * 3 + 5 for _ in range(count)]
    labels = []
    for case in cases:
        direction = case[:, :1]
        labels.append((direction > 4).astype(int)[:, 0])
    return [torch.tensor(c, dtype=torch.float32) for c in cases], [torch.tensor(label) for label in labels]


def ones(labels):
    return [torch.ones(len(label)) for label in labels]


def test_with_one_penalty_it_is_the_ridge_regression_of_linear_algebra(monkeypatch):
    monkeypatch.setattr("dae3d.probing.ridge.PENALTIES", (0.1,))
    monkeypatch.setattr("dae3d.probing.ridge.OFFSETS", (0.0,))
    features, labels = linear_cases(0, 3)
    ridge = fit_ridge(features, labels, ones(labels), 2)
    x, y = torch.cat(features).double().numpy(), np.eye(2)[torch.cat(labels).numpy()]
    z = (x - x.mean(0)) / x.std(0)
    # Least squares with the penalty as further rows.
    rows = np.concatenate([z, np.sqrt(0.1 * len(z)) * np.eye(z.shape[1])])
    weight = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((12, 2))]), rcond=None)[0]
    expected = z @ weight + y.mean(0)
    np.testing.assert_allclose(ridge.scores(torch.tensor(x, dtype=torch.float32)), expected, atol=1e-4)


def test_classes_that_are_linear_in_the_features_are_found_and_others_are_not():
    features, labels = linear_cases(1, 4)
    ridge = fit_ridge(features, labels, ones(labels), 2)
    unseen, wanted = linear_cases(2, 1)
    assert mean_dice(overlaps(ridge.scores(unseen[0]).argmax(1), wanted[0], 2)) > 0.97
    shuffled = [
        label[torch.randperm(len(label), generator=torch.Generator().manual_seed(0))] for label in labels
    ]
    # What says nothing is nowhere better than to say that all voxels are of the class.
    blind = fit_ridge([f[:, 1:] for f in features], shuffled, ones(labels), 2)
    everywhere = mean_dice(overlaps(torch.ones_like(wanted[0]), wanted[0], 2))
    assert mean_dice(overlaps(blind.scores(unseen[0][:, 1:]).argmax(1), wanted[0], 2)) < everywhere + 0.02


def test_the_penalty_is_large_where_features_say_nothing_and_small_where_they_say_all(monkeypatch):
    features, labels = linear_cases(3, 4, size=60)
    telling = fit_ridge([f[:, :1] for f in features], labels, ones(labels), 2)
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(60, 40, generator=random) for _ in labels]
    idle = fit_ridge(noise, labels, ones(labels), 2)
    assert telling.weight.abs().max() * 3 > 0.3  # features have a deviation of 3
    assert idle.weight.abs().max() < 0.02


def test_a_rare_class_is_found_where_voxels_stand_for_as_many_as_there_are():
    """Half of the drawn voxels are of a class that has 1 of 50 voxels: the offset makes up for it."""
    random = np.random.default_rng(0)

    def case(background, organ):
        x = np.concatenate([random.normal(0, 1, background), random.normal(2.5, 1, organ)])
        return torch.tensor(x[:, None], dtype=torch.float32), torch.tensor([0] * background + [1] * organ)

    drawn = [case(500, 500) for _ in range(4)]
    features, labels = [d[0] for d in drawn], [d[1] for d in drawn]
    whole, label = case(49_000, 1000)

    def dice(stand_for):
        ridge = fit_ridge(features, labels, stand_for, 2)
        return mean_dice(overlaps(ridge.scores(whole).argmax(1), label, 2))

    weighted = dice([torch.where(each > 0, 2.0, 98.0) for each in labels])
    best = max(mean_dice(overlaps((whole[:, 0] > t).long(), label, 2)) for t in np.arange(-1, 5, 0.05))
    assert weighted > best - 0.03
    assert weighted > dice(ones(labels)) + 0.1


def test_one_case_is_enough():
    features, labels = linear_cases(4, 1)
    ridge = fit_ridge(features, labels, ones(labels), 2)
    assert mean_dice(overlaps(ridge.scores(features[0]).argmax(1), labels[0], 2)) > 0.95


def test_features_looked_up_are_those_of_the_interpolated_map():
    torch.manual_seed(0)
    feature, sides = torch.randn(3, 4, 3, 2), (16, 12, 8)
    whole = torch.nn.functional.interpolate(feature[None], size=sides, mode="trilinear", align_corners=False)[
        0
    ]
    where = torch.tensor([[0, 0, 0], [15, 11, 7], [3, 8, 1], [7, 2, 6]])
    expected = torch.stack([whole[:, x, y, z] for x, y, z in where.tolist()])
    torch.testing.assert_close(look_up(feature, where, sides), expected)


def test_scores_at_voxels_are_those_of_features_at_voxels_in_parts_or_together():
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 4, 4, 4), torch.randn(1, 3, 2, 2, 2)]
    ridge = Ridge(torch.randn(5, 3), torch.randn(3))
    sides = (8, 8, 8)
    where = torch.tensor([[0, 3, 7], [5, 5, 5]])
    found = at_voxels(ridge.parts([2, 3]), maps, sides)[0]
    features = torch.cat([look_up(each[0], where, sides) for each in maps], 1)
    expected = features @ ridge.weight + ridge.bias
    torch.testing.assert_close(torch.stack([found[:, x, y, z] for x, y, z in where.tolist()]), expected)


def test_dice_by_hand():
    predicted, label = torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([0, 1, 0, 2, 1, 2])
    counts = overlaps(predicted, label, 4)
    assert counts.tolist() == [[1, 2, 2], [1, 2, 2], [0, 0, 0]]
    assert mean_dice(counts) == 0.5
    # The third class is not there, and does not count; nor does a case without any.
    assert math.isnan(mean_dice(torch.zeros(2, 3)))
    weighted = overlaps(predicted, label, 4, torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert weighted.tolist() == [[2, 5, 7], [4, 9, 10], [0, 0, 0]]


# Cases


def test_windows_cover_the_labelled_voxels_and_the_fullest_come_first():
    labelled = np.array([[10, 10, 10], [60, 20, 12], [61, 21, 12]])
    windows = case_windows((80, 40, 40), labelled, (32, 32, 32))
    inside = [
        any((np.array(w) <= voxel).all() and (voxel < np.array(w) + 32).all() for w in windows)
        for voxel in labelled
    ]
    assert all(inside)
    assert len(windows) == 2
    first = np.array(windows[0])
    assert ((labelled >= first) & (labelled < first + 32)).all(1).sum() == 2
    grid = np.stack(np.meshgrid(*[np.arange(0, 200, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    assert len(case_windows((200, 200, 200), grid, (32, 32, 32))) == 8
    assert case_windows((20, 20, 20), labelled[:1], (32, 32, 32)) == [(-6, -6, -6)]


def test_half_of_the_voxels_drawn_are_background_and_the_rest_evenly_of_the_classes():
    labels = np.zeros((2, 20, 20, 20), int)
    labels[0, :5, :10], labels[1, 0, :2, :5] = 1, 3  # 1000 voxels and 10
    drawn = draw_voxels(labels, 400, np.random.default_rng(0))
    assert np.bincount(labels[tuple(drawn.T)]).tolist() == [200, 100, 0, 10]
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def test_ignored_voxels_are_not_drawn():
    labels = np.full((1, 10, 10, 10), 255)
    labels[0, 0], labels[0, 1, :5] = 0, 1
    drawn = draw_voxels(labels, 40, np.random.default_rng(0))
    assert np.bincount(labels[tuple(drawn.T)]).tolist() == [20, 20]


# Modes


def test_every_module_gets_back_its_mode():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
    network[1].eval()
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]


# Verdict


def figures(**changes):
    given = {
        "share": dict.fromkeys([*LEVELS, "all"], 30.0) | {"image": 20.0},
        "tokens": {"level0": 800, "level1": 400, "level2": 200, "level3": 100, "level4": 64},
        "crops": {"ct": 8},
        "cosine": {"any": 0.3, "within": 0.8, "between": 0.2},
        "dice": dict.fromkeys(LEVELS, 0.6),
    }
    return ProbeMetrics(**(given | changes))


RANDOM = dict.fromkeys(LEVELS, 0.4)


def said(weight=0.03, random=RANDOM, **changes):
    return verdict(figures(**changes), random, weight)


def test_a_network_of_which_every_level_carries_something_is_well():
    assert said() == (True, (WELL,))


def test_levels_that_carry_nothing_are_named():
    share = figures().share | {"level3": 0.9, "level4": -0.2}
    well, words = said(share=share)
    assert not well

    assert words[0].startswith(
        "Levels 3 and 4 are not used by the decoder, so the reconstruction loss does not"
    )
    assert "skip connection from the image" in said(share=share | {"image": 70.0})[1][0]


def test_levels_that_only_later_ones_train_are_named_but_are_no_fault():
    """As the first stage of a residual encoder, whose repair ends below full resolution."""
    well, words = said(share=figures().share | {"level0": 0.0})
    assert well
    assert words == (
        WELL,
        "Level 0 is not used by the decoder, so the reconstruction loss trains it only through later levels.",
    )
    well, words = said(share=figures().share | {"level1": 0.2, "level2": 0.0, "level4": 0.5})
    assert not well
    assert words[0].startswith(
        "Level 4 is not used by the decoder, so the reconstruction loss does not train it"
    )
    assert "Levels 1 and 2 are not used by the decoder" in words[1]


def test_levels_that_carry_little_are_named_but_are_no_fault():
    well, words = said(share=figures().share | {"level1": 1.0, "level2": 9.9})
    assert well
    assert words == (WELL, "Levels 1 and 2 are used little: 1 to 10 % of the L1.")


def test_collapsed_features_are_named_where_there_is_a_contrastive_loss():
    alike = {"any": 0.985, "within": 0.99, "between": 0.9}
    assert "collapsed" in said(cosine=alike)[1][0]
    close = {"any": 0.5, "within": 0.52, "between": 0.48}
    assert "collapsed" in said(cosine=close)[1][0]
    assert said(weight=0, cosine=alike)[0]
    # With one modality there is nothing to tell apart.
    assert said(cosine={"any": 0.5, "within": 0.5})[0]


def test_levels_no_better_than_random_weights_are_named():
    dice = figures().dice | {"level2": 0.41}
    assert said(dice=dice) == (False, ("Level 2 is no better than random weights in the voxel probe.",))
    assert said(dice=dice, random={})[0]


def test_a_level_of_one_token_a_crop_is_named_and_not_judged():
    single = figures().tokens | {"level4": 8}
    poor = {"dice": figures().dice | {"level4": 0.3}, "share": figures().share | {"level4": 0.0}}
    well, words = said(tokens=single, **poor)
    assert well
    assert words[0] == WELL
    assert words[1].startswith("Level 4 has a single token per crop of this size")
    assert not said(**poor)[0]


def test_what_was_not_measured_is_not_there():
    found = ProbeMetrics(
        share={"level0": float("nan"), "all": 3.0}, nearest=float("nan"), rank={"level0": 2.0}
    )
    assert found.rows() == {"probe/share/all": 3.0, "probe/rank/level0": 2.0}
    assert verdict(found, {}, 0.03) == (True, (WELL,))
    assert verdict(ProbeMetrics(), {}, 0.03) == (True, (UNKNOWN,))
