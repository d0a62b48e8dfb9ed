from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from dae3d.drawing.pictures import PLANES, draw, mid_slice, triptych, triptych_array

SHAPE = (24, 30, 36)
# Where a letter stands on screen, from its place in the panel.
SIDES = {(0.02, 0.5): "left", (0.98, 0.5): "right", (0.5, 0.98): "top", (0.5, 0.02): "bottom"}


@pytest.fixture
def marked() -> np.ndarray:
    """A dark volume with a bright block in each mid-slice: to the RA, the RS and the AS."""
    volume = np.zeros(SHAPE, np.float32)
    right, front, top = slice(16, 22), slice(20, 27), slice(24, 32)
    middle = [slice(n // 2 - 1, n // 2 + 2) for n in SHAPE]
    volume[right, front, middle[2]] = 1
    volume[right, middle[1], top] = 1
    volume[middle[0], front, top] = 1
    return volume


def pixels(picture: np.ndarray, panel: Axes) -> np.ndarray:
    """The part of the picture that a panel covers, its frame's edge left out."""
    height, width = picture.shape[:2]
    box = panel.get_position()
    left, right = round(box.x0 * width) + 2, round(box.x1 * width) - 2
    top, bottom = round((1 - box.y1) * height) + 2, round((1 - box.y0) * height) - 2
    return picture[top:bottom, left:right]


def test_the_bright_block_lies_where_the_letters_say(marked: np.ndarray) -> None:
    picture = triptych_array({"clean": marked}, "test")
    figure = draw({"clean": marked}, "test")
    for panel, (name, *_), ends in zip(figure.axes, PLANES, ("RA", "RS", "AS"), strict=True):
        letters = {text.get_text(): SIDES[text.get_position()] for text in panel.texts}
        part = pixels(picture, panel).astype(int)
        white = part.min(axis=2) > 200
        assert white.mean() > 0.02, name
        rows, columns = np.nonzero(white)
        place = {
            "left" if columns.mean() < part.shape[1] / 2 else "right",
            "top" if rows.mean() < part.shape[0] / 2 else "bottom",
        }
        assert {letters[end] for end in ends} == place, name


def test_radiological_convention() -> None:
    x, y, z = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    axial = mid_slice(x + 100 * y, 2)
    assert axial.shape == (30, 24)
    assert axial[0, 0] == 23 + 2900  # upper left: the patient's right (x up), anterior (y up)
    assert axial[-1, -1] == 0
    coronal = mid_slice(x + 100 * z, 1)
    assert coronal[0, 0] == 23 + 3500
    sagittal = mid_slice(y + 100 * z, 0)
    assert sagittal[0, 0] == 29 + 3500  # anterior on the left


def test_proportions_are_those_of_the_body(marked: np.ndarray) -> None:
    figure = draw({"clean": marked, "repaired": marked}, "test", spacing=(1.0, 0.5, 3.0))
    millimetres = {"axial": (24, 15), "coronal": (24, 108), "sagittal": (15, 108)}
    width, height = figure.get_size_inches()
    scales = []
    for panel, name in zip(figure.axes[::2], millimetres, strict=True):
        box = panel.get_position()
        across, up = millimetres[name]
        scales += [box.width * width / across, box.height * height / up]
    np.testing.assert_allclose(scales, scales[0])


def test_one_grey_window_and_an_error_of_its_own(marked: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=SHAPE).astype(np.float32)
    repaired = 3 * clean
    figure = draw({"clean": clean, "repaired": repaired, "error": abs(repaired - clean)}, "test")
    low, high = np.percentile(clean, 1), np.percentile(clean, 99)
    for row in range(3):
        shown = [panel.images[0] for panel in figure.axes[3 * row : 3 * row + 3]]
        assert shown[0].get_clim() == shown[1].get_clim() == pytest.approx((low, high))
        assert shown[2].get_clim() == pytest.approx((0, (high - low) / 2))
        assert shown[2].get_cmap().name != shown[0].get_cmap().name


def test_no_error_is_black(marked: np.ndarray) -> None:
    volumes = {"clean": marked, "repaired": marked, "error": abs(marked - marked)}
    picture = triptych_array(volumes, "test")
    for panel in draw(volumes, "test").axes[2:9:3]:
        assert pixels(picture, panel).max() < 8


def test_the_file_is_the_array(tmp_path: Path, marked: np.ndarray) -> None:
    path = tmp_path / "t1" / "00000020.png"
    triptych({"clean": marked}, "t1, step 20", path)
    triptych({"clean": marked, "error": marked}, "t1, step 20", path)
    array = triptych_array({"clean": marked, "error": marked}, "t1, step 20")
    assert array.dtype == np.uint8
    assert array.shape[2] == 3
    np.testing.assert_array_equal(np.round(imread(path)[..., :3] * 255), array)
    assert [p.name for p in path.parent.iterdir()] == ["00000020.png"]


def test_thin_flat_and_constant_volumes() -> None:
    for shape, spacing in (((40, 40, 1), (1, 1, 5)), ((20, 20, 200), (1, 1, 9)), ((1, 1, 1), (1, 1, 1))):
        picture = triptych_array({"clean": np.zeros(shape, np.float32)}, "test", spacing)
        assert picture.shape[0] < 6 * picture.shape[1]
