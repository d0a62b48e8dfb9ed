"""Of features alone: how many directions they use, how alike those of two crops are, whose are nearest."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Covariance:
    """The scatter of feature vectors about their mean, added up batch by batch (Chan et al., 1979)."""

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
        """exp(entropy) of the eigenvalues' shares of their sum (Roy and Vetterli, 2007).

        It is k where the features vary alike along k orthogonal directions, 0 where they do not vary, NaN
        where they are not finite.
        """
        if not torch.isfinite(self._scatter).all():
            return float("nan")
        values = torch.linalg.eigvalsh(self._scatter).clamp(min=0)
        # What rounding leaves of features that are the same everywhere.
        if values.sum() <= 1e-10 * self.count * (1 + self._mean.square().sum()):
            return 0.0
        share = values / values.sum()
        return float(torch.exp(torch.special.entr(share).sum()))


def cosines(features: np.ndarray) -> np.ndarray:
    """Cosine of each two of (N, F) feature vectors: (N, N) float64."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T, np.float64)


def mean_cosines(
    cosine: np.ndarray, modality: Sequence[int], scan: Sequence[int], subject: Sequence[str]
) -> dict[str, float]:
    """Mean cosines over kinds of pairs of crops.

    "any": all pairs; "within": of one modality, as the contrastive loss attracts; "between": of two
    modalities; "scan": two crops of a scan; "subjects": of one modality and two subjects. NaN where there is
    no such pair.
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
    """How often the nearest crop of another scan is of the same modality.

    A crop counts where crops of other scans include both its own modality and another one.

    Returns:
        The share of the crops, the share by chance (what the crops' numbers give), and how many crops count.
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
