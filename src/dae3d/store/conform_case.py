"""Convert the channels and the label of a case to the network's grid."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.grids import Grid, grid_difference
from dae3d.scans.readers import Volume
from dae3d.scans.task_labels import IGNORED
from dae3d.store.conform import apply_scale_factors, crop, foreground_box, narrowed, resample, to_ras, union
from dae3d.store.ct_units import refuse_non_hounsfield
from dae3d.store.intensity import normalise
from dae3d.store.recipe import CaseRecipe
from dae3d.store.statistics import Box, Statistics, measure, refuse_non_finite

_WHOLE = 1e-3  # scale factors of label files leave 0.9999999 for 1
_ALIGNED = 0.1  # share of a voxel by which resampling may have turned the axes
_NAMED = 5  # values in a message


@dataclass(frozen=True)
class ConformedCase:
    """A case on the network's grid.

    `volumes` are the channels in acquired units, on the network's grid: RAS axes, the recipe's spacing,
    cropped to the foreground; `statistics` are theirs. `original` is the grid of the files; up to order and
    direction, its axes are parallel to the network's.
    """

    volumes: tuple[Volume, ...]
    statistics: tuple[Statistics, ...]
    original: Grid

    @property
    def grid(self) -> Grid:
        """The network's grid."""
        return grid_of(self.volumes[0])

    @property
    def foreground(self) -> Box:
        """The box on the network's grid that contains the foreground of all channels."""
        return union([statistics.foreground for statistics in self.statistics])

    def normalised(self, recipe: CaseRecipe) -> np.ndarray:
        """The network's input: (C, X, Y, Z) float32."""
        image = np.empty((len(self.volumes), *self.grid.shape), np.float32)
        channels = zip(self.volumes, recipe.modalities, self.statistics, strict=True)
        for channel, (volume, modality, statistics) in enumerate(channels):
            image[channel] = normalise(volume.intensities(), modality, statistics, recipe.intensity)
        return image


def grid_of(volume: Volume) -> Grid:
    """The grid of a volume."""
    x, y, z = volume.array.shape
    return Grid((x, y, z), volume.affine)


def conform_case(volumes: Sequence[Volume], recipe: CaseRecipe) -> ConformedCase:
    """Convert a case's channels to the network's grid.

    Axes are reoriented to RAS. If the recipe has a spacing, channels are resampled (trilinear, as MONAI's
    `Spacing`). If it says so, they are cropped to the box around the foreground (Otsu) of all channels plus
    10 mm. The published BTCV recipe crops to image > 0 after windowing instead, which depends on the window
    and keeps every bright speck.

    Raises:
        ScanError: if the number of channels is not the recipe's; a channel is on another grid than the first,
            constant, not finite, of singular affine, or a CT not in HU; or axes are too sheared to resample.
    """
    if len(volumes) != len(recipe.modalities):
        wanted = f"{len(recipe.modalities)} ({', '.join(recipe.modalities)})"
        raise ScanError(f"channels: {len(volumes)}, expected {wanted}")
    original = grid_of(volumes[0])
    upright = []
    for channel, volume in enumerate(volumes, 1):
        difference = grid_difference(grid_of(volume), original)
        if difference:
            names = [f"channel {n} ({recipe.modalities[n - 1]})" for n in (channel, 1)]
            raise ScanError(f"{names[0]} is on another grid than {names[1]}: {difference}")
        with _naming(channel, recipe):
            refuse_non_finite(volume)
            upright.append(apply_scale_factors(to_ras(replace(volume, affine=original.affine))))
    ras = grid_of(upright[0])
    conformed = upright
    if recipe.spacing is not None:
        pairs = zip(upright, recipe.modalities, strict=True)
        conformed = [resample(volume, recipe.spacing, modality) for volume, modality in pairs]
        _refuse_sheared(grid_of(conformed[0]), ras)
    if recipe.crop_foreground:
        box = foreground_box(conformed, recipe.modalities)
        conformed = [crop(volume, box) for volume in conformed]
    conformed = [replace(volume, array=narrowed(volume.array)) for volume in conformed]
    statistics = []
    for channel, (volume, modality) in enumerate(zip(conformed, recipe.modalities, strict=True), 1):
        with _naming(channel, recipe):
            found = measure(volume, modality)
            refuse_non_hounsfield(volume, found, modality)
            statistics.append(found)
    return ConformedCase(volumes=tuple(conformed), statistics=tuple(statistics), original=original)


@contextmanager
def _naming(channel: int, recipe: CaseRecipe) -> Iterator[None]:
    """Name the channel in errors, if there are several."""
    try:
        yield
    except ScanError as error:
        several, label = len(recipe.modalities) > 1, recipe.modalities[channel - 1]
        raise ScanError(f"channel {channel} ({label}): {error}" if several else str(error)) from None


def upright_label(volume: Volume, case: ConformedCase, recipe: CaseRecipe) -> Volume:
    """A case's label, as read from its file, as uint8 class indices with RAS axes, for `labels_at`.

    Voxels to ignore are `IGNORED`.

    Raises:
        ScanError: if the label is on another grid than the image, or has a value that is not a class.
    """
    difference = grid_difference(grid_of(volume), case.original)
    if difference:
        raise ScanError(f"is on another grid than the image: {difference}")
    indices = Volume(class_indices(volume, recipe), case.original.affine)
    return to_ras(indices)


def labels_at(grid: Grid, label: Volume) -> np.ndarray:
    """Nearest-neighbour labels at the voxels of a grid with parallel axes."""
    return np.ascontiguousarray(label.array[np.ix_(*_nearest(grid, label))])


def cut_away(label: Volume, grid: Grid) -> int:
    """The number of labelled voxels (not background, not ignored) of an upright label outside a grid."""
    inside = label.array[tuple(slice(at.min(), at.max() + 1) for at in _nearest(grid, label))]
    whole, part = (np.count_nonzero((each > 0) & (each != IGNORED)) for each in (label.array, inside))
    return int(whole - part)


def _nearest(grid: Grid, label: Volume) -> list[np.ndarray]:
    steps = np.linalg.inv(label.affine) @ grid.affine
    return [
        np.rint(steps[axis, 3] + steps[axis, axis] * np.arange(n)).astype(int).clip(0, size - 1)
        for axis, (n, size) in enumerate(zip(grid.shape, label.array.shape, strict=True))
    ]


def class_indices(volume: Volume, recipe: CaseRecipe) -> np.ndarray:
    """A label map as uint8 class indices on its own grid; voxels to ignore are `IGNORED`.

    Raises:
        ScanError: if it has a value that is not a class.
    """
    classes = {value: index for index, value in enumerate(recipe.label_values)}
    if recipe.ignore is not None:
        classes[recipe.ignore] = IGNORED
    values = np.array(sorted(classes))
    index_of = np.array([classes[value] for value in values.tolist()], np.uint8)
    indices = np.empty(volume.array.shape, np.uint8)
    unknown: set[float] = set()
    plain = volume.array.dtype.kind in "ui" and (volume.slope, volume.intercept) == (1.0, 0.0)
    for x, plane in enumerate(volume.array):
        found = plane if plain else replace(volume, array=plane).intensities()
        whole = plane.astype(np.int64) if plain else np.rint(found)
        rank = np.searchsorted(values, whole).clip(max=len(values) - 1)
        good = values[rank] == whole
        if not plain:
            good &= np.abs(found - whole) < _WHOLE
        if not good.all():
            unknown.update(np.unique(found[~good])[: _NAMED + 1].tolist())
        indices[x] = index_of[rank]
    if unknown:
        raise ScanError(_unknown_values(sorted(unknown), recipe))
    return indices


def _unknown_values(unknown: list[float], recipe: CaseRecipe) -> str:
    named = ", ".join(f"{value:g}" for value in unknown[:_NAMED])
    more = " and others" if len(unknown) > _NAMED else ""
    if any(value != np.rint(value) for value in unknown):
        return f"contains {named}{more}, which are not whole numbers: interpolated, or a probability map?"
    classes = [f"{value} {name}" for value, name in recipe.labels.items()]
    known = ", ".join(classes[:10]) + (f" and {len(classes) - 10} others" if len(classes) > 10 else "")
    return f"contains {named}{more}, which are not label values of the classes ({known})"


def _refuse_sheared(grid: Grid, ras: Grid) -> None:
    """Refuse a resampled grid whose axes are not those of the scan: it could not be mapped back."""
    steps = (np.linalg.inv(ras.affine) @ grid.affine)[:3, :3]
    np.fill_diagonal(steps, 0)
    moved = float((np.abs(steps) @ (np.array(grid.shape) - 1)).max())
    if moved > _ALIGNED:
        raise ScanError(
            f"its axes are sheared, by {moved:.2g} voxels at the far corner, which resampling would undo; "
            "remove the shear first, or set no spacing"
        )
