"""The view of a case for drawing: crop around the labels, grey window, and the slices to show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import binary_dilation

from dae3d.scans.readers import Volume
from dae3d.store.conform import crop, to_ras
from dae3d.store.statistics import Box

_MARGIN = 25.0  # mm around the labels
_LEAST = 100.0  # mm, minimum side of the crop, to show the location in the body
_NEAR = 10.0  # mm around the labels, the region that determines the grey window
_COARSE = 100  # voxels per axis used to compute the grey window

Planes = tuple[int, int, int]


@dataclass(frozen=True)
class CaseView:
    """A case with RAS axes, cropped around the labels.

    Attributes:
        image: (X, Y, Z) float32, acquired units.
        reference: (X, Y, Z) class indices, 0 the background.
        prediction: (X, Y, Z).
        affine: (4, 4) from voxel to RAS+ mm.
        spacing: mm.
        grey: intensities shown as black and white.
    """

    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    grey: tuple[float, float]

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The reference and the prediction."""
        return self.reference, self.prediction

    @property
    def fullest(self) -> Planes:
        """The sagittal, coronal and axial slices that show most of the reference.

        Each class counts by its area relative to its largest cross-section, so that small and large classes
        have equal weight.
        """
        places = np.nonzero(self.reference)
        classes = self.reference[places].astype(int)

        def score(axis: int) -> np.ndarray:
            n = self.reference.shape[axis]
            areas = np.bincount(classes * n + places[axis], minlength=256 * n).reshape(256, n)
            shares = areas / np.maximum(areas.max(axis=1, keepdims=True), 1)
            # Ties, as with classes in separate slices, are broken by the larger area.
            return shares.sum(axis=0) + areas.sum(axis=0) / (areas.sum() + 1)

        return self._highest(score, bool(len(classes)))

    @property
    def worst(self) -> Planes:
        """The slices with most errors, relative to the size of each class."""
        places = np.nonzero(self.reference != self.prediction)
        sizes, predicted = (np.bincount(labels.ravel(), minlength=256) for labels in self.labels)
        weights = 1 / np.maximum(np.where(sizes > 0, sizes, predicted), 1)
        weights[0] = 0
        losses = weights[self.reference[places]] + weights[self.prediction[places]]

        def score(axis: int) -> np.ndarray:
            return np.bincount(places[axis], losses, minlength=self.reference.shape[axis])

        return self._highest(score, bool(len(losses)))

    def _highest(self, score: Callable[[int], np.ndarray], known: bool) -> Planes:
        """The slice with the highest score along each axis, or the middle one if scores are not `known`."""
        x, y, z = (
            int(score(axis).argmax()) if known else n // 2 for axis, n in enumerate(self.reference.shape)
        )
        return x, y, z


def view_case(image: Volume, reference: np.ndarray, prediction: np.ndarray) -> CaseView:
    """Reorient a case to RAS and crop it to the labels with a margin of 25 mm, at least 100 mm per side.

    Args:
        image: as read.
        reference: class indices on the grid of the image.
        prediction: class indices on the grid of the image.
    """
    volumes = [to_ras(replace(image, array=array)) for array in (image.array, reference, prediction)]
    labelled = (volumes[1].array > 0) | (volumes[2].array > 0)
    box = _surroundings(labelled, volumes[0].spacing)
    scan, wanted, found = (crop(volume, box) for volume in volumes)
    intensities = scan.intensities()
    return CaseView(
        image=intensities,
        reference=wanted.array,
        prediction=found.array,
        affine=scan.affine,
        spacing=scan.spacing,
        grey=_grey_window(intensities, labelled[tuple(map(slice, *box))], scan.spacing),
    )


def _surroundings(labelled: np.ndarray, spacing: Sequence[float]) -> Box:
    def along(axis: int) -> tuple[int, int]:
        n, side = labelled.shape[axis], spacing[axis]
        rows = np.flatnonzero(labelled.any(axis=tuple({0, 1, 2} - {axis})))
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, n)
        margin = max(_MARGIN, (_LEAST - (last - first) * side) / 2)
        return max(0, int(first - margin / side)), min(n, int(last + margin / side) + 1)

    (x0, x1), (y0, y1), (z0, z1) = map(along, range(3))
    return (x0, y0, z0), (x1, y1, z1)


def _grey_window(image: np.ndarray, labelled: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """The 1st to the 99th percentile near the labels, widened by 10 %, for good contrast of the classes."""
    strides = [-(-n // _COARSE) for n in image.shape]
    coarse = tuple(slice(None, None, stride) for stride in strides)
    steps = max(1, round(_NEAR / float(np.multiply(strides, spacing).max())))
    near = binary_dilation(labelled[coarse], iterations=steps)
    seen = image[coarse][near] if near.any() else image[coarse]
    low, high = np.percentile(seen[np.isfinite(seen)], (1, 99))
    margin = 0.1 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
