"""Feature statistics: effective rank, mean cosines between crops, nearest neighbours."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Covariance:
    """Scatter matrix of feature vectors, accumulated over batches (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._scatter = torch.zeros(())

    def add(self, feature: Tensor) -> None:
        """Add the tokens of feature maps (B, C, D, H, W)."""
        tokens = feature.movedim(1, -1).flatten(0, -2).float()
        mean = tokens.mean(0)
        scatter = ((tokens - mean).T @ (tokens - mean)).cpu().double()
        mean, count = mean.cpu().double(), len(tokens)
        if not self.count:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total, apart = self.count + count, mean - self._mean
        self._scatter += scatter + torch.outer(apart, apart) * (self.count * count / total)
        self._mean += apart * (count / total)
        self.count = total

    def effective_rank(self) -> float:
        """exp(entropy) of the normalised eigenvalues (Roy and Vetterli, 2007).

        It is k for features with equal variance along k orthogonal directions, 0 for constant features, NaN
        for features that are not finite.
        """
        if not torch.isfinite(self._scatter).all():
            return float("nan")
        values = torch.linalg.eigvalsh(self._scatter).clamp(min=0)
        # Constant features, up to rounding.
        if values.sum() <= 1e-10 * self.count * (1 + self._mean.square().sum()):
            return 0.0
        share = values / values.sum()
        return float(torch.exp(torch.special.entr(share).sum()))


def cosines(features: np.ndarray) -> np.ndarray:
    """Cosines between all pairs of feature vectors (N, F): (N, N) float64."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T, np.float64)


def mean_cosines(
    cosine: np.ndarray, modality: Sequence[int], scan: Sequence[int], subject: Sequence[str]
) -> dict[str, float]:
    """Mean cosines over kinds of pairs of crops.

    "any": all pairs; "within": same modality (positives of the contrastive loss); "between": different "
    "modalities;
    "scan": same scan; "subjects": same modality, different subjects. NaN if there is no such pair.
    """
    pair = np.triu(np.ones_like(cosine, dtype=bool), 1)
    same_modality, same_scan, same_subject = (
        np.equal.outer(labels, labels) for labels in map(np.asarray, (modality, scan, subject))
    )
    kinds = {
        "any": pair,
        "within": pair & same_modality,
        "between": pair & ~same_modality,
        "scan": pair & same_scan,
        "subjects": pair & same_modality & ~same_subject,
    }
    return {
        name: float(cosine[where].mean()) if where.any() else float("nan") for name, where in kinds.items()
    }


def nearest_modality(
    cosine: np.ndarray, modality: Sequence[int], scan: Sequence[int]
) -> tuple[float, float, int]:
    """How often the nearest crop of another scan has the same modality.

    A crop counts if the crops of other scans include both its own and another modality.

    Returns:
        The share of such crops, the share expected by chance, and the number of crops that count.
    """
    labels, scans = np.asarray(modality), np.asarray(scan)
    right, chance = [], []
    for i, label in enumerate(labels):
        others = np.flatnonzero(scans != scans[i])
        same = labels[others] == label
        if not same.any() or same.all():
            continue
        right.append(bool(same[np.argmax(cosine[i, others])]))
        chance.append(float(same.mean()))
    if not right:
        return float("nan"), float("nan"), 0
    return float(np.mean(right)), float(np.mean(chance)), len(right)
