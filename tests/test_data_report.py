"""The page about a data set: its pictures, the page of a store, and that of a manifest."""

import base64
import csv
import errno
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dae3d
from dae3d.errors import ScanError
from dae3d.reporting import data_check as check
from dae3d.reporting.data_check import check_scans
from dae3d.reporting.data_pictures import HEIGHT, SIDE, WIDTH, draw_slices, grey_levels, mid_planes
from dae3d.reporting.data_store import report_store
from dae3d.scans.manifest import LeftOut, Manifest, Scan
from dae3d.scans.readers import Volume
from dae3d.store.statistics import Statistics, measure
from dae3d.words import figure
from scan_files import described, phantom, undescribed, write_manifest, write_nifti


class Page(HTMLParser):
    """What a page shows, and what it would fetch from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.pictures: list[np.ndarray] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.foreign: list[str] = []
        self._quiet = False
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._quiet = tag == "style"
        self.text += " " if tag in ("td", "th") else ""
        self.ids.add(given.get("id") or "")
        if tag == "a":
            self.links.add((given["href"] or "").removeprefix("#"))
        elif source := given.get("src") or given.get("href"):
            if source.startswith("data:image/jpeg;base64,"):
                self.pictures.append(_decoded(source))
            else:
                self.foreign.append(source)

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data


def _decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def drawn(volume: Volume, modality: str = "t1") -> tuple[np.ndarray, Any, Statistics]:
    """The picture of a volume with RAS axes, what it was drawn as, and the volume's statistics."""
    statistics = measure(volume, modality)
    planes = planes_of(volume.intensities(), statistics)
    picture = draw_slices(planes, volume.spacing, modality, statistics)
    return _decoded(picture.picture), picture, statistics


def planes_of(array: np.ndarray, statistics: Statistics) -> list[np.ndarray]:
    def read(start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
        return array[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]

    return mid_planes(read, array.shape, statistics)


def test_slices_go_through_the_foreground_as_radiologists_look_at_them() -> None:
    array = np.zeros((20, 30, 40), np.float32)
    array[12:16, 4:8, 30:36] = np.random.default_rng(0).uniform(50, 100, (4, 4, 6))
    statistics = measure(Volume(array, np.eye(4)))
    axial, coronal, sagittal = planes_of(array, statistics)
    # By hand: rows from anterior or superior down, columns from the patient's right, or from anterior.
    assert np.array_equal(axial, array[::-1, ::-1, 32].T)
    assert np.array_equal(coronal, array[::-1, 5, ::-1].T)
    assert np.array_equal(sagittal, array[13, ::-1, ::-1].T)


def test_pictures_have_the_proportions_of_the_body() -> None:
    # 40 x 80 x 160 mm, of very different voxels; noise, so that both ends of the window are there.
    array = np.random.default_rng(0).uniform(100, 200, (40, 20, 40)).astype(np.float32)
    picture, _, _ = drawn(Volume(array, np.diag([1.0, 4.0, 4.0, 1.0])))
    assert picture.shape == (SIDE, 3 * SIDE)
    for number, (wide, tall) in enumerate([(40, 80), (40, 160), (80, 160)]):
        seen = picture[:, number * SIDE : (number + 1) * SIDE] > 60
        bounds = [np.flatnonzero(seen.any(axis=axis)) for axis in (0, 1)]
        for found, side in zip(bounds, (wide, tall), strict=True):
            assert found[-1] - found[0] + 1 == pytest.approx(side * SIDE / 160, abs=4)


def test_ct_is_drawn_in_its_window_and_others_between_percentiles() -> None:
    array = phantom((24, 24, 24))
    picture, ct, _ = drawn(Volume(array, np.eye(4)), "ct")
    assert (ct.low, ct.high) == (-1000, 1000)
    # Air is black and soft tissue, 40 HU, just above the middle of the window.
    assert picture[2, 2] < 8
    assert np.median(picture[60:100, 60:70]) == pytest.approx(255 * 1040 / 2000, abs=6)
    _, mr, statistics = drawn(Volume(array, np.eye(4)), "t1")
    assert (mr.low, mr.high) == (statistics.percentile(0.5), statistics.percentile(99.5))


def test_histogram_is_of_the_voxels_that_were_imaged() -> None:
    array = np.full((20, 20, 20), -3024, np.int16)
    array[4:16, 4:16, 4:16] = np.random.default_rng(0).integers(-900, 901, (12, 12, 12))
    _, picture, _ = drawn(Volume(array, np.eye(4)), "ct")
    corners = [step.split("H") for step in picture.histogram.split("V")[1:-1]]
    heights = [HEIGHT - float(y) for y, _ in corners]
    assert float(corners[-1][1]) == WIDTH
    # 60 bins of 33 HU: none below -900 or above 900, whatever lies around the field of view.
    assert heights[:2] == [0, 0]
    assert heights[-2:] == [0, 0]
    assert min(heights[4:-4]) > 0


@settings(max_examples=25)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.sampled_from([0.01, 0.7, 30.0])] * 3),
    st.sampled_from([1e-20, 1.0, 1e20]),
    st.sampled_from(["ct", "t1", "pet"]),
)
def test_any_scan_that_can_be_measured_can_be_drawn(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], unit: float, modality: str
) -> None:
    array = np.random.default_rng(0).normal(0, unit, shape).astype(np.float32)
    array.flat[0] = -unit
    array.flat[-1] = unit
    if array.size > 1:
        picture, made, _ = drawn(Volume(array, np.diag([*spacing, 1.0])), modality)
        assert picture.shape == (SIDE, 3 * SIDE)
        assert "nan" not in made.histogram


def test_levels_are_counted_of_whole_numbers_alone() -> None:
    assert grey_levels([np.array([[0, 1], [1, 2]]), np.array([[7.0]])]) == 4
    assert grey_levels([np.array([[0, 0.5]])]) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (-1005.6, "-1,006"), (0.70312, "0.703"), (3.2e9, "3.2e+09"), (999.4, "999")]
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def ct(side: int, seed: int) -> np.ndarray:
    return phantom((20, 20, side), seed) + np.random.default_rng(seed).integers(
        -60, 61, (20, 20, side), np.int16
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten CT scans, a T1, a copy of one of the CTs turned around and held out, a label map, a broken file."""
    for i in range(10):
        write_nifti(tmp_path / f"ct{i}.nii.gz", ct(20 + i % 2, i))
    write_nifti(tmp_path / "turned.nii.gz", ct(20, 4).T[::-1].astype(np.int32))
    write_nifti(tmp_path / "brain.nii.gz", np.random.default_rng(0).integers(1, 4000, (16, 16, 16), np.int16))
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[8:16, 8:16, 8:16] = 1
    write_nifti(tmp_path / "labels.nii.gz", labels)
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "ct1.nii.gz").read_bytes()[:2000])
    return tmp_path


def entries(folder: Path) -> list[Scan]:
    return [
        *(described(folder / f"ct{i}.nii.gz") for i in range(10)),
        described(folder / "turned.nii.gz", split="val"),
        described(folder / "brain.nii.gz", "t1"),
        described(folder / "labels.nii.gz", "t1"),
        undescribed(folder / "broken.nii.gz"),
    ]


def check_page(page: Page) -> None:
    """What the page about `folder` has to say."""
    assert page.foreign == []
    assert page.links - {""} <= page.ids
    assert "13 scans of 13 subjects in 2 modalities: 12 for training and 1 for validation." in page.text
    assert "1 scan is in both training and validation" in page.text
    assert "ct4.nii.gz ct, subject ct4.nii.gz, training" in page.text
    assert "turned.nii.gz ct, subject turned.nii.gz, validation" in page.text
    assert "t1: 1 likely label map" in page.text
    assert "labels.nii.gz looks like a label map: 2 different values" in page.text
    assert "ct: " not in page.text
    assert "20 x 20 x 21 voxels of 1 x 1 x 1 mm, RAS, int16, training" in page.text.replace(
        "\N{MULTIPLICATION SIGN}", "x"
    )
    assert "unreadable" in page.text
    assert all(picture.shape == (SIDE, 3 * SIDE) and picture.std() > 5 for picture in page.pictures)


def test_page_of_a_store(folder: Path) -> None:
    manifest = write_manifest(folder / "manifest.jsonl", entries(folder))
    store = dae3d.prepare(manifest=manifest, out=folder / "store", workers=1)
    path = report_store(folder / "store")
    assert path == folder / "store" / "data-report.html"
    page = Page(path)
    check_page(page)
    assert len(page.pictures) == 13
    assert "1 file was left out" in page.text
    lost = next(scan for scan in store.scans if scan.path.name == "ct3.nii.gz")
    (folder / "store" / "scans" / lost.file).write_bytes(b"")
    page = Page(report_store(folder / "store"))
    check_page(page)
    assert len(page.pictures) == 12
    assert "can no longer be read ct3.nii.gz" in page.text.replace(f"{folder.name}/", "")


def test_page_of_a_manifest_says_what_was_left_out(folder: Path) -> None:
    left_out = [LeftOut(path=folder / f"dose{i}", reason="dose report", files=7) for i in range(5)]
    left_out.append(LeftOut(path=folder / "x.nii", reason="2-D: shape 3x4"))
    page = Page(check_scans(Manifest(entries(folder), left_out), folder / "manifest.jsonl", 1))
    check_page(page)
    assert "37 files were left out" in page.text
    assert "dose report 35" in page.text
    assert "x.nii (shape 3x4)" in page.text


def test_two_processes_make_the_same_page(folder: Path) -> None:
    alone = check_scans(Manifest(entries(folder)), folder / "manifest.jsonl", 1).read_text()
    (folder / ".manifest.jsonl.checked").unlink()
    assert check_scans(Manifest(entries(folder)), folder / "manifest.jsonl", 2).read_text() == alone


@pytest.mark.usefixtures("in_this_process")
def test_check_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans, out = entries(folder), folder / "manifest.jsonl"
    whole, read = check._check, []

    def stopping(task: Any) -> Any:
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(task.scan.path.name)
        return whole(task)

    monkeypatch.setattr(check, "_check", stopping)
    with pytest.raises(KeyboardInterrupt):
        check_scans(Manifest(scans), out, 1)
    assert not (folder / "data-report.html").exists()
    first, read[:] = list(read), []

    def counting(task: Any) -> Any:
        read.append(task.scan.path.name)
        return whole(task)

    monkeypatch.setattr(check, "_check", counting)
    check_page(Page(check_scans(Manifest(scans), out, 1)))
    assert sorted([*first, *read]) == sorted(scan.path.name for scan in scans)
    # Another split is not read for; another modality or content is, and what could not be read.
    read.clear()
    scans[0] = scans[0].model_copy(update={"split": "val"})
    scans[1] = scans[1].model_copy(update={"modality": "cbct"})
    shutil.copy(folder / "ct5.nii.gz", folder / "ct6.nii.gz")
    page = Page(check_scans(Manifest(scans), out, 1))
    assert read == ["ct1.nii.gz", "ct6.nii.gz", "broken.nii.gz"]
    assert "11 for training and 2 for validation" in page.text
    assert "1 scan is duplicated within training or within validation" in page.text


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.EIO, "Input/output error"), MemoryError(), ScanError("unreadable: MemoryError: ")],
)
@pytest.mark.usefixtures("in_this_process")
def test_what_may_pass_is_not_remembered(folder: Path, failure: Exception, monkeypatch) -> None:
    out, scans = folder / "manifest.jsonl", list(entries(folder))
    whole = check.read_scan

    def failing(scan: Any) -> Any:
        if scan.path.name == "ct5.nii.gz":
            raise failure
        return whole(scan)

    monkeypatch.setattr(check, "read_scan", failing)
    first = Page(check_scans(Manifest(scans), out, 1))
    assert "unreadable" in first.text
    monkeypatch.setattr(check, "read_scan", whole)
    again = Page(check_scans(Manifest(scans), out, 1))
    assert "ct5.nii.gz" in again.text
    check_page(again)


def test_a_manifest_without_a_usable_scan_has_a_page(folder: Path) -> None:
    page = Page(check_scans(Manifest([undescribed(folder / "broken.nii.gz")]), folder / "m.jsonl", 1))
    assert "0 scans" in page.text
    assert "unreadable" in page.text


def test_real_labels_among_images_are_flagged_and_real_twins_found(shared_data: Path, tmp_path: Path) -> None:
    hippocampus = shared_data / "labelled" / "msd_hippocampus"
    images = sorted((hippocampus / "images").glob("*.nii.gz"))[:15]
    labels = [hippocampus / "labels" / image.name for image in images]
    extra = [shared_data / "awkward" / "unpaired_label_hippocampus_010.nii.gz"]
    pair = [shared_data / "pretrain" / "niivue" / "FLAIR.nii.gz", shared_data / "awkward" / "nrrd_FLAIR.nrrd"]
    scans = [described(path, "t1") for path in [*images, *labels, *extra, *pair]]
    page = Page(check_scans(Manifest(scans), tmp_path / "manifest.jsonl", 1))
    assert "t1: 16 likely label maps" in page.text
    # By their sha256 in the catalogue, the unpaired label and the label of case 011 are one file.
    with (shared_data / "CATALOG.tsv").open() as file:
        sums = {row["path"]: row["sha256"] for row in csv.DictReader(file, delimiter="\t")}
    names = [
        path.relative_to(shared_data).as_posix()
        for path in (*extra, hippocampus / "labels" / "hippocampus_011.nii.gz")
    ]
    assert len({sums[name] for name in names}) == 1
    assert "2 scans are duplicated" in page.text
    assert "The same file, listed under different subjects" in page.text
    assert "The same voxels in different files, listed under different subjects" in page.text
