"""Pictures of volumes: orthogonal mid-slices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patheffects import withStroke

from dae3d.files import whole_file

# name, axis of the slice, and directions on screen: left, right, top, bottom
PLANES = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))

DPI = 100
# Inches, the width of a column; crops of 32, 48, 64 and 96 voxels then have a whole number of pixels per
# voxel.
_CELL = 1.92
_LEFT, _TOP, _BOTTOM, _GAP = 0.35, 0.8, 0.5, 0.06  # inches
_TALLEST = 2.5  # maximum height of a row in column widths, for whole-body scans
BACKGROUND, INK, LETTERS = "#101014", "#d8d8dc", "#ffcc4d"
_ERROR_SHARE = 0.5


def triptych(
    volumes: Mapping[str, np.ndarray],
    title: str,
    path: Path,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Write a PNG of volumes side by side: columns = volumes, rows = axial, coronal, sagittal mid-slices.

    Radiological convention: the patient's right on the left, anterior and superior up, in sagittal slices
        anterior on
    the left; letters mark the directions. Voxels have their physical proportions.

    All volumes share one grey window, the 1st to 99th percentile of the first volume (the clean one). Volumes
    whose name ends in "error" are shown in colour, from 0 to half that window, with a colour bar, so that the
    scale is the same at every training step.

    Args:
        volumes: by name, each (X, Y, Z) with RAS axes and the same shape.
        title: title of the picture.
        path: path of the PNG; its folder is created.
        spacing: voxel size in mm along X, Y, Z.
    """
    save_picture(triptych_array(volumes, title, spacing), path)


def save_picture(image: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 as a PNG atomically; its folder is created."""
    with whole_file(path) as temporary:
        imsave(temporary, image, format="png")


def triptych_array(
    volumes: Mapping[str, np.ndarray], title: str, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """The picture of `triptych` as (H, W, 3) uint8, for TensorBoard."""
    canvas = FigureCanvasAgg(draw(volumes, title, spacing))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def mid_slice(volume: np.ndarray, axis: int) -> np.ndarray:
    """The middle slice of a RAS volume across `axis`, as an image (rows, columns), first row on top."""
    return slice_at(volume, axis, volume.shape[axis] // 2)


def slice_at(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice of a RAS volume across `axis`, as an image (rows, columns), first row on top."""
    return np.take(volume, index, axis=axis)[::-1, ::-1].T


def draw(volumes: Mapping[str, np.ndarray], title: str, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Figure:
    """The figure of `triptych`; its axes are in row order, the colour bar last."""
    first = next(iter(volumes.values()))
    size = np.multiply(first.shape, spacing)
    scale = min(_CELL / max(size[0], size[1]), _TALLEST * _CELL / max(size[1], size[2]))  # inches per mm
    heights = [size[1] * scale, size[2] * scale, size[2] * scale]
    width = _LEFT + len(volumes) * (_CELL + _GAP)
    height = _TOP + sum(heights) + 2 * _GAP + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)

    def place(left: float, top: float, wide: float, high: float) -> Axes:
        """Axes in a box given in inches from the upper left corner of the figure."""
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    def write(left: float, top: float, text: str, points: float, **style: Any) -> None:
        figure.text(left / width, 1 - top / height, text, color=INK, fontsize=points, va="center", **style)

    grey = grey_window(first)
    colours = Normalize(0, _ERROR_SHARE * (grey[1] - grey[0]))
    write(width / 2, 0.24, title, 16, ha="center")
    top = _TOP
    for (name, axis, letters), high in zip(PLANES, heights, strict=True):
        write(_LEFT / 2, top + high / 2, name, 13, ha="center", rotation=90)
        wide = (size[1] if axis == 0 else size[0]) * scale
        for column, volume in enumerate(volumes.values()):
            left = _LEFT + column * (_CELL + _GAP) + (_CELL - wide) / 2
            panel = place(left, top, wide, high)
            panel.axis("off")
            image = mid_slice(volume, axis)
            # Enlarged voxels stay sharp; slices with more voxels than pixels are averaged.
            how = "nearest" if image.shape[1] <= wide * DPI else "antialiased"
            if _is_error(list(volumes)[column]):
                panel.imshow(image, cmap="inferno", norm=colours, aspect="auto", interpolation=how)
            else:
                panel.imshow(image, cmap="gray", vmin=grey[0], vmax=grey[1], aspect="auto", interpolation=how)
            if column == 0:
                write_letters(panel, letters)
        top += high + _GAP
    for column, name in enumerate(volumes):
        left = _LEFT + column * (_CELL + _GAP)
        write(left + _CELL / 2, 0.6, name, 15, ha="center")
        if _is_error(name):
            _colour_bar(place(left + 0.4, height - 0.36, _CELL - 1.1, 0.14), colours)
    write(_LEFT, height - 0.29, f"grey from {grey[0]:.3g} to {grey[1]:.3g}", 12)
    return figure


def grey_window(volume: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile; the upper one is increased by 1 if they are equal."""
    low, high = np.percentile(volume, (1, 99))
    return float(low), float(high if high > low else low + 1)


def _is_error(name: str) -> bool:
    return name.endswith("error")


def write_letters(panel: Axes, letters: str) -> None:
    """Write direction letters at the left, right, top and bottom of a panel."""
    places = [(0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center")]
    places += [(0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom")]
    for letter, (x, y, ha, va) in zip(letters, places, strict=True):
        panel.text(
            x,
            y,
            letter,
            transform=panel.transAxes,
            ha=ha,
            va=va,
            color=LETTERS,
            fontsize=13,
            path_effects=[withStroke(linewidth=2.5, foreground=BACKGROUND)],
        )


def _colour_bar(axes: Axes, colours: Normalize) -> None:
    axes.figure.colorbar(ScalarMappable(colours, "inferno"), cax=axes, orientation="horizontal", ticks=[])
    for x, value, side in ((-0.06, colours.vmin, "right"), (1.06, colours.vmax, "left")):
        axes.text(x, 0.45, f"{value:.3g}", transform=axes.transAxes, ha=side, va="center")
    for text in axes.texts:
        text.set(color=INK, fontsize=12)
