"""The dense contrastive loss: against loops, and where its value is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from dae3d.disrupt.random import uniform
from dae3d.objectives.dense import Projections, dense_contrast

ORIGINS = [[10, 4, -8], [14, 0, -8], [0, 0, 0], [-12, 8, 12]]


def keys_of(pairs):
    return torch.arange(2 * pairs) + (7 << 32)


def overlap(first, second, grid, stride):
    """By axis: the numbers of the first crop's features that lie in the second crop too."""
    low, high = [], []
    for a, b, side, step in zip(first, second, grid, stride, strict=True):
        there = [i for i in range(side) if 0 <= a + step * i - b < step * side]
        low.append(there[0])
        high.append(there[-1] + 1)
    return low, high


def places_of(key, first, second, grid, stride):
    """The 128 places in the first crop's grid that the loss compares."""
    low, high = overlap(first, second, grid, stride)
    drawn = uniform(key[None], 3 * 128, 10)[0].view(128, 3).numpy()
    width = np.subtract(high, low).astype(np.float32)
    return low + np.floor(drawn * width).astype(int)


def slow(features, origin, stride, keys, temperature, project=lambda vector: vector):
    """One place after the other, in float64."""
    losses = []
    stride = np.array(stride)
    features = features.double().numpy()
    grid = features.shape[2:]
    for pair in range(0, len(features), 2):
        one, other = origin[pair].tolist(), origin[pair + 1].tolist()
        places = places_of(keys[pair], one, other, grid, stride)
        vectors = []
        for crop, begin in ((pair, one), (pair + 1, other)):
            found = []
            for place in places:
                voxel = np.array(one) + stride * place  # in the scan
                index = (voxel - begin) // stride
                vector = project(features[(crop, slice(None), *index)])
                found.append(vector / np.linalg.norm(vector))
            vectors.append(found)
        near = [
            [math.dist(stride * p, stride * q) < 6 and i != j for j, q in enumerate(places)]
            for i, p in enumerate(places)
        ]
        for mine, theirs in (vectors, vectors[::-1]):
            for i, j_near in enumerate(near):
                wanted = mine[i] @ theirs[i] / temperature
                others = [mine[i] @ theirs[j] / temperature for j in range(128) if not j_near[j]]
                losses.append(np.log(np.exp(others).sum()) - wanted)
    return np.mean(losses)


@pytest.mark.parametrize("stride", [(2, 2, 2), (4, 4, 4), (4, 2, 1), (2, 4, 4)])
def test_it_is_what_loops_over_places_give(stride):
    torch.manual_seed(0)
    features = torch.randn(4, 6, *(32 // step for step in stride))
    origin = torch.tensor(ORIGINS)
    projection = Projections([6])[0]
    arrays = [p.detach().double().numpy() for p in projection.parameters()]

    def project(vector):
        hidden = np.maximum(arrays[0] @ vector + arrays[1], 0)
        return arrays[2] @ hidden + arrays[3]

    loss = dense_contrast(features, projection, origin, stride, keys_of(2), 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow(features, origin, stride, keys_of(2), 0.1, project), abs=1e-4)


def test_features_that_pairs_do_not_share_are_refused():
    with pytest.raises(ValueError, match=r"4 x 4 x 4 voxels.*strides 2 x 8 x 4"):
        dense_contrast(
            torch.ones(2, 3, 16, 4, 8), nn.Identity(), torch.zeros(2, 3).long(), (2, 8, 4), keys_of(1), 0.1
        )


def test_features_that_tell_nothing_cost_the_logarithm_of_the_places():
    features = torch.ones(4, 5, 16, 16, 16)
    loss = dense_contrast(features, nn.Identity(), torch.tensor(ORIGINS), (4, 4, 4), keys_of(2), 0.1)
    # A little less, for places next to each other are not negatives.
    assert math.log(128) - 0.05 < loss.item() <= math.log(128) + 1e-5


def scan_of_vectors(channels=64, side=24):
    """A vector of its own at every place of a scan."""
    return torch.randn(channels, side, side, side, generator=torch.Generator().manual_seed(2))


def crops(scan, starts, grid=12):
    boxes = [tuple(slice(first, first + grid) for first in start) for start in starts]
    return torch.stack([scan[(slice(None), *box)] for box in boxes])


STARTS = [[3, 4, 5], [6, 2, 5], [0, 8, 9], [3, 11, 6]]  # in features


def test_places_with_a_vector_of_their_own_cost_next_to_nothing():
    features = crops(scan_of_vectors(), STARTS)
    origin = 4 * torch.tensor(STARTS)
    loss = dense_contrast(features, nn.Identity(), origin, (4, 4, 4), keys_of(2), 0.05)
    assert 0 <= loss.item() < 0.02
    # A wrong origin compares other places.
    wrong = origin.clone()
    wrong[1::2, 0] += 4
    assert dense_contrast(features, nn.Identity(), wrong, (4, 4, 4), keys_of(2), 0.05).item() > 4


def test_where_the_crops_lie_in_the_scan_does_not_matter():
    torch.manual_seed(1)
    features, origin = torch.randn(4, 8, 8, 8, 8), torch.tensor(ORIGINS)
    given = (nn.Identity(), origin, (4, 4, 4), keys_of(2), 0.1)
    here = dense_contrast(features, *given)
    moved = origin + torch.tensor([[40, -12, 7]])
    there = dense_contrast(features, nn.Identity(), moved, (4, 4, 4), keys_of(2), 0.1)
    assert torch.equal(here, there)


def test_a_pair_costs_the_same_in_any_batch():
    torch.manual_seed(1)
    features, origin = torch.randn(4, 8, 8, 8, 8), torch.tensor(ORIGINS)
    whole = dense_contrast(features, nn.Identity(), origin, (4, 4, 4), keys_of(2), 0.1)
    pairs = [
        dense_contrast(features[rows], nn.Identity(), origin[rows], (4, 4, 4), keys_of(2)[rows], 0.1)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert whole.item() == pytest.approx(float(sum(pairs)) / 2, abs=1e-5)


def test_learning_brings_features_of_one_place_together():
    torch.manual_seed(0)
    features = crops(scan_of_vectors(16), STARTS) + 0.8 * torch.randn(4, 16, 12, 12, 12)
    origin = 4 * torch.tensor(STARTS)
    projection = Projections([16])[0]
    optimiser = torch.optim.Adam(projection.parameters(), 1e-2)
    losses = []
    for step in range(30):
        loss = dense_contrast(features, projection, origin, (4, 4, 4), keys_of(2) + 4 * step, 0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_every_place_of_the_overlap_is_compared_sooner_or_later():
    first, second, grid = [0, 0, 0], [4, -4, 0], (3, 3, 3)
    low, high = overlap(first, second, grid, (4, 4, 4))
    assert (low, high) == ([1, 0, 0], [3, 2, 3])
    drawn = {tuple(place) for place in places_of(keys_of(1)[0], first, second, grid, (4, 4, 4)).tolist()}
    wanted = itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True)))
    assert drawn == set(wanted)
