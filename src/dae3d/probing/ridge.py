"""Ridge regression from frozen features to the classes of voxels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Candidate penalties, relative to the number of voxels, for standardised features.
PENALTIES = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0, 1))
OFFSETS = tuple(tenth / 20 for tenth in range(-10, 11))
_ALONE = 1e-2  # with a single case, which does not allow cross-validation


@dataclass(frozen=True)
class Ridge:
    """A linear map from features (F) to scores of classes (K): `weight` (F, K) float32, `bias` (K)."""

    weight: Tensor
    bias: Tensor

    def scores(self, feature: Tensor) -> Tensor:
        """(B, F, ...) to (B, K, ...)."""
        given = feature.float().movedim(1, -1)
        return (given @ self.weight.to(given) + self.bias.to(given)).movedim(-1, 1)

    def parts(self, sizes: Sequence[int]) -> list["Ridge"]:
        """Split into maps from consecutive features of these sizes, whose scores sum to those of this map."""
        weights = self.weight.split(list(sizes))
        return [Ridge(w, self.bias if i == 0 else 0 * self.bias) for i, w in enumerate(weights)]


def fit_ridge(
    features: Sequence[Tensor], labels: Sequence[Tensor], stand_for: Sequence[Tensor], classes: int
) -> Ridge:
    """Ridge regression from standardised features to one-hot labels, with an intercept.

    Leave-one-case-out cross-validation selects the penalty from `PENALTIES` by squared error, and an offset
    of the background score from `OFFSETS` by mean Dice. The offset corrects for the overrepresentation of
    foreground classes in the sampled voxels.

    Args:
        features: (n, F) of the voxels of each case.
        labels: (n,) int64 of each case.
        stand_for: (n,) how many voxels of the case each sampled voxel stands for.
        classes: number of classes.
    """
    given, wanted = torch.cat(list(features)).double(), torch.cat(list(labels))
    target = functional.one_hot(wanted, classes).to(given)
    mean, prior = given.mean(0), target.mean(0)
    deviation = given.std(0, correction=0).clamp(min=1e-6)
    given = (given - mean) / deviation
    counts = [len(part) for part in features]
    cases = [_Case(*parts) for parts in zip(given.split(counts), (target - prior).split(counts), strict=True)]
    penalty, left_out = _left_out(cases)
    weight = _solve(_sum(c.gram for c in cases), _sum(c.moment for c in cases), penalty * len(given))
    bias = prior.clone()
    bias[0] += _best_offset(left_out + prior, wanted, torch.cat(list(stand_for)), classes)
    weight = weight / deviation[:, None]
    return Ridge(weight.float(), (bias - mean @ weight).float())


class _Case:
    """Features (n, F) and targets (n, K) of a case, and their products."""

    def __init__(self, given: Tensor, target: Tensor) -> None:
        self.given, self.target = given, target
        self.gram, self.moment = given.T @ given, given.T @ target


def _left_out(cases: Sequence[_Case]) -> tuple[float, Tensor]:
    """The best penalty, and the cross-validated scores (n, K) with it."""
    if len(cases) == 1:
        [case] = cases
        return _ALONE, case.given @ _solve(case.gram, case.moment, _ALONE * len(case.given))
    gram, moment = _sum(c.gram for c in cases), _sum(c.moment for c in cases)
    count = sum(len(c.given) for c in cases)
    best = (float("inf"), PENALTIES[0], torch.zeros(()))
    for penalty in PENALTIES:
        scores = torch.cat(
            [
                c.given @ _solve(gram - c.gram, moment - c.moment, penalty * (count - len(c.given)))
                for c in cases
            ]
        )
        error = float((scores - torch.cat([c.target for c in cases])).square().sum())
        best = min(best, (error, penalty, scores), key=lambda found: found[0])
    return best[1], best[2]


def _best_offset(scores: Tensor, label: Tensor, stand_for: Tensor, classes: int) -> float:
    def dice(offset: float) -> float:
        predicted = torch.cat([scores[:, :1] + offset, scores[:, 1:]], 1).argmax(1)
        return mean_dice(overlaps(predicted, label, classes, stand_for))

    return max(OFFSETS, key=dice)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _solve(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """(X'X + penalty I)^-1 X'Y."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + penalty * eye, moment)


def look_up(feature: Tensor, where: Tensor, sides: Sequence[int]) -> Tensor:
    """Features at voxels by trilinear interpolation between tokens, consistent with `at_voxels`.

    Args:
        feature: (C, d, h, w), feature map of a volume.
        where: (N, 3) voxel indices in the volume.
        sides: shape of the volume in voxels.

    Returns:
        (N, C) float32.
    """
    size = torch.tensor(sides, device=feature.device, dtype=torch.float32)
    # grid_sample expects coordinates from -1 to 1 between the outer faces, last axis first.
    place = ((2 * where.to(feature.device) + 1) / size - 1).flip(-1)[None, None, None]
    found = functional.grid_sample(
        feature[None].float(), place, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0, 0].T


def at_voxels(ridges: Sequence[Ridge], features: Sequence[Tensor], sides: Sequence[int]) -> Tensor:
    """Scores (B, K, *sides) of voxels: the summed scores of all maps at tokens, interpolated trilinearly."""
    total = torch.zeros(())
    for ridge, feature in zip(ridges, features, strict=True):
        scores = ridge.scores(feature)
        total = total.to(scores) + functional.interpolate(
            scores, size=tuple(sides), mode="trilinear", align_corners=False
        )
    return total


def overlaps(predicted: Tensor, label: Tensor, classes: int, stand_for: Tensor | None = None) -> Tensor:
    """Voxels of each foreground class in the intersection, in the prediction and in the label.

    Args:
        predicted, label: of the same shape.
        classes: number of classes.
        stand_for: how many voxels each one stands for, of the same shape; None for 1.

    Returns:
        (classes - 1, 3) float64.
    """
    both = torch.where(predicted == label, label, 0)
    weights = None if stand_for is None else stand_for.flatten().double()
    counted = [
        torch.bincount(of.flatten().long(), weights, minlength=classes)[1:] for of in (both, predicted, label)
    ]
    return torch.stack(counted, 1).cpu().double()


def mean_dice(counts: Tensor) -> float:
    """Mean Dice of the classes in the label, from `overlaps`; NaN if there are none."""
    both, predicted, label = counts.unbind(1)
    there = label > 0
    return float((2 * both / (predicted + label))[there].mean())
