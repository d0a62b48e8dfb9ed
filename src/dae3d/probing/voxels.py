"""Classes of voxels by ridge regression on features that stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Penalties tried, as shares of the number of voxels; features have deviation 1.
PENALTIES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0, 1))
_ALONE = 1e-2  # with one case, which leaves none to choose by


@dataclass(frozen=True)
class Ridge:
    """A linear map from features (F) to scores of classes (K): `weight` (F, K) float32, `bias` (K)."""

    weight: Tensor
    bias: Tensor

    def scores(self, feature: Tensor) -> Tensor:
        """(B, F, ...) to (B, K, ...)."""
        given = feature.float().movedim(1, -1)
        return (given @ self.weight.to(given) + self.bias.to(given)).movedim(-1, 1)


def fit_ridge(features: Sequence[Tensor], labels: Sequence[Tensor], classes: int) -> Ridge:
    """Ridge regression from standardised features to one-hot labels, with an intercept.

    The penalty is the one of `PENALTIES` with the least squared error on cases that were left out in turn.

    Args:
        features: (n, F) of the voxels of each case.
        labels: (n,) int64 of each case.
        classes: how many there are.
    """
    given, wanted = torch.cat(list(features)).double(), torch.cat(list(labels))
    target = functional.one_hot(wanted, classes).to(given)
    mean, prior = given.mean(0), target.mean(0)
    deviation = given.std(0, correction=0).clamp(min=1e-6)
    given, target = (given - mean) / deviation, target - prior
    counts = [len(part) for part in features]
    grams = [x.T @ x for x in given.split(counts)]
    moments = [x.T @ y for x, y in zip(given.split(counts), target.split(counts), strict=True)]
    gram, moment = sum(grams, torch.zeros(())), sum(moments, torch.zeros(()))
    penalty = _ALONE if len(counts) == 1 else _best_penalty(grams, moments, gram, moment, counts)
    weight = _solve(gram, moment, penalty * len(given)) / deviation[:, None]
    return Ridge(weight.float(), (prior - mean @ weight).float())


def _best_penalty(
    grams: list[Tensor], moments: list[Tensor], gram: Tensor, moment: Tensor, counts: list[int]
) -> float:
    """Sums of squares need the products alone: |Y - X W|^2 = |Y|^2 - 2 tr(W'X'Y) + tr(W'X'X W)."""
    errors = []
    for penalty in PENALTIES:
        error = 0.0
        for own, own_moment, count in zip(grams, moments, counts, strict=True):
            weight = _solve(gram - own, moment - own_moment, penalty * (sum(counts) - count))
            error += float((weight * (own @ weight - 2 * own_moment)).sum())
        errors.append(error)
    return PENALTIES[min(range(len(errors)), key=errors.__getitem__)]


def _solve(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """(X'X + penalty I)^-1 X'Y."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + penalty * eye, moment)


def look_up(feature: Tensor, where: Tensor, sides: Sequence[int]) -> Tensor:
    """Features at voxels, by trilinear interpolation between tokens, as `at_voxels` interpolates maps.

    Args:
        feature: (C, d, h, w), of a volume of `sides` voxels.
        where: (N, 3) voxels of it.
        sides: of the volume.

    Returns:
        (N, C) float32.
    """
    size = torch.tensor(sides, device=feature.device, dtype=torch.float32)
    # From -1 to 1 between the outer faces; the last axis comes first.
    place = ((2 * where.to(feature.device) + 1) / size - 1).flip(-1)[None, None, None]
    found = functional.grid_sample(
        feature[None].float(), place, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0, 0].T


def at_voxels(scores: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, K, d, h, w) at tokens to (B, K, *sides) at voxels, by trilinear interpolation."""
    return functional.interpolate(scores, size=tuple(sides), mode="trilinear", align_corners=False)


def overlaps(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Voxels of each class but the background: in both, in the prediction, in the label; (classes - 1, 3)."""
    both = torch.where(predicted == label, label, 0)
    counted = [torch.bincount(of.flatten().long(), minlength=classes)[1:] for of in (both, predicted, label)]
    return torch.stack(counted, 1)


def mean_dice(counts: Tensor) -> float:
    """Mean Dice of the classes that the label has, of `overlaps`; NaN where it has none."""
    both, predicted, label = counts.double().unbind(1)
    there = label > 0
    return float((2 * both / (predicted + label))[there].mean())
