"""Metrics against shapes whose answers are known, and against computations by other means."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.utils import get_code_to_measure_table, get_edge_surface_distance
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.spatial.distance import cdist

from dae3d.evaluation.segmentation_metrics import compare, compare_masks
from dae3d.evaluation.surfaces import element_areas, surface_distances

pytestmark = pytest.mark.slow

SPACINGS = [(1.0, 1.0, 1.0), (0.6, 0.6, 0.6), (0.8, 0.8, 2.0)]


def ball(spacing: Sequence[float], centre: Sequence[float], radius: float, side: float = 50.0) -> np.ndarray:
    """Voxels of a cube of `side` mm whose centres lie in a ball, all in mm."""
    axes = [(np.arange(round(side / step)) + 0.5) * step for step in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2


def box(shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def hd95_by_all_pairs(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> float:
    """Between voxels with a face towards the outside, every distance computed."""
    edges = [np.argwhere(mask & ~binary_erosion(mask, border_value=0)) * spacing for mask in (first, second)]
    distances = cdist(*edges)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def by_monai(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95 by MONAI, which makes no allowance for rounded voxel sizes itself."""
    pair = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (first, second)]
    limits = [tolerance * (1 + 1e-5)]
    sides = list(spacing)
    nsd = compute_surface_dice(*pair, limits, include_background=True, spacing=sides, use_subvoxels=True)
    # The percentile is NumPy's, as MONAI's takes its place among the distances in float32.
    whole = [mask[0, 0] for mask in pair]
    ways = get_edge_surface_distance(*whole, spacing=sides, symmetric=True)[1]
    return nsd.item(), max(np.percentile(way.double().numpy(), 95) for way in ways)


def agrees_with_monai(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float], tolerance: float
) -> bool:
    """To what float32 leaves, in which MONAI has areas and distances."""
    expected = by_monai(first, second, spacing, tolerance)
    return surface_distances(first, second, spacing, tolerance) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_concentric_balls(spacing: tuple[float, float, float]) -> None:
    inner, outer, centre = 16.0, 20.0, (25.0, 25.0, 25.0)
    prediction, reference = ball(spacing, centre, outer), ball(spacing, centre, inner)
    voxel = max(spacing)
    scores = compare_masks(prediction, reference, spacing, tolerance=outer - inner + voxel)
    assert scores["dice"] == pytest.approx(2 * inner**3 / (inner**3 + outer**3), abs=0.005)
    assert scores["nsd"] == 1
    assert scores["hd95_mm"] == pytest.approx(outer - inner, abs=voxel / 2)
    assert scores["volume_error_percent"] == pytest.approx(100 * ((outer / inner) ** 3 - 1), rel=0.02)
    assert scores["reference_ml"] == pytest.approx(4 / 3 * math.pi * inner**3 / 1000, rel=0.01)
    assert scores["volume_error_ml"] == pytest.approx(scores["predicted_ml"] - scores["reference_ml"])
    # Both surfaces are made of voxels, each off its ball by up to one.
    assert compare_masks(prediction, reference, spacing, outer - inner - 2 * voxel)["nsd"] == 0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_displaced_balls(spacing: tuple[float, float, float]) -> None:
    radius, shift = 20.0, 6.0
    prediction = ball(spacing, (28.0, 25.0, 25.0), radius)
    reference = ball(spacing, (22.0, 25.0, 25.0), radius)
    # The cosine of a point's direction is uniform on a sphere, and its distance to the other one follows.
    cosines = np.linspace(-1, 1, 20001)
    distances = np.abs(np.sqrt(radius**2 + shift**2 + 2 * radius * shift * cosines) - radius)
    scores = compare_masks(prediction, reference, spacing, tolerance=3.0)
    # Two caps of height h = radius - shift / 2 overlap.
    h = radius - shift / 2
    overlap = 2 * math.pi * h**2 * (3 * radius - h) / 3
    assert scores["dice"] == pytest.approx(overlap / (4 / 3 * math.pi * radius**3), abs=0.01)
    assert scores["volume_error_percent"] == pytest.approx(0, abs=0.5)
    voxel = max(spacing)
    assert scores["hd95_mm"] == pytest.approx(np.percentile(distances, 95), abs=voxel / 2)
    # Voxels are off the spheres by up to half of their size, on either side.
    within = [(distances <= 3.0 + off).mean() for off in (-voxel / 2, voxel)]
    assert within[0] <= scores["nsd"] <= within[1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_box(axis: int) -> None:
    spacing, size, steps = (0.7, 0.9, 3.0), (12, 14, 16), 3
    start = [8, 8, 8]
    reference = box((40, 40, 40), start, size)
    start[axis] += steps
    prediction = box((40, 40, 40), start, size)
    shift = steps * spacing[axis]
    overlap = 1 - steps / size[axis]
    scores = compare_masks(prediction, reference, spacing, tolerance=shift)
    assert scores["dice"] == pytest.approx(overlap)
    assert scores["hd95_mm"] == pytest.approx(shift)
    assert scores["nsd"] == 1  # everything lies within the shift, and exactly at the tolerance counts
    assert scores["volume_error_percent"] == 0
    # With no tolerance, what counts is where the sides of both boxes coincide.
    lengths = np.multiply(size, spacing)
    along = 2 * lengths[axis] * (lengths.sum() - lengths[axis])
    across = 2 * lengths.prod() / lengths[axis]
    assert compare_masks(prediction, reference, spacing, 0.0)["nsd"] == pytest.approx(
        along * overlap / (along + across), abs=0.06
    )


def test_tolerance_of_one_voxel_holds_for_a_rounded_voxel_size() -> None:
    spacing = (np.float32(0.7).item(), 0.7000001, 0.7)
    reference = box((12, 12, 12), (3, 3, 3), (5, 5, 5))
    for axis in range(3):
        assert compare_masks(np.roll(reference, 1, axis), reference, spacing, 0.7)["nsd"] == 1


def test_agreement_is_perfect_with_itself() -> None:
    reference = ball((2, 2, 2), (25, 25, 25), 17)
    scores = compare_masks(reference, reference, (2, 2, 2), 0.0)
    assert list(scores.values())[:5] == [1, 1, 0, 0, 0]


def test_a_class_that_is_nowhere_or_in_one_segmentation_only() -> None:
    empty, there = np.zeros((4, 4, 4), bool), box((4, 4, 4), (0, 0, 0), (1, 2, 5))
    nowhere = compare_masks(empty, empty, (1, 1, 1), 1.0)
    volumes = {"reference_ml": 0, "predicted_ml": 0}
    assert {name: value for name, value in nowhere.items() if not math.isnan(value)} == volumes
    missed = compare_masks(empty, there, (10, 10, 10), 1.0)
    assert (missed["dice"], missed["nsd"], missed["hd95_mm"]) == (0, 0, math.inf)
    assert (missed["volume_error_percent"], missed["volume_error_ml"]) == (-100, -8)
    assert (missed["reference_ml"], missed["predicted_ml"]) == (8, 0)
    spurious = compare_masks(there, empty, (10, 10, 10), 1.0)
    assert (spurious["dice"], spurious["nsd"], spurious["hd95_mm"]) == (0, 0, math.inf)
    assert math.isnan(spurious["volume_error_percent"])
    assert (spurious["volume_error_ml"], spurious["reference_ml"], spurious["predicted_ml"]) == (8, 0, 8)


def test_label_maps_by_class_and_region() -> None:
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[2:8, 2:8, 2:8] = 1
    reference[10:16, 2:8, 2:8] = 2
    prediction = np.where(reference == 2, 3, reference).astype(np.uint8)
    prediction[2, 2:8, 2:8] = 0
    classes = {"first": [1], "second": [2], "third": [3], "both": [1, 2], "later": [2, 3], "none": [9]}
    scores = compare(prediction, reference, (1, 1, 1), classes, 1.0)
    assert list(scores) == list(classes)
    assert scores["first"]["dice"] == pytest.approx(2 * 180 / (180 + 216))
    assert scores["second"]["hd95_mm"] == scores["third"]["hd95_mm"] == math.inf
    assert scores["both"]["dice"] == pytest.approx(2 * 180 / (180 + 432))
    later = scores["later"]
    assert (later["dice"], later["nsd"], later["hd95_mm"]) == (1, 1, 0)
    assert math.isnan(scores["none"]["dice"])


masks = arrays(bool, st.tuples(*[st.integers(2, 5)] * 3))
spacings = st.tuples(*[st.sampled_from([0.4, 1.0, 1.3, 5.0])] * 3)


@settings(max_examples=40)
@given(st.data(), masks, spacings)
def test_distances_agree_with_all_pairs(
    data: st.DataObject, first: np.ndarray, spacing: tuple[float, float, float]
) -> None:
    second = data.draw(arrays(bool, first.shape))
    if first.any() and second.any():
        scores = compare_masks(first, second, spacing, 1.0)
        # The surfaces of masks at the array's edge are closed there.
        expected = hd95_by_all_pairs(np.pad(first, 1), np.pad(second, 1), spacing)
        assert scores["hd95_mm"] == pytest.approx(expected)
        assert scores["dice"] == pytest.approx(2 * (first & second).sum() / (first.sum() + second.sum()))
        assert 0 <= scores["nsd"] <= 1


@settings(max_examples=40)
@given(st.data(), masks, spacings, st.permutations(range(3)), st.integers(0, 3))
def test_neither_the_surroundings_nor_the_axes_nor_the_order_matter(
    data: st.DataObject,
    first: np.ndarray,
    spacing: tuple[float, float, float],
    axes: list[int],
    margin: int,
) -> None:
    second = data.draw(arrays(bool, first.shape))
    scores = compare_masks(first, second, spacing, 0.5)
    turned = [np.pad(mask, margin)[::-1].transpose(axes).astype(np.uint8) for mask in (second, first)]
    other = compare(*turned, [spacing[axis] for axis in axes], {"it": [1]}, 0.5)["it"]
    assert list(other.values())[:3] == pytest.approx(list(scores.values())[:3], nan_ok=True)
    assert other["volume_error_ml"] == pytest.approx(-scores["volume_error_ml"], nan_ok=True)
    assert (other["reference_ml"], other["predicted_ml"]) == pytest.approx(
        (scores["predicted_ml"], scores["reference_ml"])
    )


def test_surfaces_of_single_voxels() -> None:
    spacing = (0.5, 2.0, 3.0)
    first, second = box((3, 3, 3), (0, 1, 1), (1, 1, 1)), box((3, 3, 3), (1, 1, 1), (1, 1, 1))
    # Of the eight elements of each, one at each corner, the four between both voxels are shared.
    assert surface_distances(first, second, spacing, 0.0) == (0.5, 0.5)
    assert surface_distances(first, second, spacing, 0.5) == (1, 0.5)
    # From a row of eleven voxels to the one at its end: 0 to 10 steps; the 95th percentile is 9.5 steps.
    row, end = box((11, 1, 1), (0, 0, 0), (11, 1, 1)), box((11, 1, 1), (0, 0, 0), (1, 1, 1))
    assert surface_distances(row, end, spacing, 1.0)[1] == 9.5 * 0.5
    # Corners are triangles, edges rectangles: the row has eight corners and ten times four edges, its end
    # eight corners. Within two steps lie, of the row, four corners and three times four edges.
    corner = math.sqrt((2 * 3) ** 2 + (0.5 * 3) ** 2 + (0.5 * 2) ** 2) / 8
    edge = math.hypot(0.5 * 3, 0.5 * 2) / 2
    expected = (4 * corner + 12 * edge + 8 * corner) / (16 * corner + 40 * edge)
    assert surface_distances(row, end, spacing, 1.0)[0] == pytest.approx(expected)


def test_area_of_a_large_box_is_that_of_its_sides() -> None:
    areas = element_areas((0.7, 0.9, 3.0))
    assert areas[0] == areas[255] == 0
    # Two layers of voxels along an axis, of which one is set.
    assert areas[[0b00001111, 0b00110011, 0b01010101]] == pytest.approx([0.9 * 3, 0.7 * 3, 0.7 * 0.9])


@pytest.mark.parametrize("spacing", [*SPACINGS, (0.7, 1.3, 2.9)])
def test_areas_of_elements_are_monais(spacing: tuple[float, float, float]) -> None:
    assert element_areas(spacing) == pytest.approx(get_code_to_measure_table(spacing)[0].numpy(), rel=1e-6)


@settings(max_examples=60)
@given(
    st.data(),
    arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)),
    spacings,
    st.sampled_from([0.0, 0.4, 1.0, 1.3, 3.0]),
)
def test_surfaces_agree_with_monais(
    data: st.DataObject, first: np.ndarray, spacing: tuple[float, float, float], tolerance: float
) -> None:
    second = data.draw(arrays(bool, first.shape))
    if first.any() and second.any():
        assert agrees_with_monai(first, second, spacing, tolerance)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.9)])
@pytest.mark.parametrize("noise", [0.01, 0.3, 0.9])
def test_surfaces_of_noise_agree_with_monais(noise: float, spacing: tuple[float, float, float]) -> None:
    random = np.random.default_rng(0)
    first, second = random.random((2, 24, 17, 30)) < noise
    for tolerance in (0.0, 1.0, 2.5):
        assert agrees_with_monai(first, second, spacing, tolerance)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            box((9, 30, 12), (0, 0, 0), (1, 1, 1)), box((9, 30, 12), (8, 29, 11), (1, 1, 1)), id="far apart"
        ),
        pytest.param(
            box((9, 9, 9), (0, 0, 0), (9, 9, 9)), box((9, 9, 9), (4, 4, 4), (1, 1, 1)), id="full and one"
        ),
        pytest.param(
            box((9, 9, 9), (0, 3, 0), (5, 2, 9)), box((9, 9, 9), (4, 3, 4), (5, 6, 5)), id="at edges"
        ),
        pytest.param(
            box((40, 20, 20), (1, 1, 1), (8, 9, 7)), box((40, 20, 20), (25, 8, 9), (9, 7, 8)), id="apart"
        ),
    ],
)
def test_surfaces_of_awkward_masks_agree_with_monais(first: np.ndarray, second: np.ndarray) -> None:
    for order in ("C", "F"):
        assert agrees_with_monai(np.asarray(first, order=order), second, (0.8, 0.8, 2.0), 2.0)


def test_surfaces_of_a_large_ball_agree_with_monais() -> None:
    spacing = (1.0, 1.0, 1.0)
    first = ball(spacing, (130, 100, 100), 70, side=200)
    second = ball(spacing, (126, 102, 100), 69, side=200)
    assert agrees_with_monai(first, second, spacing, 2.0)


@pytest.mark.parametrize("value", [1, 2])
def test_surfaces_of_a_real_hippocampus_agree_with_monais(shared_data: Path, value: int) -> None:
    folder = shared_data / "labelled" / "msd_hippocampus" / "labels"
    paths = sorted(folder.glob("*.nii.gz"))
    masks = [np.asarray(nibabel.load(path).dataobj) == value for path in paths[:15]]
    shape = np.max([mask.shape for mask in masks], axis=0)
    reference, *others = (
        np.pad(mask, [(0, a - b) for a, b in zip(shape, mask.shape, strict=True)]) for mask in masks
    )
    others += [binary_dilation(reference), binary_erosion(reference), np.roll(reference, (1, -2), (0, 2))]
    for other in others:
        assert agrees_with_monai(other, reference, (1.0, 1.0, 1.0), 1.0)


def test_comparing_files_needs_no_network_library() -> None:
    """Their import takes longer than comparing dozens of small cases."""
    code = "import sys, dae3d.commands.evaluate; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
