"""What the images of a store or a task are like: their shapes and voxel sizes, by modality."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.readers import read_header
from dae3d.scans.task import Task
from dae3d.store.boxes import Triple, by_axis
from dae3d.store.statistics import Box
from dae3d.store.store import Store
from dae3d.words import millimetres

_MIXED = 1.5  # between the finest and the coarsest voxels of a store
_THICK = 2.0  # between the longest and the shortest side of a voxel
_ANISOTROPIC = 3.0  # the same, from which nnU-Net resamples slices to finer than the median
_Row = tuple[str, Sequence[float], Sequence[float], Sequence[float]]
_OUTER = (5, 95)  # percentiles between which a range is given


@dataclass(frozen=True)
class Fingerprint:
    """The images of a data set, one row each, all axes right, anterior, superior.

    Attributes:
        modalities: label of each.
        shapes: (N, 3), voxels.
        spacings: (N, 3), mm.
        boxes: (N, 3), sides of the foreground in voxels; the shapes if it is not known.
    """

    modalities: tuple[str, ...]
    shapes: np.ndarray
    spacings: np.ndarray
    boxes: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Median voxel size in mm, as that for which `pretrain` chooses strides."""
        x, y, z = np.median(self.spacings, 0).round(3).tolist()
        return x, y, z

    @property
    def box(self) -> tuple[float, float, float]:
        """Median sides of the foreground in voxels."""
        x, y, z = np.median(self.boxes, 0).tolist()
        return x, y, z

    def of(self, modality: str) -> "Fingerprint":
        """The images of one modality."""
        here = [label == modality for label in self.modalities]
        arrays = (array[here] for array in (self.shapes, self.spacings, self.boxes))
        return Fingerprint((modality,) * sum(here), *arrays)

    def resampled(self, spacing: Sequence[float]) -> "Fingerprint":
        """The same images with voxels of another size."""
        factors = self.spacings / np.array(spacing)
        shapes, boxes = (np.maximum(1, np.rint(array * factors)) for array in (self.shapes, self.boxes))
        return Fingerprint(self.modalities, shapes, np.tile(spacing, (len(shapes), 1)), boxes)

    def smaller_than(self, roi: Triple) -> int:
        """The number of images that are shorter than a crop along an axis."""
        return int((self.shapes < np.array(roi)).any(axis=1).sum())

    def described(self) -> Iterator[str]:
        """A line on all images, and one on each modality."""
        for modality, count in Counter(self.modalities).most_common():
            some = self.of(modality)
            yield (
                f"{modality}: {count} scans, median {_voxels(np.median(some.shapes, 0))} voxels of "
                f"{millimetres(some.spacing)}"
            )
        low, high = (_voxels(np.percentile(self.shapes, side, axis=0)) for side in _OUTER)
        yield f"all: {len(self.shapes)} scans, {low} to {high} voxels (5th and 95th percentile)"
        fine, coarse = (millimetres(np.percentile(self.spacings, side, axis=0)) for side in _OUTER)
        yield f"voxels of {fine} to {coarse}; median anisotropy {self.anisotropy:.3g}"
        yield f"foreground: median {_voxels(self.box)} voxels"

    @property
    def anisotropy(self) -> float:
        """Median ratio of the longest to the shortest side of a voxel."""
        return float(np.median(self.spacings.max(1) / self.spacings.min(1)))

    @property
    def mixed(self) -> float:
        """The largest ratio along an axis of voxel sizes, without the outermost 5 % on either side."""
        low = np.percentile(self.spacings, _OUTER[0], axis=0, method="lower")
        high = np.percentile(self.spacings, _OUTER[1], axis=0, method="higher")
        return float((high / low).max())

    def better_spacing(self) -> tuple[float, float, float]:
        """The voxel size that nnU-Net would resample to, in mm.

        The median. If slices are thick and few, the tenth percentile along that axis, but not finer than the
        other axes (`determine_fullres_target_spacing`).
        """
        target, size = np.median(self.spacings, 0), np.median(self.shapes, 0)
        worst = int(np.argmax(target))
        others = [axis for axis in range(3) if axis != worst]
        thick = target[worst] > _ANISOTROPIC * target[others].max()
        if thick and size[worst] * _ANISOTROPIC < size[others].min():
            finer = np.percentile(self.spacings[:, worst], 10)
            target[worst] = max(finer, target[others].max())
        x, y, z = target.round(3).tolist()
        return x, y, z


def of_store(store: Store, datasets: Sequence[str] | None = None) -> Fingerprint:
    """The training scans of a store, of these data sets or of all.

    Raises:
        Dae3dError: if there are none.
    """
    chosen = (
        (scan.modality, scan.shape, scan.spacing, _sides(scan.statistics.foreground))
        for scan in store.scans
        if scan.split == "train" and (datasets is None or scan.dataset in datasets)
    )
    return _collected(chosen, f"{store.path}: no training scans; prepare some with split train")


def of_task(task: Task) -> Fingerprint:
    """The images to train and validate on, by the header of the first of each case.

    Raises:
        Dae3dError: if one cannot be read.
    """
    cases = (*task.training, *task.validation)
    rows = (("+".join(task.modalities), *_header(task.path, case.images[0])) for case in cases)
    return _collected(((name, shape, mm, shape) for name, shape, mm in rows), f"{task.path}: no cases")


def advice(images: Fingerprint, as_acquired: bool) -> str | None:
    """Why other voxels would be better, None if they are good; ends in the voxel size to resample to.

    Args:
        images: of the store or the task.
        as_acquired: whether they have not been resampled.
    """
    reasons = []
    if images.mixed > _MIXED:
        reasons.append(
            f"voxels differ by a factor of {images.mixed:.2g} along an axis, so that structures do too"
        )
    if as_acquired and images.anisotropy >= _THICK:
        reasons.append(f"slices are thick: voxels are {images.anisotropy:.2g} times as long as wide")
    if not reasons:
        return None
    return f"{'; '.join(reasons)}. --spacing {' '.join(f'{mm:g}' for mm in images.better_spacing())}"


def _collected(rows: Iterable[_Row], none: str) -> Fingerprint:
    columns = list(zip(*rows, strict=True))
    if not columns:
        raise Dae3dError(none)
    modalities, shapes, spacings, boxes = columns
    return Fingerprint(modalities, *(np.array(each, float) for each in (shapes, spacings, boxes)))


def _header(task: Path, path: Path) -> tuple[list[float], list[float]]:
    """Shape and voxel size along right, anterior and superior."""
    try:
        header = read_header(path)
    except FileNotFoundError:
        raise Dae3dError(f"{task}: {path}: no such file") from None
    except (ScanError, OSError) as error:
        raise Dae3dError(f"{task}: {path}: {error}") from None
    axes = nibabel.orientations.io_orientation(header.affine)[:, 0]
    order = np.argsort(axes)
    return [header.shape[i] for i in order], [header.spacing[i] for i in order]


def _sides(box: Box) -> list[float]:
    first, last = box
    return [b - a for a, b in zip(first, last, strict=True)]


def _voxels(sides: Iterable[float]) -> str:
    return by_axis(round(float(side)) for side in sides)
