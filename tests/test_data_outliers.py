"""Which scans of a data set are flagged, and which are found to be there twice."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from dae3d.reporting.data_duplicates import GROUPS_SHOWN, MEMBERS_SHOWN, find_duplicates
from dae3d.reporting.data_outliers import DISTANCE, label_candidates, outliers
from dae3d.reporting.data_survey import Surveyed, survey
from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume
from dae3d.store.statistics import measure

NOISE = np.random.default_rng(0).normal(500, 100, (12, 12, 12))


def surveyed(number: int, array: np.ndarray = NOISE, **fields) -> Surveyed:
    digest, voxels = (
        hashlib.sha256(fields.pop(name, str(number)).encode()).hexdigest() for name in ("digest", "voxels")
    )
    scan = {
        "path": Path(f"scans/{number}.nii.gz"),
        "modality": "t1",
        "subject": str(number),
        "dataset": "made",
        "split": "train",
        "shape": (200, 180, 40),
        "spacing": (1.0, 1.0, 4.0),
        "dtype": "int16",
        "orientation": "RAS",
        "digest": digest,
    } | fields
    levels = scan.pop("levels", None)
    statistics = measure(Volume(array, np.eye(4)))
    return Surveyed(scan=Scan(**scan), statistics=statistics, voxel_digest=voxels[:32], levels=levels)


def flagged(scans: list[Surveyed]) -> dict[int, tuple[str, ...]]:
    found, _ = outliers(survey(scans))
    return {one.number: one.reasons for flags in found.values() for one in flags}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"spacing": (1.0, 1.0, 40.0)}, "largest voxel side 40 mm, most have 4 mm"),
        ({"spacing": (0.1, 1.0, 4.0)}, "smallest voxel side 0.1 mm, most have 1 mm"),
        ({"shape": (2000, 180, 40)}, "longest side 2,000 mm, most have 200 mm"),
        ({"shape": (9, 200, 180)}, "fewest voxels along an axis 9, most have 40"),
    ],
)
def test_a_grid_unlike_the_others_is_flagged(odd: dict, reason: str) -> None:
    scans = [surveyed(i) for i in range(20)]
    # Axes in another order are no other grid.
    scans[3] = surveyed(3, shape=(40, 200, 180), spacing=(4.0, 1.0, 1.0))
    assert flagged(scans) == {}
    scans[7] = surveyed(7, **odd)
    assert list(flagged(scans)) == [7]
    assert reason in flagged(scans)[7]


def test_intensities_of_another_unit_are_flagged() -> None:
    scans = [surveyed(i, NOISE * (1 + i / 40)) for i in range(20)]
    assert flagged(scans) == {}
    scans[4] = surveyed(4, NOISE * 1000)
    assert list(flagged(scans)) == [4]
    assert flagged(scans)[4][0].startswith("99.5th percentile 7")


def test_lost_hounsfield_offset_is_flagged() -> None:
    scans = [surveyed(i, NOISE - 800 + 3 * i, modality="ct") for i in range(20)]
    scans[5] = surveyed(5, NOISE - 800 + 1024, modality="ct")
    assert list(flagged(scans)) == [5]
    assert flagged(scans)[5][0].startswith("mean 7")


def test_hounsfield_units_halved_and_moved_are_flagged() -> None:
    random = np.random.default_rng(1)
    near = np.linalg.norm(np.stack(np.indices((24, 24, 24))) - 11.5, axis=0)
    bodies = [
        np.where(near < 8 + 0.2 * random.random(), 40, -1000) + random.normal(0, 20, near.shape)
        for _ in range(20)
    ]
    scans = [surveyed(i, body, modality="ct") for i, body in enumerate(bodies)]
    assert flagged(scans) == {}
    scans[6] = surveyed(6, bodies[6] / 2 - 300, modality="ct")
    assert list(flagged(scans)) == [6]
    assert any(reason.startswith("99.5th percentile -2") for reason in flagged(scans)[6])


@given(st.lists(st.integers(-800, 800), min_size=12, max_size=40), st.data())
def test_the_farthest_few_in_robust_deviations(means: list[int], data: st.DataObject) -> None:
    base = NOISE - NOISE.mean() + 0.123
    scans = [surveyed(i, base + mean, modality="ct") for i, mean in enumerate(means)]
    distances = np.abs(means - np.median(means))
    distances /= max(float(median_abs_deviation(means, scale="normal")), 30.0)
    # The five farthest are exceptions; the sixth says how far scans of this modality do lie.
    limit = max(DISTANCE, 2 * np.sort(distances)[-6])
    clear = np.abs(distances - limit) > 1e-3
    found = {n for n, reasons in flagged(scans).items() if any(text.startswith("mean") for text in reasons)}
    assert {n for n in found if clear[n]} == set(np.flatnonzero((distances > limit) & clear).tolist())


def test_several_kinds_of_scans_are_no_outliers_but_one_beyond_them_is() -> None:
    thick = {"spacing": (0.9, 0.9, 12.0)}
    scans = [surveyed(i, **(thick if i % 3 == 0 else {})) for i in range(60)]
    found, varied = outliers(survey(scans))
    assert found == {"t1": []}
    assert varied["t1"][0] == "largest voxel side: 20 of 60 far from the median, most have 4 to 12 mm"
    scans[31] = surveyed(31, spacing=(1.0, 1.0, 4000.0))
    assert list(flagged(scans)) == [31]


def test_of_few_scans_nothing_is_usual() -> None:
    assert flagged([surveyed(i, spacing=(1.0, 1.0, 1.0 + 10 * i)) for i in range(9)]) == {}


def test_label_maps_and_empty_scans_are_flagged_and_change_nothing_else() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[5:8, 5:8, 5:8] = 1
    spot = np.zeros((12, 12, 12))
    spot[6, 6, 3:9] = np.arange(6) + 0.5
    scans = [surveyed(i) for i in range(12)]
    # As many of them as there are images, and all brighter and coarser.
    scans += [surveyed(12 + i, labels, levels=2, spacing=(9.0, 9.0, 9.0)) for i in range(12)]
    scans.append(surveyed(24, spot))
    found = flagged(scans)
    assert sorted(found) == list(range(12, 25))
    assert found[12] == ("looks like a label map: 2 different values, all integers",)
    assert found[24] == ("nearly empty: at least 90 % of its voxels are 0",)


def test_label_maps_are_looked_for_where_percentiles_allow() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[5:8] = 3
    scans = [surveyed(0), surveyed(1, labels), surveyed(2, np.rint(NOISE)), surveyed(3, labels * 0.4)]
    assert label_candidates(survey(scans)) == [1]
    assert label_candidates(survey([surveyed(0, labels, levels=2)])) == []


def test_twins_across_the_split_come_first() -> None:
    scans = [surveyed(i) for i in range(8)]
    scans[1] = surveyed(1, digest="a", voxels="a", subject="x")
    scans[2] = surveyed(2, digest="a", voxels="a", subject="x")
    scans[5] = surveyed(5, digest="b", voxels="c")
    scans[7] = surveyed(7, digest="d", voxels="c", split="val", modality="t2")
    found = find_duplicates(survey(scans), scans.__getitem__)
    assert (found.groups, found.leaks) == (2, 1)
    first, second = found.shown
    assert first.leak
    assert first.what == "the same voxels in different files, listed under different subjects and modalities"
    assert [scan.path.name for scan in first.scans] == ["5.nii.gz", "7.nii.gz"]
    assert (second.leak, second.what, second.count) == (False, "the same file", 2)


def test_of_many_twins_a_few_from_either_side_are_shown() -> None:
    scans = [surveyed(i, voxels="a", split="val" if i == 500 else "train") for i in range(1000)]
    found = find_duplicates(survey(scans), scans.__getitem__)
    assert found.shown[0].count == 1000
    assert len(found.shown[0].scans) == MEMBERS_SHOWN
    assert {scan.split for scan in found.shown[0].scans} == {"train", "val"}
    pairs = [surveyed(i, voxels=f"pair {i // 2}") for i in range(2 * GROUPS_SHOWN + 10)]
    found = find_duplicates(survey(pairs), pairs.__getitem__)
    assert (found.groups, len(found.shown)) == (GROUPS_SHOWN + 5, GROUPS_SHOWN)


def test_a_store_without_voxel_digests_still_tells_equal_files() -> None:
    scans = [surveyed(i, digest="a").model_copy(update={"voxel_digest": None}) for i in range(2)]
    assert find_duplicates(survey(scans), scans.__getitem__).groups == 1
