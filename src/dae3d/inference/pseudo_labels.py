"""Labels predicted for unlabelled scans, how sure the networks are of them, and which ones to keep."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dae3d.inference.sliding import Predictor, probability_slabs
from dae3d.store.boxes import Triple

# Smallest and largest volume of a class in the labelled cases, ml.
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class PseudoLabel:
    """The prediction for a scan.

    Attributes:
        classes: (X, Y, Z) uint8, the most probable class.
        probability: (X, Y, Z) float16, its mean probability over the networks.
        agreement: mean Dice between the networks, over their pairs and the classes that one of a pair found;
            None for one network, or if none found anything.
    """

    classes: np.ndarray
    probability: np.ndarray
    agreement: float | None


class Sureness(BaseModel):
    """How sure the networks are of a pseudo-label.

    Attributes:
        probability: mean over the voxels of all classes but the background; None without such voxels.
        agreement: as in `PseudoLabel`.
        ignored_percent: voxels left out as unsure, in percent of the voxels predicted as any class.
        ml: volume of each class.
    """

    model_config = ConfigDict(frozen=True)

    probability: float | None
    agreement: float | None
    ignored_percent: float | None
    ml: dict[str, float]


@dataclass(frozen=True)
class Rules:
    """What a pseudo-label must satisfy to be kept.

    Attributes:
        min_probability: of `Sureness.probability`.
        min_agreement: of `Sureness.agreement`, if it is known.
        volume_factor: the volume of a class may be so many times smaller or larger than in any labelled case.
    """

    min_probability: float
    min_agreement: float
    volume_factor: float

    def reasons_against(self, found: Sureness, ranges: Ranges) -> list[str]:
        """Why not to keep it; nothing if it is kept."""
        reasons = []
        if found.probability is None:
            reasons.append("nothing found")
        elif found.probability < self.min_probability:
            reasons.append(f"probability {found.probability:.3f}, below {self.min_probability:g}")
        if found.agreement is not None and found.agreement < self.min_agreement:
            reasons.append(f"agreement {found.agreement:.3f}, below {self.min_agreement:g}")
        for name, (low, high) in ranges.items():
            volume = found.ml.get(name, 0.0)
            if not low / self.volume_factor <= volume <= high * self.volume_factor:
                reasons.append(f"{name} {volume:.3g} ml, in labelled cases {low:.3g} to {high:.3g}")
        return reasons


def label_scan(
    networks: Sequence[Predictor],
    image: Tensor,
    roi: Triple,
    overlap: float,
    window_batch: int,
    device: torch.device,
    mirror: Sequence[int] = (),
    progress: Callable[[int], object] | None = None,
) -> PseudoLabel:
    """Predict a scan with each network; arguments as for `probability_slabs`."""
    shape = tuple(image.shape[1:])
    classes, probability = torch.empty(shape, dtype=torch.uint8), torch.empty(shape, dtype=torch.float16)
    overlaps = _Overlaps(len(networks))
    every = [
        probability_slabs([own], image, roi, overlap, window_batch, device, mirror, progress)
        for own in networks
    ]
    # The windows are the same for all networks, so their slabs match.
    for slabs in zip(*every, strict=True):
        overlaps.add([slab.probabilities.argmax(0) for slab in slabs], len(slabs[0].probabilities))
        mean = torch.stack([slab.probabilities for slab in slabs]).mean(0)
        highest, found = mean.max(dim=0)
        axis, first, count = slabs[0].axis, slabs[0].start, slabs[0].stop - slabs[0].start
        classes.narrow(axis, first, count).copy_(found)
        probability.narrow(axis, first, count).copy_(highest)
    return PseudoLabel(classes.numpy(), probability.numpy(), overlaps.mean_dice())


def sureness(label: PseudoLabel, ignored: np.ndarray, voxel_ml: float, names: Sequence[str]) -> Sureness:
    """How sure the networks are.

    Args:
        label: the prediction.
        ignored: (X, Y, Z) bool, voxels that are left out.
        voxel_ml: volume of a voxel.
        names: of the classes, background first.
    """
    found = label.classes > 0
    voxels = np.bincount(label.classes.ravel(), minlength=len(names))
    total = int(voxels[1:].sum())
    return Sureness(
        probability=float(label.probability[found].mean(dtype=np.float64)) if total else None,
        agreement=label.agreement,
        ignored_percent=100 * int(ignored.sum()) / total if total else None,
        ml={name: float(count * voxel_ml) for name, count in zip(names[1:], voxels[1:], strict=True)},
    )


class _Overlaps:
    """Voxels that two networks give to a class, both and each, for all pairs and classes."""

    def __init__(self, networks: int) -> None:
        self.pairs = list(itertools.combinations(range(networks), 2))
        self._counts: Any = 0

    def add(self, found: Sequence[Tensor], classes: int) -> None:
        """Count the classes (...) that each network found."""
        if not self.pairs:
            return
        rows = []
        for one, other in self.pairs:
            joint = torch.bincount(
                (found[one] * classes + found[other]).ravel(), minlength=classes**2
            ).reshape(classes, classes)
            rows.append(torch.stack([joint.diagonal(), joint.sum(0) + joint.sum(1)])[:, 1:])
        self._counts = self._counts + torch.stack(rows).double().cpu()

    def mean_dice(self) -> float | None:
        """Over pairs and classes that at least one of a pair found."""
        if not self.pairs:
            return None
        both, sizes = self._counts.unbind(1)
        dice = (2 * both / sizes)[sizes > 0]
        return float(dice.mean()) if len(dice) else None
