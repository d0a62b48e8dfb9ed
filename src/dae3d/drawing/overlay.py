"""Draw the reference, the prediction and the errors of a case over its scan."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from nibabel.affines import apply_affine

from dae3d.drawing.case_view import CaseView, Planes
from dae3d.drawing.pictures import BACKGROUND, DPI, INK, PLANES, slice_at, write_letters

# Readable on dark grey; with more classes the colours repeat.
CLASS_COLOURS = (
    *("#4cc9f0", "#ffd166", "#f06ba8", "#80ed99", "#b892ff", "#ff9f4a"),
    *("#2ec4b6", "#ff9fb2", "#c5e063", "#7d93ff", "#e07be0", "#d9b38c"),
)
# Distinguishable with colour blindness.
MISSED, EXTRA, MIXED = "#ff5533", "#3d9bff", "#f5e663"
_OPACITY = 0.75


class Wording(NamedTuple):
    """What the columns and the colours of the last one mean."""

    columns: tuple[str, str, str] = ("reference", "prediction", "errors")
    missed: str = "missed"
    extra: str = "extra"
    mixed: str = "wrong class"


AS_ERRORS = Wording()
_CELL, _TALLEST = 2.7, 1.6  # width of a column in inches; maximum height of a row in column widths
_LEFT, _TOP, _GAP, _LINE = 0.55, 0.95, 0.06, 0.25  # inches
_LEAST_ROW = 1.0  # inches, to fit the row label next to a thin slab
_LETTER, _KEY = 0.1, 0.55  # inches, width of a letter and of the symbol in the legend
_KEYS = 18  # maximum classes in the legend


def draw_case(
    view: CaseView, planes: Planes, title: str, names: Mapping[int, str], wording: Wording = AS_ERRORS
) -> np.ndarray:
    """Draw three planes (rows) with the reference, the prediction and the errors (columns) over the scan.

    Radiological convention: the patient's right is on the left. Outlines have the colours of the classes;
        errors
    are filled, with the outlines of the reference in white.

    Args:
        view: the case.
        planes: indices of the sagittal, coronal and axial slice.
        title: title of the picture.
        names: names of the classes by index.
        wording: headings and key.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = FigureCanvasAgg(draw(view, planes, title, names, wording))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(
    view: CaseView, planes: Planes, title: str, names: Mapping[int, str], wording: Wording = AS_ERRORS
) -> Figure:
    """The figure of `draw_case`; its axes are in row order."""
    size = np.multiply(view.image.shape, view.spacing)
    scale = min(_CELL / max(size[0], size[1]), _TALLEST * _CELL / max(size[1], size[2]))  # inches per mm
    heights = [size[1] * scale, size[2] * scale, size[2] * scale]
    rows = [max(_LEAST_ROW, high) for high in heights]
    keys = _class_keys(view, planes, names)
    columns = max(1, int(2 * _CELL / (_KEY + _LETTER * max(len(name) for _, name in keys))))
    errors = {MISSED: wording.missed, EXTRA: wording.extra, MIXED: wording.mixed}
    # With a single class there are no confusions.
    several = len(names) > 1
    shown = [(colour, text) for colour, text in errors.items() if text and (several or colour != MIXED)]
    key_lines = max(sum(map(bool, errors.values())), -(-len(keys) // columns))
    width = _LEFT + 3 * (_CELL + _GAP)
    height = _TOP + sum(rows) + 3 * _GAP + key_lines * _LINE + 0.15
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)

    def write(left: float, top: float, text: str, points: float, **style: Any) -> None:
        place = {"ha": "center", "va": "center"} | style
        figure.text(left / width, 1 - top / height, text, color=INK, fontsize=points, **place)

    lefts = [_LEFT + column * (_CELL + _GAP) for column in range(3)]
    write(width / 2, 0.28, title, 15)
    for left, heading in zip(lefts, wording.columns, strict=True):
        write(left + _CELL / 2, 0.72, heading, 15)
    top = _TOP
    for (name, axis, letters), high, row in zip(PLANES, heights, rows, strict=True):
        write(_LEFT / 2, top + row / 2, f"{name}\n{_millimetres(view, axis, planes)}", 12, rotation=90)
        wide = (size[1] if axis == 0 else size[0]) * scale
        image, *labels = (slice_at(v, axis, planes[axis]) for v in (view.image, *view.labels))
        for column, left in enumerate(lefts):
            box = (left + (_CELL - wide) / 2, height - top - (row + high) / 2, wide, high)
            panel = figure.add_axes(tuple(np.divide(box, (width, height, width, height))))
            panel.axis("off")
            # Enlarged voxels stay sharp; slices with more voxels than pixels are averaged.
            how = "nearest" if image.shape[1] <= wide * DPI else "antialiased"
            low, high_grey = view.grey
            panel.imshow(image, cmap="gray", vmin=low, vmax=high_grey, aspect="auto", interpolation=how)
            _draw_labels(panel, column, *labels)
            if column == 0:
                write_letters(panel, letters)
        top += row + _GAP
    _write_keys(figure, keys, columns, lefts[0] / width, 1 - top / height)
    _write_keys(figure, shown, 1, lefts[2] / width, 1 - top / height, filled=True)
    return figure


def _draw_labels(panel: Axes, column: int, reference: np.ndarray, prediction: np.ndarray) -> None:
    if column == 2:
        _outline(panel, reference > 0, "white", 0.7)
        colours = _error_colours(reference, prediction)
        panel.imshow(colours, aspect="auto", interpolation="nearest", zorder=3)
        return
    labels = (reference, prediction)[column]
    for index in np.unique(labels[labels > 0]):
        _outline(panel, labels == index, _colour(index), 1.4)


def _error_colours(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W, 4) RGBA, transparent where both agree."""
    colours = np.zeros((*reference.shape, 4))
    wrong = reference != prediction
    colours[wrong] = to_rgba(MIXED, _OPACITY)
    colours[wrong & (prediction == 0)] = to_rgba(MISSED, _OPACITY)
    colours[wrong & (reference == 0)] = to_rgba(EXTRA, _OPACITY)
    return colours


def _outline(panel: Axes, mask: np.ndarray, colour: str, points: float) -> None:
    height, width = mask.shape
    # A border closes the outline where the mask reaches the edge of the picture.
    padded = np.pad(mask, 1).astype(float)
    places = np.arange(-1, width + 1), np.arange(-1, height + 1)
    panel.contour(*places, padded, levels=[0.5], colors=[colour], linewidths=points)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _millimetres(view: CaseView, axis: int, planes: Planes) -> str:
    """Position of the centre of a slice in scanner coordinates: "S 34 mm"."""
    centre = (np.array(view.image.shape) - 1) / 2
    centre[axis] = planes[axis]
    return f"{'RAS'[axis]} {round(apply_affine(view.affine, centre)[axis])} mm"


def _class_keys(view: CaseView, planes: Planes, names: Mapping[int, str]) -> list[tuple[str, str]]:
    """Colours and names of the classes in the planes, limited to the largest ones."""
    counts = np.zeros(256, int)
    for labels in view.labels:
        for axis in range(3):
            counts += np.bincount(np.take(labels, planes[axis], axis).ravel(), minlength=256)
    counts[0] = 0
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    keys = [(_colour(i), names[i]) for i in sorted(order[:_KEYS])]
    if len(order) > _KEYS:
        keys.append(("none", f"and {len(order) - _KEYS} more"))
    return keys or [("none", "no label here")]


def _write_keys(
    figure: Figure,
    keys: Sequence[tuple[str, str]],
    columns: int,
    left: float,
    top: float,
    filled: bool = False,
) -> None:
    """Draw a legend in columns at a position in figure coordinates."""
    signs = [
        Patch(facecolor=colour, label=text) if filled else Line2D([], [], color=colour, lw=2.5, label=text)
        for colour, text in keys
    ]
    figure.legend(
        handles=signs,
        ncols=columns,
        bbox_to_anchor=(left, top),
        loc="upper left",
        frameon=False,
        labelcolor=INK,
        fontsize=12,
        borderpad=0.2,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.25,
    )


def _colour(index: int) -> str:
    return CLASS_COLOURS[(index - 1) % len(CLASS_COLOURS)]
