"""What is drawn of a case, and where on the picture it is."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from dae3d.drawing.case_view import CaseView, view_case
from dae3d.drawing.overlay import EXTRA, MISSED, MIXED, draw, draw_case
from dae3d.scans.readers import Volume
from dae3d.store.conform import to_ras
from oriented import affine_of

NAMES = {1: "liver 0.90", 2: "spleen 0.50"}
SHAPE = (60, 50, 40)


def a_case(order: str = "RAS", spacing: tuple[float, float, float] = (2.0, 2.0, 3.0)) -> CaseView:
    """To the patient's right and front a liver of which the lower half is missed; a spleen on the left."""
    reference, prediction = np.zeros((2, *SHAPE), np.uint8)
    reference[35:50, 30:44, 12:28] = 1
    prediction[35:50, 30:44, 20:28] = 1
    reference[12:18, 10:16, 16:22] = prediction[12:18, 10:16, 16:22] = 2
    image = np.where(reference > 0, 200, 100).astype(np.int16)
    turned = [to_other(array, order) for array in (image, reference, prediction)]
    along = [spacing[next(i for i, pair in enumerate(("RL", "AP", "SI")) if c in pair)] for c in order]
    affine = affine_of(order, along, origin=(0, 0, 0))
    return view_case(Volume(turned[0], affine), turned[1], turned[2])


def to_other(array: np.ndarray, order: str) -> np.ndarray:
    """A RAS array with its axes in another order."""
    axes = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in order]
    flips = tuple(slice(None, None, 1 if letter in "RAS" else -1) for letter in order)
    return np.ascontiguousarray(array.transpose(axes)[flips])


def of_colour(picture: np.ndarray, panel: Axes, colour: str) -> np.ndarray:
    """(rows, columns) from 0 to 1 inside a panel, of its pixels that are nearly of a colour."""
    height, width = picture.shape[:2]
    box = panel.get_position()
    part = picture[
        round((1 - box.y1) * height) : round((1 - box.y0) * height),
        round(box.x0 * width) : round(box.x1 * width),
    ]
    near = np.abs(part / 255 - to_rgb(colour)).max(axis=2) < 0.25
    return np.argwhere(near) / part.shape[:2]


def test_what_is_missed_is_on_the_patients_side_and_below() -> None:
    view = a_case()
    picture = draw_case(view, view.fullest, "case", NAMES)
    panels = draw(view, view.fullest, "case", NAMES).axes
    assert len(panels) == 9
    axial, coronal, sagittal = panels[2], panels[5], panels[8]
    missed = {
        name: of_colour(picture, panel, MISSED)
        for name, panel in (("axial", axial), ("coronal", coronal), ("sagittal", sagittal))
    }
    assert len(missed["coronal"]) > 200
    # Right is on the left, front on the left of the sagittal slice; what is missed is low.
    assert missed["coronal"][:, 1].mean() < 0.5
    assert missed["sagittal"][:, 1].mean() < 0.5
    assert missed["coronal"][:, 0].mean() > 0.5
    assert not any(len(of_colour(picture, panel, EXTRA)) for panel in (axial, coronal, sagittal))


def test_errors_have_the_colour_of_their_kind() -> None:
    view = a_case()
    extra = CaseView(**(vars(view) | {"reference": view.prediction, "prediction": view.reference}))
    mixed = CaseView(**(vars(view) | {"prediction": np.where(view.reference == 1, 2, view.reference)}))
    for case, colour, others in ((extra, EXTRA, (MISSED, MIXED)), (mixed, MIXED, (MISSED, EXTRA))):
        picture = draw_case(case, case.worst, "case", NAMES)
        panels = draw(case, case.worst, "case", NAMES).axes
        assert len(of_colour(picture, panels[5], colour)) > 200
        assert not any(len(of_colour(picture, panels[5], other)) for other in others)


@pytest.mark.parametrize("order", ["LAS", "LIA", "PSR", "RAS"])
def test_the_axes_of_the_file_do_not_matter(order: str) -> None:
    first, other = a_case(), a_case(order)
    np.testing.assert_array_equal(other.image, first.image)
    np.testing.assert_array_equal(other.reference, first.reference)
    assert (other.fullest, other.worst, other.grey) == (first.fullest, first.worst, first.grey)
    assert other.spacing == first.spacing


def test_slices_go_through_what_they_are_to_show() -> None:
    view = a_case()
    x, y, z = view.worst
    wrong = view.reference != view.prediction
    assert wrong[x].any()
    assert wrong[:, y].any()
    assert wrong[:, :, z].any()
    # The small spleen counts as much as the large liver: only the axial slice can show both at once.
    z = view.fullest[2]
    assert set(np.unique(view.reference[:, :, z])) == {0, 1, 2}


def test_a_small_organ_missed_outweighs_the_rim_of_a_large_one() -> None:
    reference = np.zeros((64, 64, 64), np.uint8)
    reference[10:50, 10:50, 10:40] = 1
    reference[55:58, 55:58, 55:58] = 2
    prediction = np.where(reference == 2, 0, reference).astype(np.uint8)
    prediction[10, 10:50, 10:40] = 0
    view = view_case(Volume(np.zeros(reference.shape, np.int16), np.eye(4)), reference, prediction)
    assert all(55 <= slice_ < 58 for slice_ in view.worst)


def test_the_surroundings_are_shown_and_not_the_whole_body() -> None:
    reference = np.zeros((400, 400, 60), np.uint8)
    reference[200:205, 200:280, 20:30] = 1
    view = view_case(Volume(np.zeros(reference.shape, np.int16), np.diag([1, 1, 5, 1])), reference, reference)
    # 100 mm at least, or the label and 25 mm on either side.
    assert view.image.shape[0] == pytest.approx(100, abs=2)
    assert view.image.shape[1] == pytest.approx(80 + 50, abs=2)
    assert view.image.shape[2] == pytest.approx((50 + 50) / 5, abs=2)
    assert view.affine[:3, 3] == pytest.approx([152, 175, 75], abs=6)


def test_the_grey_window_is_that_of_the_label_and_what_is_near() -> None:
    image = np.full((120, 120, 120), -1000, np.int16)
    image[10:110, 10:110, 10:110] = 40
    reference = np.zeros(image.shape, np.uint8)
    reference[50:70, 50:70, 50:70] = 1
    image[reference == 1] = 100
    low, high = view_case(Volume(image, np.eye(4)), reference, reference).grey
    assert 20 < low < 40
    assert 100 < high < 120


@pytest.mark.parametrize("shape", [(9, 9, 1), (7, 8, 9)])
def test_nothing_labelled(shape: tuple[int, int, int]) -> None:
    empty = np.zeros(shape, np.uint8)
    view = view_case(Volume(np.ones(shape, np.float32), np.eye(4)), empty, empty)
    picture = draw_case(view, view.fullest, "nothing", NAMES)
    assert picture.dtype == np.uint8
    assert view.fullest == view.worst == tuple(n // 2 for n in shape)


def test_the_key_names_what_is_in_the_picture() -> None:
    view = a_case()
    figure = draw(view, view.fullest, "case", NAMES)
    classes, errors = figure.legends
    assert [text.get_text() for text in classes.get_texts()] == ["liver 0.90", "spleen 0.50"]
    assert [text.get_text() for text in errors.get_texts()] == ["missed", "extra", "wrong class"]
    letters = [{text.get_text() for text in panel.texts} for panel in figure.axes]
    assert letters == [set("RLAP"), set(), set(), set("RLSI"), set(), set(), set("APSI"), set(), set()]
    many = {i: f"class {i}" for i in range(1, 41)}
    labels = np.arange(SHAPE[0], dtype=np.uint8)[:, None, None] % 41 + np.zeros(SHAPE, np.uint8)
    view = view_case(Volume(labels, np.eye(4)), labels, labels)
    (classes, _) = draw(view, view.fullest, "case", many).legends
    assert classes.get_texts()[-1].get_text() == "and 22 more"


def test_slices_are_told_in_millimetres() -> None:
    view = a_case()
    figure = draw(view, (10, 12, 14), "case", NAMES)
    written = " ".join(text.get_text() for text in figure.texts)
    ras = to_ras(Volume(np.zeros(SHAPE, np.uint8), affine_of("RAS", (2, 2, 3), origin=(0, 0, 0))))
    start = view.affine[:3, 3] - ras.affine[:3, 3]
    for letter, place in zip("RAS", start + np.multiply((10, 12, 14), (2, 2, 3)), strict=True):
        assert f"{letter} {round(place)} mm" in written
